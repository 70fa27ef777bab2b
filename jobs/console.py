"""Progress output of a job: progress bars with rate and remaining time on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

CONSOLE = Console(highlight=False, emoji=False, soft_wrap=True)
SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """Print one line for the user."""
    CONSOLE.print(message, markup=False)
    sys.stdout.flush()


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:.1f} {unit}/s" if task.speed else "")


class Reporter:
    """Context manager that displays the progress of a job of `total` units. Only one process of a job has an `enabled`
    one."""

    def __init__(self, *, total: int, unit: str, done: int = 0, enabled: bool = True) -> None:
        self.total, self.unit, self.first, self.enabled = total, unit, done, enabled
        self.started = self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=CONSOLE) if enabled and CONSOLE.is_terminal else None
        self.task = self.bar.add_task("", total=total, completed=done, unit=unit) if self.bar else None

    def __enter__(self) -> "Reporter":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: int, message: str = "") -> None:
        """Display that `done` units are done. The message is shown in the bar, or in the next line of the log."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, description=message)
        elif self.enabled and (done >= self.total or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES):
            self.last_line = time.monotonic()
            words = (time.strftime("%H:%M:%S"), f"{done}/{self.total} {self.unit}", self.pace(done), message)
            say(" ".join(filter(None, words)))

    def pace(self, done: int) -> str:
        """Return the rate of this process and the remaining time, as h:mm:ss."""
        rate = (done - self.first) / max(time.monotonic() - self.started, 1e-9)
        if rate <= 0 or done >= self.total:
            return ""
        left = timedelta(seconds=round((self.total - done) / rate))
        pace = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s per {self.unit.removesuffix('s')}"
        return f"({pace}, {left} left)"


def track(done: Iterable[int], *, total: int, unit: str) -> None:
    """Consume an iterable of the number of units done so far, and display the progress."""
    with Reporter(total=total, unit=unit) as reporter:
        for count in done:
            reporter.update(count)
