"""The command line: `deeplense [--num_processes N] JOB [--setting value ...]`."""

import argparse
import sys
from collections.abc import Sequence

from jobs import config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors that a user can cause are one line on stderr, exit code 2."""
    options, rest = split_command(list(sys.argv[1:] if arguments is None else arguments))
    if not rest:
        make_parser().print_help()
        return 0
    try:
        config.load_job(rest[0])
        settings = config.parse(rest[0], rest[1:])
        if options.num_processes > 1:
            from launch.local import run_processes

            return run_processes(rest, options.num_processes, restarts=options.restarts)
        return config.load_job(rest[0]).run(settings)
    except ValueError as error:
        sys.stderr.write(f"deeplense: {error}\n")
        return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the job."""
    parser = argparse.ArgumentParser(
        prog="deeplense",
        usage="deeplense [--num_processes N] JOB [--config RECIPE.yaml] [--setting value ...]",
        epilog=f"JOB is one of {', '.join(config.JOBS)}; `deeplense JOB --help` lists its settings.",
    )
    parser.add_argument("--num_processes", type=int, default=1, help="processes on this machine, one for each GPU")
    parser.add_argument("--restarts", type=int, default=0, help="how often to start a job again that was told to stop by others")
    return parser


def split_command(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What stands before the job, and the job with what follows."""
    takes_value = {"--num_processes", "--restarts"}
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        place += 2 if arguments[place] in takes_value else 1
    return make_parser().parse_args(arguments[:place]), arguments[place:]


if __name__ == "__main__":
    sys.exit(main())
