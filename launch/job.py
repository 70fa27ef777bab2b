"""Run a job on this machine: in this process, or in several processes as ranks of one process group."""

import os
from pathlib import Path
from typing import Any

from jobs.data.folders import find_datasets
from jobs.finetune.settings import SCRATCH
from jobs.run_job import checked_settings
from jobs.runs.attempts import number_given
from jobs.runs.folder import find_run
from jobs.settings import require
from jobs.verbs import STOPPABLE, work_of
from launch import status

RUNS = {
    "backbone": "a run of `deeplense pretrain`",
    "init_from": "a run of `deeplense train`",
    "lengthen": "a finished run of the same job",
}
"""Settings that name a run to start from, and which run they need."""


def run_job(command: list[str], num_processes: int) -> int:
    """Run a job in this process or in several; its settings are checked first."""
    return run_with(checked_settings(command, num_processes=num_processes), command, num_processes)


def run_typed(command: list[str], num_processes: int) -> int:
    """Run a job that a user has typed: what does not exist is refused before torch is imported, which takes seconds."""
    settings = checked_settings(command, num_processes=num_processes)
    refuse_missing(settings)
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


def refuse_missing(settings: Any) -> None:
    """Raise ValueError if a data set or a run that the settings name does not exist."""
    given = vars(settings)
    if "data_root" in given and isinstance(given.get("dataset"), str) and given["dataset"]:
        find_datasets(given["dataset"], given["data_root"])
    for name, what in RUNS.items():
        path = given.get(name)
        missing = path and str(path) != SCRATCH and not Path(path).exists()
        require(not missing, f"{name}={path} does not exist; give {what}.")
    run = given.get("run")
    if "runs_root" in given and run and not any(sign in str(run) for sign in "*?["):
        find_run(str(run), given["runs_root"])
