"""Train, and compare rules for model selection."""

import itertools

from jobs.benchmark_selection.curves import make_curves
from jobs.benchmark_selection.settings import Settings
from jobs.benchmark_selection.table import write_table
from jobs.console import say


def run(settings: Settings) -> int:
    """Execute the trainings that are left, and print the table."""
    for seed, case in itertools.product(settings.all_seeds, settings.cases):
        make_curves(settings, case, seed)
    for line in write_table(settings.output):
        say(line)
    return 0
