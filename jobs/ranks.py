"""What the ranks of one job do together: the main one acts and speaks, the others wait and learn what came of it."""

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate import Accelerator

from deeplense.training.loop import from_main, gather_lists
from jobs.progress import say

Result = TypeVar("Result")


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result | None:
    """Do something on the main process while the others wait; bad input or a full disk there is an error on all."""
    problem, result = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = error
    problem = from_main(accelerator, problem)
    if problem is not None:
        raise problem
    return result


def on_all(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Do something on each process; bad input or a full disk on one is an error on all."""
    problem, result = None, None
    try:
        result = action()
    except (ValueError, OSError) as error:
        problem = error
    problems = [problem for problem in gather_lists(accelerator, [problem]) if problem is not None]
    if problems:
        raise problems[0]
    return cast("Result", result)


def announce(accelerator: Accelerator, message: str) -> None:
    """One line to the user, from the main process."""
    if accelerator.is_main_process:
        say(message)
