"""Joint actions of the ranks of one job: the main rank acts and prints, and all ranks get the result or the error."""

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate import Accelerator

from deeplense.training.loop import from_main, gather_lists
from jobs.console import say

Result = TypeVar("Result")


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result | None:
    """Run a function on the main process while the others wait. An error there (bad input, full disk) is raised on all
    ranks."""
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
    """Run a function on every process. An error on one of them (bad input, full disk) is raised on all."""
    problem, result = None, None
    try:
        result = action()
    except (ValueError, OSError) as error:
        problem = error
    problems = [problem for problem in gather_lists(accelerator, [problem]) if problem is not None]
    if problems:
        raise problems[0]
    return cast("Result", result)


def announce(accelerator: Accelerator, *messages: str) -> None:
    """Print lines for the user from the main process."""
    if accelerator.is_main_process:
        for message in messages:
            say(message)
