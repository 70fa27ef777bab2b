"""Train a classifier or a regression network."""

from typing import TYPE_CHECKING

from jobs.frame.train import train
from jobs.train.settings import Settings

if TYPE_CHECKING:
    from jobs.train.learner import Supervised


def run(settings: Settings) -> int:
    """Train until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    return train(settings, lambda: make_learner(settings))


def make_learner(settings: Settings) -> "Supervised":
    """Return what is trained."""
    from jobs.train.learner import Supervised

    return Supervised.of(settings)
