"""Sending jobs to a cluster, or to this machine, through submitit; what is needed to continue them is kept."""

import dataclasses
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeplense.files import read_json, write_json
from jobs import config
from jobs.attempts import read_attempts
from jobs.config import require
from jobs.runs import CODE, FINISHED, LAUNCH, LOGS, open_run
from launch import slurm, status
from launch.clusters import Cluster
from launch.local import AFTER, VISIBLE
from launch.script import FOLDERS, Submission, job_environment, python_command, slurm_parameters
from launch.snapshot import take_snapshot
from launch.task import Run

LAUNCHES = Path("launches")


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


def again(run: Path, *, hours: float | None, update_code: bool) -> Submission:
    """The submission of a run that ended, once more. Raises ValueError where it was not submitted."""
    status.own(run)
    folder, told = run.absolute(), read_json(run / LAUNCH)
    os.chdir(told["working_folder"])
    stored: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told["cluster"].items()
    }
    code = folder / CODE if update_code else Path(told["code"])
    cluster = Cluster(**stored).override(hours=hours)
    return Submission(cluster, (tuple(told["command"]),), (folder,), folder / LOGS, code)


def send(submission: Submission, *, allow_untracked: bool = False, keep_code: bool = False) -> list[str]:
    """Submit all runs, as one array if there are several; returns the job's id for each."""
    set_up(submission, allow_untracked=allow_untracked, keep_code=keep_code)
    job_ids = send_to_slurm(submission) if submission.cluster.executor == "slurm" else send_to_this_machine(submission)
    for folder, job_id in zip(submission.folders, job_ids, strict=True):
        keep(folder, read_json(folder / LAUNCH) | {"job_id": job_id})
    return job_ids


def keep(folder: Path, launched: Mapping[str, Any]) -> None:
    """Write how a run is submitted, for its owner alone to change: later commands do what it says."""
    write_json(folder / LAUNCH, launched)
    (folder / LAUNCH).chmod((folder / LAUNCH).stat().st_mode & ~0o022)


def set_up(submission: Submission, *, allow_untracked: bool = False, keep_code: bool = False) -> None:
    """Make the folders with all that the job will look for there. Raises ValueError where a run is under way."""
    for folder in submission.folders:
        require(not (folder / FINISHED).exists(), f"{folder} is finished; evaluate it, or give another --run.")
        if (folder / LAUNCH).exists():
            status.own(folder)
        require(not status.is_active(folder), f"{folder} waits or runs already; `deeplense cancel {folder}` ends it.")
    open_runs(submission)
    submission.logs.mkdir(parents=True, exist_ok=True)
    if not keep_code:
        take_snapshot(submission.code, allow_untracked=allow_untracked)
    (submission.logs / FOLDERS).write_text("".join(f"{folder}\n" for folder in submission.folders))
    for place in range(len(submission.folders)):
        record(submission, place)


def open_runs(submission: Submission) -> None:
    """Make the folders, or check that they are runs of the same settings."""
    for command, folder in zip(submission.commands, submission.folders, strict=True):
        settings = config.parse(command[0], command[1:])
        if command[0] in config.TRAININGS:
            open_run(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)


def record(submission: Submission, place: int) -> None:
    """Keep in the folder of a run how it is submitted; the job's id is not yet known."""
    folder = submission.folders[place]
    launched = {
        "job_id": None,
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": submission.commands[place],
        "working_folder": str(Path.cwd()),
        "cluster": dataclasses.asdict(submission.cluster),
        "logs": str(submission.logs),
        "code": str(submission.code),
        "tasks": submission.cluster.tasks,
        "restarts": submission.cluster.restarts,
        "attempts_before": len(read_attempts(folder)),
    }
    keep(folder, launched)


def send_to_slurm(submission: Submission) -> list[str]:
    """Through sbatch, all runs in one array."""
    from submitit import SlurmExecutor

    with variables(slurm.environment(submission.cluster.slurm_conf)):
        executor = SlurmExecutor(submission.logs, python=python_command(submission))
        executor.update_parameters(**slurm_parameters(submission))
        jobs = executor.submit_array([Run(command[0], tuple(command[1:])) for command in submission.commands])
    return [job.job_id for job in jobs]


def send_to_this_machine(submission: Submission) -> list[str]:
    """Through submitit's local executor, one after another where there are several."""
    job_ids: list[str] = []
    for command, folder in zip(submission.commands, submission.folders, strict=True):
        after = {AFTER: job_ids[-1]} if job_ids else {}
        job_ids.append(start_here(submission, command, {**job_environment(submission, folder), **after}))
    return job_ids


def start_here(submission: Submission, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Start one job on this machine; returns the id of the process that watches it."""
    from submitit import LocalExecutor

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    kept = {VISIBLE: visible} if visible is not None else {}
    with variables({**environment, **kept}):
        executor = LocalExecutor(submission.logs, python=python_command(submission))
        executor.update_parameters(
            timeout_min=60 * submission.cluster.hours,
            tasks_per_node=1,
            signal_delay_s=submission.cluster.signal_delay_s,
            stderr_to_stdout=True,
        )
        return detached(lambda: executor.submit(Run(command[0], tuple(command[1:]))).job_id)


def detached(start: Callable[[], str]) -> str:
    """What a function returns that starts a process, in a session of its own and without a hold on our output."""
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
    require(bool(told), "the run could not be started on this machine; the error is above.")
    return told


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """These environment variables, for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
