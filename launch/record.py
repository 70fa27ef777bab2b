"""How a run was submitted: `launch.json` in its folder, by which it is found, cancelled and submitted once more."""

import dataclasses
import os
import pwd
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplense.records import read_record, write_record
from jobs.attempts import ATTEMPTS, read_attempts
from jobs.config import require
from jobs.runs import CODE, LAUNCH, LOGS
from launch.by_hand import how_to_resume
from launch.clusters import Cluster
from launch.script import Submission

KINDS = {"job_id": str | None, "logs": str, "cluster": dict, "attempts_before": int | None, "queue": int | None}
"""What the record says that a run is found by, and of which type."""
REPEATED = {"command": list, "working_folder": str, "cluster": dict, "code": str}
"""What it says that a run is submitted once more by."""


@dataclass(frozen=True)
class Launched:
    """A run that was submitted, or started `by_hand` on some machine. `stranger` is the user who wrote how it was
    submitted, where that may be somebody else than this one."""

    folder: Path
    job_id: str | None
    slurm_conf: str | None
    local: bool
    logs: Path
    stranger: str | None = None
    by_hand: bool = False


def stranger_of(path: Path) -> str | None:
    """Who may have written a file, where that is not this user alone.

    `launch.json` says which commands run, with which SLURM_CONF (from which Slurm loads plug-ins), and which process is
    ended: from a folder that others can write to, that must not be believed.
    """
    found = path.lstat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH:
        return None
    if found.st_uid == os.geteuid():
        return "everybody"
    try:
        return pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        return f"user {found.st_uid}"


def own(folder: Path) -> Launched:
    """How a run of this user was submitted. Raises ValueError where it was not, or by somebody else."""
    run = launched(folder)
    require(not run.by_hand, how_to_resume(folder))
    if run.stranger:
        raise ValueError(
            f"{folder / LAUNCH} can be written by {run.stranger}, and says what would be run as you; only its owner "
            "can cancel or resume this run. Copy the checkpoints to a run of your own to continue from them."
        )
    return run


def keep(folder: Path, record: Mapping[str, Any]) -> None:
    """Write how a run is submitted, for its owner alone to change: later commands do what it says."""
    write_record(folder / LAUNCH, record)
    (folder / LAUNCH).chmod((folder / LAUNCH).stat().st_mode & ~0o022)


def queue_of(folder: Path) -> int | None:
    """The process that will start a run of this machine when it is its turn, as long as that process lives."""
    try:
        pid = told_in(folder).get("queue")
    except (ValueError, OSError):
        return None
    return pid if isinstance(pid, int) and is_process(pid, b"launch.queue") else None


def told_in(folder: Path) -> dict[str, Any]:
    """What a run's record says of how it was submitted. Raises ValueError, naming the file, where it is damaged."""
    path = folder / LAUNCH
    told = read_record(path, KINDS)
    executor, slurm_conf = (told["cluster"].get(name) for name in ("executor", "slurm_conf"))
    known = executor in ("local", "slurm") and isinstance(slurm_conf, str | None)
    require(known, f"{path} is damaged: it does not say where the run was sent.")
    return told


def launched(folder: Path) -> Launched:
    """How a run was submitted, or that it was started by hand. Raises ValueError where it is no run, or nobody can
    tell."""
    path = folder / LAUNCH
    if not path.exists() and (folder / ATTEMPTS).exists():
        return Launched(folder, None, None, True, folder / LOGS, by_hand=True)
    if not path.exists():
        raise ValueError(f"{folder} was not submitted: it has no {LAUNCH}. `deeplense submit` does that.")
    told = told_in(folder)
    local = told["cluster"]["executor"] == "local"
    # A script that the user handed to sbatch has its job's id from its first attempt on.
    later = [attempt["job_id"] for attempt in read_attempts(folder)[told.get("attempts_before") or 0 :]]
    job_id = told["job_id"] or (later[-1] if later else None)
    require(not local or not job_id or job_id.isdecimal(), f"{path} is damaged: {job_id!r} is no process.")
    return Launched(folder, job_id, told["cluster"]["slurm_conf"], local, Path(told["logs"]), stranger_of(path))


def is_process(pid: int, module: bytes) -> bool:
    """Whether a process runs, and runs this module."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and module in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


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


def again(run: Path, *, hours: float | None, update_code: bool) -> Submission:
    """The submission of a run that ended, once more. Raises ValueError where it was not submitted."""
    own(run)
    folder, told = run.absolute(), read_record(run / LAUNCH, REPEATED)
    os.chdir(told["working_folder"])
    stored: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told["cluster"].items()
    }
    code = folder / CODE if update_code else Path(told["code"])
    unknown = sorted(set(stored) - {field.name for field in dataclasses.fields(Cluster)})
    require("name" in stored and not unknown, f"{run / LAUNCH} is damaged: the cluster has no name, or has {unknown}.")
    cluster = Cluster(**stored).override(hours=hours)
    return Submission(cluster, (tuple(told["command"]),), (folder,), folder / LOGS, code)
