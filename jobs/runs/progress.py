"""Progress of a run for other processes: `progress.json`, updated every few seconds."""

import contextlib
import time
from pathlib import Path
from typing import Any

from deeplense.records import line_of, read_record

PROGRESS = "progress.json"
KINDS = {"step": int, "total": int, "rate": int | float}
SECONDS_BETWEEN = 5.0


class ProgressFile:
    """Writes step, total and steps per second of this attempt. The file is not essential, so a full disk is not an
    error."""

    def __init__(self, run: Path, *, total: int, first: int) -> None:
        self.path, self.total, self.first = run / PROGRESS, total, first
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
            temporary.write_text(line_of({"step": step, "total": self.total, "rate": rate}))
            temporary.replace(self.path)


def read_progress(run: Path) -> dict[str, Any] | None:
    """Return the latest progress; None if there is none or it is damaged."""
    try:
        return read_record(run / PROGRESS, KINDS)
    except (OSError, ValueError):
        return None
