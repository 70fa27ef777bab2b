"""Find out why an attempt ended, from the records of the run, the logs and Slurm."""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deeplense.records import read_record
from jobs.frame.watchdog import hung
from jobs.runs.attempts import end_attempt, first_failure, newest_step, read_attempts
from jobs.runs.folder import LAUNCH
from jobs.runs.progress import PROGRESS, read_progress
from launch.ends import (
    LIVING,
    Facts,
    accounted_state,
    cause_in_log,
    failed_tasks,
    had_grace,
    log_of_attempt,
    lost_nodes,
    parse_fields,
    why,
    without_progress,
)

KINDS = {"job_id": str | None, "attempts_before": int | None, "restarts": dict | None, "cancelled": str | None}
"""Keys that are read from the record of a submission, with their types."""


@dataclass(frozen=True)
class Job:
    """What Slurm reports about a job.

    Args:
        scheduler: output of `scontrol show job --oneliner`; empty if Slurm does not answer or has dropped the job.
        history: states of all starts of the job, one per line, from `sacct --duplicates`; empty without accounting.
    """

    scheduler: str = ""
    history: str = ""

    @property
    def state(self) -> str:
        """Current or last state of the job; empty if unknown."""
        rows = [row for row in self.history.splitlines() if row.strip()]
        return parse_fields(self.scheduler).get("JobState") or (rows[-1].split("|")[0].split(" ")[0] if rows else "")

    @property
    def waits(self) -> dict[str, float | None]:
        """Seconds from the submission, or the last requeue, until the job could start, and from then to its start."""
        fields = parse_fields(self.scheduler)
        submitted, eligible, started = (
            seconds_of(fields.get(f"{name}Time", "")) for name in ("Submit", "Eligible", "Start")
        )
        return {"held_s": seconds_between(submitted, eligible), "waited_s": seconds_between(eligible, started)}

    @property
    def lives(self) -> bool:
        """Whether the job is pending or running."""
        return self.state in LIVING

    @property
    def was_cancelled(self) -> bool:
        """Whether the job was ended by scancel."""
        return self.state == "CANCELLED"


def seconds_of(time: str) -> float | None:
    """Return a time of Slurm, such as 2026-12-01T11:36:26, as seconds; None if it is no time, such as Unknown."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None


def seconds_between(first: float | None, second: float | None) -> float | None:
    """Return the seconds from one time to another, 0 if the clock was set back between them; None if one is unknown."""
    return None if first is None or second is None else max(second - first, 0.0)


def facts_of(
    folder: Path, attempt: Mapping[str, Any], job: Job, *, log: Path, code: int | None = None, cause: str | None = None
) -> Facts:
    """Collect the facts about an attempt.

    Args:
        code: exit code of srun, if known.
        cause: reason of the end, if it is known without Slurm.
    """
    number, text = attempt["attempt"], log_of_attempt(read_text(log), attempt["attempt"])
    fields = parse_fields(job.scheduler)
    return Facts(
        restart=attempt["restart"],
        own=attempt["ended"],
        failure=first_failure(folder, number),
        code=code,
        hung=hung(folder, number),
        scheduler=fields,
        cause=cause or cause_in_log(text),
        accounted=accounted_state(job.history, attempt["restart"]),
        tasks=failed_tasks(text),
        lost=lost_nodes(text),
        grace=had_grace(text),
    )


def judge(folder: Path, attempt: Mapping[str, Any], job: Job, *, log: Path) -> str:
    """Return why an attempt ended: the reason that the launcher recorded, or else what can be found out afterwards."""
    return attempt["ended"] if "concluded" in attempt else why(facts_of(folder, attempt, job, log=log))


def conclude(folder: Path, number: int, reason: str) -> None:
    """Record the final reason why an attempt ended, and how far it came. Raises OSError if it cannot be written."""
    end_attempt(folder, number, reason=reason, concluded=True, values=reached(folder, number))


def reached(folder: Path, number: int) -> dict[str, Any]:
    """Return the last step that an attempt is known to have made, when that was, and its steps per second; empty if
    unknown. The next attempt overwrites the file that says so."""
    progress = read_progress(folder)
    if progress is None or progress.get("attempt") != number:
        return {}
    with contextlib.suppress(OSError):
        when = time.localtime((folder / PROGRESS).stat().st_mtime)
        told = time.strftime("%Y-%m-%dT%H:%M:%S%z", when)
        return {"reached": progress["step"], "reached_at": told, "rate": progress["rate"]}
    return {}


def counted(folder: Path, number: int) -> list[str]:
    """Return the reasons that count against the budgets: of attempts since the last submission and before this one,
    after which no newer checkpoint was saved."""
    return without_progress(read_attempts(folder)[first_of(folder) : number - 1], newest_step(folder))


def first_of(folder: Path) -> int:
    """Return the number of attempts before the last submission."""
    return launched(folder).get("attempts_before") or 0


def restarts_of(folder: Path) -> Mapping[str, int]:
    """Return the restart budgets that the run was submitted with."""
    return launched(folder).get("restarts") or {}


def launched(folder: Path) -> dict[str, Any]:
    """Return the record of the submission of a run. It is empty if the record is damaged, so that the run can still
    resume. Raises OSError if it cannot be read now."""
    path = folder / LAUNCH
    try:
        return read_record(path, KINDS) if path.exists() else {}
    except ValueError as error:
        say(f"deeplense: {error}")
        return {}


def read_text(path: Path) -> str:
    """Read a log; empty if it does not exist."""
    return path.read_text(errors="replace") if path.exists() else ""


def say(message: str) -> None:
    """Write a line to the log."""
    sys.stderr.write(f"{message}\n")
