"""Pretrain a backbone on unlabelled images."""

from jobs.frame.train import train
from jobs.pretrain.settings import Settings


def run(settings: Settings) -> int:
    """Pretrain until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    from jobs.pretrain.learner import Pretraining

    return train(settings, lambda: Pretraining.of(settings))
