"""Pretrain a backbone on unlabelled images."""

from typing import TYPE_CHECKING

from jobs.frame.train import train
from jobs.pretrain.settings import Settings

if TYPE_CHECKING:
    from jobs.pretrain.learner import Pretraining


def run(settings: Settings) -> int:
    """Pretrain until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    return train(settings, lambda: make_learner(settings))


def make_learner(settings: Settings) -> "Pretraining":
    """Return what is trained."""
    from jobs.pretrain.learner import Pretraining

    return Pretraining.of(settings)
