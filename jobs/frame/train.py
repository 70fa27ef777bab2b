"""One attempt at a training, from its settings to its exit code."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.frame.settings import LearningSettings
from jobs.imports import import_without
from jobs.runs.attempts import EXIT_STOPPED

if TYPE_CHECKING:
    from jobs.frame.learner import Learner


def train(settings: LearningSettings, make_learner: Callable[[], "Learner"]) -> int:
    """Train until finished or stopped by a signal. Returns 0, or 85 if stopped, with the state saved (if any)."""
    import_without("timm", "wandb")
    from deeplense.training.stopping import StopFlag
    from jobs.frame.staging import Copies, ToldToStop
    from jobs.frame.start import begin
    from jobs.frame.updates import train_to_the_end
    from jobs.frame.watchdog import Watchdog
    from jobs.runs.claim import Claim

    with (
        StopFlag() as stop,
        Watchdog(settings.run, minutes=settings.hang_minutes) as watchdog,
        Copies(stop, watchdog) as copies,
        Claim(settings, take_over=bool(settings.take_over)) as claim,
    ):
        try:
            training = begin(settings, make_learner, watchdog, copies, claim)
        except ToldToStop:
            return EXIT_STOPPED
        if training is None:
            return 0
        return train_to_the_end(training, stop)
