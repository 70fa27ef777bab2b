"""Run a job on this machine: in this process, or in several processes as ranks of one process group."""

import os
from typing import Any

from jobs.run_job import checked_settings
from jobs.runs.attempts import number_given
from jobs.verbs import STOPPABLE, work_of
from launch import status
from launch.first_checks import check_at_once


def run_job(command: list[str], num_processes: int) -> int:
    """Run a job in this process or in several; its settings are checked first."""
    return run_with(checked_settings(command, num_processes=num_processes), command, num_processes)


def run_typed(command: list[str], num_processes: int) -> int:
    """Run a job that a user has typed: what does not exist is refused before torch is imported, which takes seconds."""
    settings = checked_settings(command, num_processes=num_processes)
    check_at_once(command[0], settings, num_processes=num_processes)
    return run_with(settings, command, num_processes)


def run_with(settings: Any, command: list[str], num_processes: int) -> int:
    """Run a job whose settings are checked."""
    job = command[0]
    refuse_taken(job, settings)
    if num_processes == 1:
        return work_of(job).run(settings)
    from launch.local import run_processes

    return run_processes(command, num_processes)


def refuse_taken(job: str, settings: Any) -> None:
    """Raise ValueError if a run that is started directly belongs to a submitted job."""
    if job in STOPPABLE and number_given(settings.run) is None and os.environ.get("RANK", "0") == "0":
        learning = settings.learning if job == "finetune" else settings
        status.refuse_if_submitted(settings.run.absolute(), take_over=bool(learning.take_over))
