"""What the files of a run say: its attempts, its progress, its loss. A few small reads for each run, however long it
is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from deeplense.records import read_record
from jobs.runs.attempts import newest_attempts, newest_step
from jobs.runs.folder import FINISHED, KINDS
from jobs.runs.progress import PROGRESS, read_progress
from launch.record import Launched, ended_well, launched

CLOCKS_S = 60.0
"""Largest expected difference between the clocks of a node and of the file system."""


@dataclass(frozen=True)
class Reading:
    """The files of a run, read at `time` (seconds since the epoch).

    Args:
        run: how it was submitted or started.
        attempts: the newest attempts, in order; at least two if there are so many.
        finished_step: the last step of a finished run; None otherwise.
        progress: step, total and rate, as last written; None if unknown.
        progress_time: when they were written.
        saved: step of the newest checkpoint.
    """

    run: Launched
    attempts: Sequence[Mapping[str, Any]] = ()
    finished_step: int | None = None
    progress: Mapping[str, Any] | None = None
    progress_time: float = 0.0
    saved: int = 0
    time: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder

    @property
    def num_attempts(self) -> int:
        """Number of attempts so far."""
        return self.attempts[-1]["attempt"] if self.attempts else 0

    @property
    def last_end(self) -> str:
        """Why the last attempt that has ended did so; empty if none has."""
        ends = [attempt["ended"] for attempt in self.attempts if attempt["ended"]]
        return ends[-1] if ends else ""

    @property
    def is_over(self) -> bool:
        """Whether the run, or a job without checkpoints, has finished since it was submitted."""
        return self.finished_step is not None or ended_well(self.run, self.attempts)

    @property
    def job_id(self) -> str | None:
        """The job of the run; if it was not submitted by deeplense, that of its last attempt."""
        if self.run.by_hand:
            return self.attempts[-1]["job_id"] if self.attempts else None
        return self.run.job_id

    @property
    def is_fresh(self) -> bool:
        """Whether the last attempt has made a step: the progress is its own, not that of an earlier attempt."""
        if not self.attempts or self.progress is None or self.attempts[-1]["first_step"] is None:
            return False
        if self.progress.get("attempt") is not None:
            return self.progress["attempt"] == self.num_attempts
        begun = seconds_of(self.attempts[-1]["begun"])
        return begun is None or self.progress_time > begun - CLOCKS_S

    @property
    def step(self) -> int:
        """The newest step that is known. The progress is written only at intervals; a checkpoint may be newer."""
        return max(self.progress["step"] if self.progress else 0, self.saved, self.finished_step or 0)

    @property
    def seconds_without_step(self) -> float:
        """Time since the last attempt wrote its progress; 0 if it has made no step yet."""
        return max(self.time - self.progress_time, 0.0) if self.is_fresh else 0.0


def read_run(folder: Path) -> Reading:
    """Read what the files of a run say. Raises ValueError if the folder is not a run or a record is damaged."""
    attempts, finished = newest_attempts(folder), finished_step(folder)
    return Reading(
        launched(folder, attempts=attempts),
        attempts=attempts,
        finished_step=finished,
        progress=read_progress(folder),
        progress_time=time_of(folder / PROGRESS),
        saved=newest_step(folder) if finished is None else finished,
    )


def finished_step(folder: Path) -> int | None:
    """Return the last step of a finished run; None for any other."""
    try:
        return read_record(folder / FINISHED, KINDS[FINISHED])["step"]
    except (ValueError, OSError):
        return None


def time_of(path: Path) -> float:
    """Return when a file was written, in seconds since the epoch; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def seconds_of(text: str | None) -> float | None:
    """Return a time of a record, such as 2026-12-01T11:00:00+0100, in seconds since the epoch; None if unknown."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return None
