"""The record of how a run was submitted, `launch.json` in its folder, used to find, cancel and resubmit the run."""

import dataclasses
import os
import pwd
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplense.records import read_record, write_record
from jobs import command_line
from jobs.runs.attempts import ATTEMPTS, newest_attempts, read_attempts
from jobs.runs.folder import CODE, LAUNCH, LOGS
from jobs.settings import require
from launch.by_hand import how_to_resume
from launch.clusters import Cluster
from launch.copied import refuse_changed
from launch.ends import FINISHED
from launch.environment import for_here
from launch.parents import parents_of
from launch.submission import Submission
from launch.widths import Nodes, in_words, is_range

KINDS = {"job_id": str | None, "logs": str, "cluster": dict, "attempts_before": int | None, "queue": int | None}
"""Keys of the record that are needed to find a run, with their types."""
REPEATED = {"command": list, "working_folder": str, "cluster": dict, "code": str}
"""Keys of the record that are needed to resubmit a run, with their types."""

EVERYBODY = "everybody"
"""Who may have written a file that all users can write."""
PARSE = "import sys; from jobs.{module} import parse; parse(sys.argv[1], sys.argv[2:])"


@dataclass(frozen=True)
class Launched:
    """A run that was submitted, or started directly (`by_hand`) on some machine.

    `stranger` is another user who may have written the record, if any. `unnamed` means that the record has no job id,
    because the user called sbatch or its answer was lost; `job_id` is then that of the last attempt. The first
    `attempts_before` attempts were made before this submission.
    """

    folder: Path
    job_id: str | None
    slurm_conf: str | None
    local: bool
    logs: Path
    stranger: str | None = None
    by_hand: bool = False
    unnamed: bool = False
    attempts_before: int = 0


def stranger_of(path: Path) -> str | None:
    """Return who else may have written a file; None if only this user can.

    `launch.json` specifies which commands run, with which SLURM_CONF (from which Slurm loads plug-ins), and which
    process to end. It must not be trusted if others can write it.
    """
    found = path.lstat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH:
        return None
    if found.st_uid == os.geteuid():
        return EVERYBODY
    try:
        return pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        return f"user {found.st_uid}"


def named_owner(run: Launched) -> bool:
    """Whether another user has written the record of a run, and not anybody."""
    return run.stranger not in (None, EVERYBODY)


def own(folder: Path) -> Launched:
    """Return how a run of this user was submitted. Raises ValueError if it was not submitted, or by another user."""
    run = launched(folder)
    require(not run.by_hand, how_to_resume(folder))
    if run.stranger:
        raise ValueError(
            f"{folder / LAUNCH} can be written by {run.stranger}, and its commands would run as you; only its owner "
            "can cancel or resume this run. To continue from its checkpoints, copy them to a run of your own."
        )
    return run


def keep(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a submission. Only its owner may write to it, as later commands execute what it contains."""
    write_record(folder / LAUNCH, record)
    (folder / LAUNCH).chmod((folder / LAUNCH).stat().st_mode & ~0o022)


def queue_of(folder: Path) -> int | None:
    """Return the id of the live process that has queued a run on this machine, or None."""
    try:
        pid = told_in(folder).get("queue")
    except (ValueError, OSError):
        return None
    return pid if isinstance(pid, int) and is_process(pid, b"launch.queue") else None


def told_in(folder: Path) -> dict[str, Any]:
    """Read the record of the submission of a run. Raises ValueError, naming the file, if it is damaged."""
    path = folder / LAUNCH
    told = read_record(path, KINDS)
    executor, slurm_conf = (told["cluster"].get(name) for name in ("executor", "slurm_conf"))
    known = executor in ("local", "slurm") and isinstance(slurm_conf, str | None)
    require(known, f"{path} is damaged: it does not contain where the run was submitted; submit the run again.")
    return told


def launched(folder: Path, *, attempts: Sequence[Mapping[str, Any]] | None = None) -> Launched:
    """Return how a run was submitted, or that it was started directly. Raises ValueError if the folder is not a run or
    its record is damaged. `attempts` are its newest attempts, if they have been read."""
    path = folder / LAUNCH
    if not path.exists() and (folder / ATTEMPTS).exists():
        return Launched(folder, None, None, True, folder / LOGS, by_hand=True)
    if not path.exists():
        raise ValueError(f"{folder} was not submitted: it has no {LAUNCH}. Submit it with `deeplense submit`.")
    told = told_in(folder)
    local, before = told["cluster"]["executor"] == "local", told.get("attempts_before") or 0
    # A script that the user passed to sbatch records its job id in its first attempt; a successor job may follow it.
    job_id = (None if local else newest_job(folder, attempts, after=before)) or told["job_id"]
    require(not local or not job_id or job_id.isdecimal(), f"{path} is damaged: {job_id!r} is not a process id.")
    unnamed, conf, logs = not local and not told["job_id"], told["cluster"]["slurm_conf"], Path(told["logs"])
    stranger = stranger_of(path)
    return Launched(folder, job_id, conf, local, logs, stranger, unnamed=unnamed, attempts_before=before)


def newest_job(folder: Path, attempts: Sequence[Mapping[str, Any]] | None, *, after: int) -> str | None:
    """Return the job of the newest attempt after this number of attempts that has one; None if there is none."""
    attempts = newest_attempts(folder) if attempts is None else attempts
    if attempts and attempts[-1]["job_id"] is None and attempts[0]["attempt"] > after + 1:
        attempts = read_attempts(folder)
    later = [attempt["job_id"] for attempt in attempts if attempt["attempt"] > after]
    return next(filter(None, reversed(later)), None)


def since(run: Launched, attempts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of the newest attempts of a run that were made since its last submission."""
    return [attempt for attempt in attempts if attempt["attempt"] > run.attempts_before]


def ended_well(run: Launched, attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last attempt has finished, if it was made since the last submission."""
    ours = since(run, attempts)
    return bool(ours) and ours[-1]["ended"] == FINISHED


def is_process(pid: int, module: bytes) -> bool:
    """Whether the process is running and executes this module."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and module in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def record(submission: Submission, place: int) -> None:
    """Write the record of the submission of a run to its folder; the job id is not known yet."""
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
        "after": list(map(str, submission.after)),
        "stage": submission.stage and list(submission.stage),
    }
    keep(folder, launched)


def again(
    run: Path, *, hours: float | None = None, nodes: Nodes | None = None, update_code: bool = False
) -> Submission:
    """Return the submission that resubmits a run that has ended. Raises ValueError if it was not submitted, or cannot
    be resubmitted as it was."""
    own(run)
    folder, told = run.absolute(), read_record(run / LAUNCH, REPEATED)
    os.chdir(told["working_folder"])
    stored: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told["cluster"].items()
    }
    code = folder / CODE if update_code else Path(told["code"])
    unknown = sorted(set(stored) - {field.name for field in dataclasses.fields(Cluster)})
    require(
        "name" in stored and not unknown,
        f"{run / LAUNCH} is damaged: the cluster has no name, or unknown keys {unknown}.",
    )
    cluster = Cluster(**stored).override(hours=hours, nodes=nodes)
    if not update_code:
        refuse_changed(code)
    command, left_out = kept_command(run, tuple(told["command"]), None if update_code else code)
    made = Submission(cluster, (command,), (folder,), folder / LOGS, code, kept=True, left_out=left_out)
    if nodes is not None and not (code / "launch" / "widths.py").is_file() and not update_code:
        refuse_uneven(made)
    stage = tuple(told["stage"]) if told.get("stage") else None
    return dataclasses.replace(made, after=parents_of(folder), stage=stage)


def refuse_uneven(submission: Submission) -> None:
    """Raise ValueError if a run whose code needs equal shares of the batch gets a range of nodes, or a number of them
    that does not divide its batch."""
    (settings,), cluster = submission.settings, submission.cluster
    parts = cluster.tasks * getattr(settings, "gradient_accumulation", 1)
    even = not hasattr(settings, "gradient_accumulation") or settings.batch_size % parts == 0
    require(
        even and not is_range(cluster.nodes),
        f"the code of this run, {submission.code}, is older than ranges of nodes and uneven shares of a batch, so it "
        f"cannot run on {in_words(cluster.nodes)}; give one number of nodes that divides its batch, or resume it with "
        "the current code: --update_code.",
    )


def kept_command(run: Path, command: tuple[str, ...], code: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the command of a run in a form that its code accepts, and notes on settings that were removed for that: an
    earlier version accepted settings without effect. Raises ValueError if the command is invalid otherwise.

    Args:
        code: copy of the code that will run; None for the current code.
    """
    try:
        settled, idle = command_line.settle(*command)
    except SystemExit as error:
        told = f"{run} was submitted with a command that this version rejects, see the error above"
        raise ValueError(f"{told}; submit it again with the same --run and valid settings.") from error
    if not idle or (code is not None and takes(code, command)):
        return command, ()
    return settled, tuple(f"{told}; it is ignored" for told in idle)


def takes(code: Path, command: Sequence[str]) -> bool:
    """Whether a copy of the code, which may be another version, accepts a command."""
    environment = for_here(os.environ) | {
        "PYTHONPATH": str(code),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # An earlier version has its parser in another module.
    module = "command_line" if (code / "jobs" / "command_line.py").is_file() else "config"
    words = [sys.executable, "-c", PARSE.format(module=module), *command]
    return subprocess.run(words, env=environment, capture_output=True).returncode == 0
