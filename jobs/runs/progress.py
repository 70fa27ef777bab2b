"""Progress of a run for other processes: `progress.json`, updated every few seconds."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from deeplense.records import line_of, read_record
from deeplense.training.tracking import METRICS
from jobs.runs.attempts import number_given

PROGRESS = "progress.json"
KINDS = {"step": int, "total": int, "rate": int | float, "attempt": int | None}
"""Fields of the file and their types. `attempt` is known if a batch script started the attempt."""
SECONDS_BETWEEN = 5.0
TAIL = 16384
"""Bytes at the end of the file of metrics in which the loss is searched."""
LOSS = "train/loss"


class ProgressFile:
    """Writes step, total and steps per second of this attempt. The file is not essential, so a full disk is not an
    error."""

    def __init__(self, run: Path, *, total: int, first: int) -> None:
        self.path, self.total, self.first = run / PROGRESS, total, first
        self.attempt = number_given(run)
        self.started = time.monotonic()
        self.written = -SECONDS_BETWEEN

    def update(self, step: int, *, at_once: bool = False) -> None:
        """Write the progress, unless it was written a moment ago."""
        now = time.monotonic()
        if now - self.written < SECONDS_BETWEEN and not at_once:
            return
        self.written = now
        rate = (step - self.first) / max(now - self.started, 1e-9)
        with contextlib.suppress(OSError):
            temporary = self.path.with_name(f".{PROGRESS}")
            values = {"step": step, "total": self.total, "rate": rate, "attempt": self.attempt}
            temporary.write_text(line_of(values))
            temporary.replace(self.path)


def read_progress(run: Path) -> dict[str, Any] | None:
    """Return the latest progress; None if there is none or it is damaged."""
    try:
        return read_record(run / PROGRESS, KINDS)
    except (OSError, ValueError):
        return None


def last_loss(run: Path) -> float | None:
    """Return the training loss that a run logged last, from the end of its metrics; None if there is none."""
    try:
        with (run / METRICS).open("rb", buffering=0) as file:
            file.seek(max(os.fstat(file.fileno()).st_size - TAIL, 0))
            lines = file.read(TAIL).split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        if LOSS.encode() in line and (value := loss_of(line)) is not None:
            return value
    return None


def loss_of(line: bytes) -> float | None:
    """Return the training loss in a line of metrics; None if it has none or is torn."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = values.get(LOSS) if isinstance(values, dict) else None
    return float(found) if isinstance(found, int | float) else None
