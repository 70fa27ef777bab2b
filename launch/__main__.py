"""The command line: `deeplense JOB --setting value ...` here, `deeplense submit --on CLUSTER JOB ...` elsewhere."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from jobs import config
from jobs.bounds import refuse_crowd
from jobs.config import require
from launch import commands, errors
from launch.commands import CommandParser, at_least


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. What a user can cause is one line on stderr, and exit code 2."""
    given = make_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if not given.command:
        make_parser().print_help()
        return 0
    name, *rest = given.command
    try:
        if name in commands.COMMANDS:
            return commands.COMMANDS[name](rest)
        return run_job(config.named(given.command), given.num_processes)
    except (Exception, KeyboardInterrupt) as error:
        told = errors.told_of(error)
        if told is None:
            raise
        return errors.say(told)


def run_job(command: list[str], num_processes: int) -> int:
    """Run a job, here or in several processes; its settings are checked first."""
    job = config.load_job(command[0])
    settings = config.parse(command[0], command[1:])
    refuse_lonely_tasks()
    refuse_crowd(vars(settings) | {"num_processes": num_processes})
    if num_processes == 1:
        return job.run(settings)
    from launch.local import run_processes

    return run_processes(command, num_processes)


def refuse_lonely_tasks() -> None:
    """Raise ValueError where srun started several tasks that would each do the whole job and know nothing of the
    others."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    require(
        tasks == 1 or "RANK" in os.environ,
        f"srun started {tasks} tasks, and each would do the whole job; use `deeplense submit`, or "
        "`srun python -m launch.task JOB ...` in the script of `deeplense submit --export`.",
    )


def make_parser() -> CommandParser:
    """The parser of what stands before the job."""
    jobs = {name: first_line(config.load_job(name).__doc__) for name in config.JOBS}
    others = {name: first_line(command.__doc__) for name, command in commands.COMMANDS.items()}
    width = max(map(len, [*jobs, *others]))
    lines = [f"  {name:<{width}} {text}" for name, text in jobs.items()]
    parser = CommandParser(
        prog="deeplense",
        usage="deeplense [--num_processes N] JOB [--config RECIPE.yaml] [--setting value ...]\n"
        "       deeplense submit --on CLUSTER JOB [the same]",
        description="\n".join(
            ["JOB is one of:", *lines, "", "or:", *(f"  {k:<{width}} {v}" for k, v in others.items())]
        ),
        epilog="`deeplense JOB --help` lists the settings of a job.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--num_processes", type=at_least(1), default=1, help="processes on this machine, one for each GPU"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def first_line(doc: str | None) -> str:
    """The first line of a docstring."""
    return (doc or "").splitlines()[0]


def leave(run: Callable[[], int]) -> NoReturn:
    """Do something, and end the process at once: to free the group's parts may hang (see `loop.KEPT`)."""
    try:
        code = run()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main) if "RANK" in os.environ else sys.exit(main())
