"""The attempts of a run, `attempts.jsonl`: a line for each start, with its first and last step, and why it ended.

A scheduler's script opens a line before the job starts and says in the end why it ended; where there is no script, the
job does both.
"""

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from deeplense.files import remove_leftovers, replacing
from deeplense.records import Lines, keep_copy, line_of, read_lines

ATTEMPTS = "attempts.jsonl"
STACKS = "stacks"
"""Folder of a run in which the ranks of an attempt that hangs leave what they were doing."""
NUMBER, FOLDER = "DEEPLENSE_ATTEMPT", "DEEPLENSE_FOLDER"
"""Environment variables by which a script tells the job which attempt it opened, and in which folder."""
EXIT_STOPPED = 85
"""Exit code of a job that saved its state on a signal and wants to be started again."""
EXIT_HUNG = 86
"""Exit code of a rank that made no step for too long."""
EXIT_DISK_FULL = 87
"""Exit code of a job that could not write."""
EXIT_REFUSED = 2
"""Exit code of a command whose settings or data are wrong: to start it again is of no use."""

DIVERGED = "diverged"
"""How the reason begins of an attempt that came to numbers that are not finite: to start it again is of no use."""


KINDS = {
    "attempt": int,
    "job_id": str | None,
    "restart": int | None,
    "nodes": str | None,
    "host": str | None,
    "pid": int | None,
    "num_processes": int | None,
    "begun": str | None,
    "first_step": int | None,
    "last_step": int | None,
    "ended": str | None,
}
"""What each line says, and of which type."""
EMPTY: dict[str, Any] = dict.fromkeys(KINDS) | {"restart": 0}
UNKNOWN = EMPTY | {"ended": "unknown: its record was damaged"}


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """All attempts of a run so far. Of one whose line is damaged only the number is known."""
    return in_order(read_lines(run / ATTEMPTS, KINDS))


def in_order(lines: Lines) -> list[dict[str, Any]]:
    """Attempts by their numbers, which are those of their lines unless lines were lost; those that are missing between
    are unknown."""
    most = len(lines.good) + 2 * len(lines.bad)
    found: dict[int, dict[str, Any]] = {}
    for number, attempt in lines.good.items():
        own = attempt["attempt"]
        found.setdefault(own if 1 <= own <= most else number, EMPTY | attempt)
    last = max([*found, *lines.bad], default=0)
    return [{**found.get(number, UNKNOWN), "attempt": number} for number in range(1, last + 1)]


def attempt_of(run: Path, number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All attempts, and the one of a number, which is there even where its line was lost."""
    attempts = read_attempts(run)
    if number > len(attempts):
        attempts += [UNKNOWN | {"attempt": missing} for missing in range(len(attempts) + 1, number)]
        attempts.append(EMPTY | {"attempt": number})
    return attempts, attempts[number - 1]


def write_attempts(run: Path, attempts: list[dict[str, Any]]) -> None:
    """Write all attempts, atomically; a file with damaged lines is kept under another name."""
    path = run / ATTEMPTS
    if bad := read_lines(path, KINDS).bad:
        aside = keep_copy(path)
        sys.stderr.write(f"deeplense: lines {bad} of {path} are damaged; it is kept as {aside.name}\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(map(line_of, attempts)))


def has_begun(run: Path) -> bool:
    """Whether any attempt got as far as the first step, or left a checkpoint."""
    return any(attempt["first_step"] is not None for attempt in read_attempts(run)) or any(
        (run / "checkpoints").glob("step_*/manifest.json")
    )


def job_id() -> str | None:
    """What the scheduler calls this job, `17` or, in an array, `17_3`; None outside a scheduler."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else os.environ.get("SLURM_JOB_ID")


def open_attempt(run: Path) -> int:
    """Add the line of an attempt that begins; returns its number. One before it that has no end was killed."""
    attempts = read_attempts(run)
    if attempts and attempts[-1]["ended"] is None:
        attempts[-1]["ended"] = "killed"
    attempts.append(
        {
            "attempt": len(attempts) + 1,
            "job_id": job_id(),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "nodes": os.environ.get("SLURM_JOB_NODELIST"),
            "host": platform.node(),
            "pid": None,
            "num_processes": None,
            "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "first_step": None,
            "last_step": None,
            "ended": None,
        }
    )
    write_attempts(run, attempts)
    return len(attempts)


def begin_attempt(run: Path, *, first_step: int, num_processes: int) -> int:
    """Record that the job of an attempt begins to work, after which step; returns the number of the attempt."""
    number = number_given(run) or open_attempt(run)
    attempts, this = attempt_of(run, number)
    for attempt in attempts[: number - 1]:
        if attempt["last_step"] is None:
            attempt["last_step"] = first_step
    this |= {
        "host": platform.node(),
        "pid": os.getpid(),
        "num_processes": num_processes,
        "first_step": first_step,
    }
    write_attempts(run, attempts)
    remove_leftovers(run)
    return number


def number_given(run: Path) -> int | None:
    """The attempt that a script opened for this run; None where there is no script."""
    folder, number = os.environ.get(FOLDER), os.environ.get(NUMBER)
    return int(number) if folder and number and Path(folder).resolve() == run.resolve() else None


def settle_finished(run: Path) -> None:
    """Record the end of an attempt that finished the run, and was killed before it could say so."""
    attempts = read_attempts(run)
    if attempts and attempts[-1]["ended"] is None:
        end_attempt(run, len(attempts), reason="finished")


def end_attempt(run: Path, number: int, *, reason: str, last_step: int | None = None, concluded: bool = False) -> None:
    """Record why an attempt ends, and after which step; `concluded` by a launcher, who knows more than the job. What it
    has concluded stays: a rank that says more was left behind on a lost node."""
    attempts, this = attempt_of(run, number)
    if "concluded" in this and not concluded:
        return
    this["ended"] = reason
    if concluded:
        this["concluded"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if last_step is not None:
        this["last_step"] = last_step
    write_attempts(run, attempts)


def add_to_attempt(run: Path, number: int, values: dict[str, Any]) -> None:
    """Write more about an attempt."""
    attempts, this = attempt_of(run, number)
    this |= values
    write_attempts(run, attempts)


def refuse_if_superseded(run: Path, number: int) -> None:
    """Raise ValueError where a later attempt has begun: this one runs on a node that the scheduler has given up."""
    latest = len(read_attempts(run))
    if latest > number:
        raise ValueError(f"attempt {latest} of {run} has begun; this one, {number}, writes nothing more and leaves.")
