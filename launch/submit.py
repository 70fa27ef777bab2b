"""Sending jobs to a cluster, or to this machine, through submitit; what is needed to continue them is kept."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import config
from jobs.claim import refuse_if_trained
from jobs.config import require
from jobs.runs import CODE, FINISHED, LAUNCH, LOGS, check_run, open_run
from launch import queue, slurm, status
from launch.clusters import Cluster
from launch.here import start_run, variables
from launch.record import again, keep, own, record, told_in
from launch.script import FOLDERS, Submission, job_environment, python_command, slurm_parameters
from launch.snapshot import take_snapshot
from launch.task import Run

LAUNCHES = Path("launches")
QUEUE_LOG = "queue.txt"
"""Among the logs: what the process says that starts several runs of this machine one after another."""


def prepare(command: Sequence[str], cluster: Cluster, *, folder: Path | None = None) -> Submission:
    """What would be submitted. Exits, with a line on stderr, where the settings are wrong; nothing is written."""
    settings = config.parse(command[0], command[1:])
    require(
        folder is None or command[0] not in config.STOPPABLE,
        f"--folder is for jobs without a run; the folder of {command[0]} is its --run.",
    )
    home = (folder or home_of(command[0], settings)).absolute()
    return Submission(cluster, (tuple(command),), (home,), home / LOGS, home / CODE)


def home_of(job: str, settings: Any) -> Path:
    """The folder that a job's logs and attempts go to: its run, or a new one below launches/."""
    return settings.run if job in config.STOPPABLE else LAUNCHES / f"{job.replace(' ', '-')}-{now()}"


def now() -> str:
    """The time, as part of a name."""
    return time.strftime("%Y%m%d-%H%M%S")


def prepare_sweep(commands: Sequence[Sequence[str]], cluster: Cluster, *, folder: Path | None = None) -> Submission:
    """What would be submitted, as one array, for the runs of a sweep. Exits where any of the settings are wrong."""
    settings = [config.parse(command[0], command[1:]) for command in commands]
    require(commands[0][0] in config.STOPPABLE, f"{commands[0][0]} has no --run; a sweep is over runs.")
    left = [place for place, each in enumerate(settings) if not (each.run / FINISHED).exists()]
    require(bool(left), f"all {len(commands)} runs of the sweep are finished.")
    home = (folder or LAUNCHES / f"sweep-{now()}").absolute()
    folders = tuple(settings[place].run.absolute() for place in left)
    return Submission(cluster, tuple(tuple(commands[place]) for place in left), folders, home / LOGS, home / CODE)


def prepare_parts(
    command: Sequence[str], cluster: Cluster, *, num_parts: int, folder: Path | None = None
) -> Submission:
    """What would be submitted, as one array, for a job that several tasks share. Exits where the settings are wrong."""
    job, settings = command[0], config.parse(command[0], command[1:])
    require(job in config.DIVISIBLE, f"{job} cannot be shared; --parts is for {' and '.join(config.DIVISIBLE)}.")
    require(settings.part is None, f"--parts {num_parts} gives each task its --part; leave --part={settings.part} out.")
    home = (folder or home_of(job, settings)).absolute()
    numbers = range(1, num_parts + 1)
    commands = tuple((*command, f"--part={number}/{num_parts}") for number in numbers)
    folders = tuple(home / f"part-{number:0{len(str(num_parts))}}" for number in numbers)
    return Submission(cluster, commands, folders, home / LOGS, home / CODE)


def prepare_spread(command: Sequence[str], cluster: Cluster, *, folder: Path | None = None) -> Submission:
    """What would be submitted, as one array, for a job that is many runs. Exits where the settings are wrong."""
    job, settings = command[0], config.parse(command[0], command[1:])
    runs = config.load_job(job).runs_left(settings)  # type: ignore[attr-defined]
    require(bool(runs), f"all runs in {settings.output} are finished; the same without `submit` makes the table.")
    home = (folder or home_of(job, settings)).absolute()
    commands = tuple((*command, f"--only={name}") for name in runs)
    return Submission(cluster, commands, tuple(run.absolute() for run in runs.values()), home / LOGS, home / CODE)


def send(submission: Submission, *, allow_untracked: bool = False, keep_code: bool = False) -> list[str | None]:
    """Submit all runs, as one array if there are several; returns the job's id for each, None for those of this machine
    that wait for their turn."""
    set_up(submission, allow_untracked=allow_untracked, keep_code=keep_code)
    if submission.cluster.executor != "slurm":
        return send_to_this_machine(submission)
    job_ids = send_to_slurm(submission)
    for folder, job_id in zip(submission.folders, job_ids, strict=True):
        keep(folder, told_in(folder) | {"job_id": job_id})
    return list(job_ids)


def set_up(submission: Submission, *, allow_untracked: bool = False, keep_code: bool = False) -> None:
    """Make the folders with all that the job will look for there. Raises ValueError where a run is under way."""
    for folder in submission.folders:
        require(not (folder / FINISHED).exists(), f"{folder} is finished; evaluate it, or give another --run.")
        if (folder / LAUNCH).exists():
            own(folder)
        require(not status.is_active(folder), f"{folder} waits or runs already; `deeplense cancel {folder}` ends it.")
    # Of an array all are checked before the first folder is made.
    check_runs(submission)
    open_runs(submission)
    submission.logs.mkdir(parents=True, exist_ok=True)
    if not keep_code:
        take_snapshot(submission.code, allow_untracked=allow_untracked)
    (submission.logs / FOLDERS).write_text("".join(f"{folder}\n" for folder in submission.folders))
    for place in range(len(submission.folders)):
        record(submission, place)


def check_runs(submission: Submission) -> None:
    """Raise ValueError where a training cannot begin or go on in its folder, or is under way there."""
    for command, folder in zip(submission.commands, submission.folders, strict=True):
        if command[0] in config.TRAININGS:
            settings = config.parse(command[0], command[1:])
            check_run(folder, settings)
            refuse_if_trained(folder, take_over=bool(settings.take_over))


def open_runs(submission: Submission) -> None:
    """Make the folders, or check that they are runs of the same settings."""
    for command, folder in zip(submission.commands, submission.folders, strict=True):
        settings = config.parse(command[0], command[1:])
        if command[0] in config.TRAININGS:
            open_run(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)


def send_to_slurm(submission: Submission) -> list[str]:
    """Through sbatch, all runs in one array."""
    from submitit import SlurmExecutor

    with variables(slurm.environment(submission.cluster.slurm_conf)):
        executor = SlurmExecutor(submission.logs, python=python_command(submission))
        executor.update_parameters(**slurm_parameters(submission))
        jobs = executor.submit_array([Run(command[0], tuple(command[1:])) for command in submission.commands])
    return [job.job_id for job in jobs]


def send_to_this_machine(submission: Submission) -> list[str | None]:
    """Through submitit's local executor, one after another where there are several."""
    return [start_run(submission)] if len(submission.folders) == 1 else queue_up([submission])


def queue_up(submissions: Sequence[Submission]) -> list[str | None]:
    """Have runs of this machine, which are set up, started one after another."""
    first, folders = submissions[0], [folder for submission in submissions for folder in submission.folders]
    code = {"PYTHONPATH": job_environment(first, folders[0])["PYTHONPATH"]}
    queue.start(folders, log=first.logs / QUEUE_LOG, environment=code)
    return [None] * len(folders)


def send_again(
    runs: Sequence[Path], *, hours: float | None = None, update_code: bool = False
) -> dict[Path, str | None]:
    """Submit runs that ended once more; returns the job's id of each, None for those of this machine that wait for
    their turn. Raises ValueError where one cannot be; those before it are then submitted."""
    sent: dict[Path, str | None] = {}
    here = []
    for run in runs:
        submission = again(run, hours=hours, update_code=update_code)
        if submission.cluster.executor == "local" and len(runs) > 1:
            set_up(submission, keep_code=not update_code)
            here.append(submission)
            sent[run] = None
        else:
            (sent[run],) = send(submission, keep_code=not update_code)
    if here:
        queue_up(here)
    return sent
