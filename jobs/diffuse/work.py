"""Train a diffusion model."""

from typing import TYPE_CHECKING

from jobs.diffuse.settings import Settings
from jobs.frame.train import train

if TYPE_CHECKING:
    from jobs.diffuse.learner import Diffusion


def run(settings: Settings) -> int:
    """Train until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    return train(settings, lambda: make_learner(settings))


def make_learner(settings: Settings) -> "Diffusion":
    """Return what is trained."""
    from jobs.diffuse.learner import Diffusion

    return Diffusion.of(settings)
