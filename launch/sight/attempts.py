"""The attempts of a run as a table: width, wait, steps, and why each ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.runs.attempts import read_attempts
from launch.findings import printable
from launch.sight.table import duration
from launch.status import shown

HEAD = ("ATTEMPT", "JOB", "BEGUN", "NODES", "PROCESSES", "HELD", "WAITED", "STEPS", "ENDED")


def attempt_lines(folder: Path) -> list[str]:
    """Return the lines of the table of a run; none before its first attempt."""
    attempts = read_attempts(folder)
    if not attempts:
        return []
    rows = [HEAD, *map(row, attempts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in rows]
    return [f"{printable(str(shown(folder)))}: {total(attempts)}", *(f"  {line}" for line in lines)]


def row(attempt: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the table row of an attempt."""
    first, last = attempt["first_step"], attempt["last_step"]
    steps = "-" if first is None else f"{first} to {'?' if last is None else last}"
    begun = printable((attempt["begun"] or "-")[:16].replace("T", " "))
    counts = [in_figures(attempt[name]) for name in ("num_nodes", "num_processes")]
    waits = [in_time(attempt[name]) for name in ("held_s", "waited_s")]
    job_id, ended = (printable(attempt[name] or "-") for name in ("job_id", "ended"))
    return (str(attempt["attempt"]), job_id, begun, *counts, *waits, steps, ended)


def total(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Return the sum of the waits that are known, as text."""
    known = [attempt["waited_s"] for attempt in attempts if attempt["waited_s"] is not None]
    waited = f"waited {duration(sum(known))} in the queue" if known else "the time in the queue is unknown"
    return f"{len(attempts)} attempt{'' if len(attempts) == 1 else 's'}, {waited}"


def in_figures(count: int | None) -> str:
    """Return a number as text; `-` if it is unknown."""
    return "-" if count is None else str(count)


def in_time(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds; `-` if they are unknown."""
    return "-" if seconds is None else duration(seconds)
