"""Start submitted runs on this machine with submitit's local executor."""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from jobs.settings import require
from launch.environment import for_here
from launch.local import VISIBLE
from launch.record import keep, told_in
from launch.script import job_environment, python_command
from launch.submission import Submission
from launch.task import Run


def start_run(submission: Submission) -> str:
    """Start a run that is set up on this machine; return the id of the process that supervises it."""
    (command,), (folder,) = submission.commands, submission.folders
    job_id = start_here(submission, command, job_environment(submission, folder))
    keep(folder, told_in(folder) | {"job_id": job_id, "queue": None})
    return job_id


def start_here(submission: Submission, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Start a job on this machine; return the id of the process that supervises it."""
    from submitit import LocalExecutor

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    kept = {VISIBLE: visible} if visible is not None else {}
    with only_variables({**for_here(os.environ), **environment, **kept}):
        executor = LocalExecutor(submission.logs, python=python_command(submission))
        executor.update_parameters(
            timeout_min=60 * submission.cluster.hours,
            tasks_per_node=1,
            signal_delay_s=submission.cluster.signal_delay_s,
            stderr_to_stdout=True,
        )
        return detached(lambda: executor.submit(Run(command[0], tuple(command[1:]))).job_id)


def detached(start: Callable[[], str]) -> str:
    """Call a function that starts a process, and return its result. The process gets its own session and no output."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        kept = os.dup(2)
        try:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nowhere, number)
            os.write(writing, start().encode())
        except Exception:
            os.write(kept, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    require(bool(told), "the run could not be started on this machine; see the error above.")
    return told


@contextmanager
def only_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Replace the environment by these variables within the context."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
