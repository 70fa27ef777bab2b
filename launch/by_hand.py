"""Runs that were started directly, not submitted. The lock in the run folder names the process that trains one."""

import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

from deeplense.locks import SECONDS_OF_A_LEASE, is_process, machine, read_holder
from deeplense.records import read_record
from jobs.runs.folder import ENVIRONMENT, KINDS, LOCK
from jobs.runs.stored import CONFIG


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Return the live process that trains a run, or None. On another machine, the age of the lock decides."""
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
    """Whether the holder of a lock is on this machine."""
    return holder["machine"] == machine()


def is_elsewhere(folder: Path) -> bool:
    """Whether a process on another machine holds a run, as far as its lock says."""
    try:
        holder = read_holder(folder / LOCK)
    except OSError:
        return False
    return bool(holder) and not is_here(holder)


def stop(folder: Path) -> None:
    """Stop a run after it has saved a checkpoint. Raises ValueError if no process trains it, or one elsewhere."""
    holder = holder_of(folder)
    if holder is None:
        raise ValueError(f"{folder} is not running; there is nothing to cancel.")
    where = f"{folder} is being trained by process {holder['pid']} of user {holder['user']} on {holder['host']}"
    if not is_here(holder):
        raise ValueError(f"{where}; cancel it on that machine.")
    try:
        os.kill(holder["pid"], signal.SIGTERM)
    except PermissionError as error:
        raise ValueError(f"{where}; only that user can stop it.") from error


def how_to_resume(folder: Path) -> str:
    """Return how to resume a run that was not submitted."""
    told = f"{folder} was started directly, not submitted; run the same command again to resume it"
    return f"{told}: {command_of(folder) or f'deeplense JOB --config {folder / CONFIG}'}"


def command_of(folder: Path) -> str:
    """Return the command that started a run, as far as it is recorded; else empty."""
    try:
        words = read_record(folder / ENVIRONMENT, KINDS[ENVIRONMENT])["command"][1:]
    except (ValueError, OSError):
        return ""
    good = bool(words) and all(isinstance(word, str) and word.isprintable() for word in words)
    return shlex.join(["deeplense", *words]) if good else ""
