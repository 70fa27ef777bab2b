"""The command line: `deeplense JOB --setting value ...` here, `deeplense submit --on CLUSTER JOB ...` on a cluster."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from jobs.run_job import answered, leave
from jobs.verbs import JOBS, description_of, with_joined_name
from launch import commands
from launch.job import run_typed
from launch.parsing import CommandParser, at_least


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A user error is reported in one line on stderr, with exit code 2."""
    given = make_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if not given.command:
        make_parser().print_help()
        return 0
    name, *rest = given.command
    if name in commands.COMMANDS:
        return answered(lambda: commands.COMMANDS[name](rest))
    return answered(lambda: run_typed(with_joined_name(given.command), given.num_processes))


def make_parser() -> CommandParser:
    """Return the parser of the options before the name of the job."""
    jobs = {name: first_line(description_of(name)) for name in JOBS}
    others = {name: first_line(command.__doc__) for name, command in commands.COMMANDS.items()}
    width = max(map(len, [*jobs, *others]))
    lines = [f"  {name:<{width}} {text}" for name, text in jobs.items()]
    parser = CommandParser(
        prog="deeplense",
        usage="deeplense [--num_processes N] JOB [--config RECIPE.yaml] [--setting value ...]\n"
        "       deeplense submit --on CLUSTER JOB [--config RECIPE.yaml] [--setting value ...]",
        description="\n".join(
            ["JOB is one of:", *lines, "", "other commands:", *(f"  {k:<{width}} {v}" for k, v in others.items())]
        ),
        epilog="`deeplense JOB --help` lists the settings of a job.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deeplense {version('deeplense')}")
    parser.add_argument(
        "--num_processes", type=at_least(1), default=1, help="number of processes on this machine, one per GPU"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def first_line(doc: str | None) -> str:
    """Return the first line of a docstring."""
    return (doc or "").splitlines()[0]


if __name__ == "__main__":
    leave(main) if "RANK" in os.environ else sys.exit(main())
