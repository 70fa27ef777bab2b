"""The command line: `deeplense [--num_processes N] JOB [--setting value ...]`, and `deeplense demo`."""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from jobs import config

DEMO = "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. What a user can cause is one line on stderr and exit code 2."""
    options, rest = split_command(list(sys.argv[1:] if arguments is None else arguments))
    if not rest:
        make_parser().print_help()
        return 0
    try:
        return run_demo(rest[1:]) if rest[0] == DEMO else run_job(rest, options)
    except (ValueError, subprocess.CalledProcessError) as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"deeplense: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("deeplense: interrupted; what is whole stays, and the same command continues\n")
        return 130


def run_job(command: list[str], options: argparse.Namespace) -> int:
    """Run a job, here or in several processes; its settings are checked first."""
    job = config.load_job(command[0])
    settings = config.parse(command[0], command[1:])
    if options.num_processes == 1 and not options.restarts:
        return job.run(settings)
    from launch.local import run_processes

    return run_processes(command, options.num_processes, restarts=options.restarts)


def run_demo(arguments: list[str]) -> int:
    """The whole chain on one machine."""
    from launch.demo import demo

    parser = argparse.ArgumentParser(prog=f"deeplense {DEMO}", description=run_demo.__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for data, run and report (default: demo)"
    )
    return demo(parser.parse_args(arguments).output)


def make_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the job."""
    parser = argparse.ArgumentParser(
        prog="deeplense",
        usage="deeplense [--num_processes N] JOB [--config RECIPE.yaml] [--setting value ...]",
        description="JOB is one of:\n" + "\n".join(f"  {name:<10} {summary}" for name, summary in summaries().items()),
        epilog="`deeplense JOB --help` lists the settings of a job.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--num_processes", type=at_least(1), default=1, help="processes on this machine, one for each GPU"
    )
    parser.add_argument(
        "--restarts", type=at_least(0), default=0, help="how often to start again after a scheduler's signal"
    )
    return parser


def summaries() -> dict[str, str]:
    """A line for each command."""
    docs = {name: config.load_job(name).__doc__ or "" for name in config.JOBS}
    return {name: doc.splitlines()[0] for name, doc in docs.items()} | {DEMO: run_demo.__doc__ or ""}


def at_least(smallest: int) -> Callable[[str], int]:
    """A reader of whole numbers from `smallest` on."""

    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is below {smallest}")
        return int(text)

    return number


def split_command(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What stands before the job, and the job with what follows."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        place += 2 if arguments[place] in ("--num_processes", "--restarts") else 1
    return make_parser().parse_args(arguments[:place]), arguments[place:]


def leave_as_rank() -> NoReturn:
    """Run one command as a rank of a group, and leave at once: to free the group's parts may hang (see `loop.KEPT`)."""
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave_as_rank() if "RANK" in os.environ else sys.exit(main())
