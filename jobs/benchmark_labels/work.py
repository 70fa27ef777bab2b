"""Fine-tune backbones on few labels, and compare them in one table."""

from pathlib import Path

from jobs.benchmark_labels.plan import make_plan, make_table
from jobs.benchmark_labels.settings import Settings
from jobs.trials.queue import do_all
from jobs.trials.trials import left


def run(settings: Settings) -> int:
    """Execute the runs that are left, and print the table; returns 0, or 1 if a run failed, or 85 if stopped."""
    return do_all(settings, make_table(settings))


def runs_left(settings: Settings) -> dict[str, Path]:
    """Return the names and folders of the runs that are not finished yet."""
    return left([cell.trial for cell in make_plan(settings)], settings.only)
