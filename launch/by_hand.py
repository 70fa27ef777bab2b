"""Runs that were started by hand, not submitted: who trains one, as the lock in its folder says."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from deeplense.locks import SECONDS_OF_A_LEASE, is_process, machine, read_holder
from jobs.runs import CONFIG, LOCK


def holder_of(folder: Path) -> dict[str, Any] | None:
    """The living process that trains a run. Of one on another machine only the age of the lock tells."""
    path = folder / LOCK
    try:
        holder, age_s = read_holder(path), time.time() - path.stat().st_mtime
    except OSError:
        return None
    if not holder:
        return None
    lives = is_process(holder["pid"], holder["started"]) if is_here(holder) else age_s < SECONDS_OF_A_LEASE
    return holder if lives else None


def is_here(holder: dict[str, Any]) -> bool:
    """Whether a process is on this machine."""
    return holder["machine"] == machine()


def stop(folder: Path) -> None:
    """Have a run save its state and end. Raises ValueError where nobody trains it, or not on this machine."""
    holder = holder_of(folder)
    if holder is None:
        raise ValueError(f"{folder} is not being trained; there is nothing to cancel.")
    where = f"{folder} is trained by process {holder['pid']} of {holder['user']} on {holder['host']}"
    if not is_here(holder):
        raise ValueError(f"{where}; cancel it there.")
    try:
        os.kill(holder["pid"], signal.SIGTERM)
    except PermissionError as error:
        raise ValueError(f"{where}; only that user can end it.") from error


def how_to_resume(folder: Path) -> str:
    """What continues such a run."""
    return f"{folder} was started by hand; the same command resumes it, or: deeplense JOB --config {folder / CONFIG}"
