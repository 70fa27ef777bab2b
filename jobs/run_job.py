"""Run one verb in this process. An error that a user or a machine can cause becomes one line on stderr and an exit
code."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jobs import errors
from jobs.bounds import refuse_crowd
from jobs.command_line import parse
from jobs.runs.attempts import note_failure
from jobs.settings import require
from jobs.verbs import with_joined_name, work_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    return answered(lambda: run_job(with_joined_name(sys.argv[1:] if arguments is None else arguments)))


def answered(run: Callable[[], int]) -> int:
    """Call a function and return its exit code. An error that a user can cause becomes one line on stderr and an exit
    code."""
    try:
        return run()
    except (Exception, KeyboardInterrupt) as error:
        told = errors.told_of(error)
        note_failure(f"{type(error).__name__}: {errors.one_line(error)}")
        if told is None:
            raise
        return errors.say(told)


def run_job(command: Sequence[str]) -> int:
    """Check the settings of a verb, run it, and return its exit code."""
    require(bool(command), "no job given; write `python -m jobs JOB --setting value ...`.")
    settings = checked_settings(command)
    return work_of(command[0]).run(settings)


def checked_settings(command: Sequence[str], *, num_processes: int = 1) -> Any:
    """Return the settings of a command line, checked for this machine. If they are invalid or would start too many
    processes, it prints one line to stderr and exits, or raises ValueError."""
    settings = parse(command[0], command[1:])
    allow_own_model(settings)
    refuse_lonely_tasks()
    refuse_crowd(vars(settings) | {"num_processes": num_processes})
    return settings


def allow_own_model(settings: Any) -> None:
    """Allow the import of the user's modules if the command line or a recipe names models in them."""
    given = vars(settings) | dict(vars(settings).get("training", {}))
    names = [given.get("model_name"), given.get("name"), *str(given.get("models", "")).split(",")]
    if any(":" in str(name) for name in names):
        from deeplense.models.own import allow, is_own

        for name in filter(is_own, map(str, names)):
            allow(name)


def refuse_lonely_tasks() -> None:
    """Raise ValueError if srun started several tasks that are not connected: each would run the whole job."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    require(
        tasks == 1 or "RANK" in os.environ,
        f"srun started {tasks} tasks, and each would run the whole job; use `deeplense submit`, or "
        "`srun python -m launch.task JOB ...` in the script that `deeplense submit --export` writes.",
    )


def leave(run: Callable[[], int]) -> NoReturn:
    """Call a function and end the process immediately. A normal exit could hang while the process group is freed (see
    `loop.KEPT`)."""
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
