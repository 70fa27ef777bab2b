"""Train a classifier or a regression network."""

from jobs.frame.train import train
from jobs.train.settings import Settings


def run(settings: Settings) -> int:
    """Train until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    from jobs.train.learner import Supervised

    return train(settings, lambda: Supervised.of(settings))
