"""Train a diffusion model."""

from jobs.diffuse.settings import Settings
from jobs.frame.train import train


def run(settings: Settings) -> int:
    """Train until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    from jobs.diffuse.learner import Diffusion

    return train(settings, lambda: Diffusion.of(settings))
