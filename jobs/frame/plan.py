"""Length and progress of a training."""

import math
from dataclasses import dataclass, field
from typing import Any

from deeplense.data.order import num_steps
from deeplense.evaluation.selection import Loss, is_kept
from deeplense.schedules import learning_rate
from jobs.frame.settings import LearningSettings


@dataclass
class Progress:
    """Progress of a training: its complete state apart from the weights."""

    step: int = 0
    best: float = -math.inf
    """score of the weights that are kept"""
    best_step: int = 0
    least_loss: float = math.inf
    least_error: float = 0.0
    """lowest loss so far on the validation samples, and its standard error"""
    highest: float = -math.inf
    highest_step: int = 0
    undefined: int = 0
    """number of steps since the highest score at which the score was undefined; early stopping ignores them"""
    statistics: dict[str, list[float]] = field(default_factory=dict)
    dataset_id: str = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state. Older versions kept the weights with the highest score."""
        before = {"highest": state["best"], "highest_step": state["best_step"]}
        vars(self).update(before | state)

    def judge(self, score: float, loss: Loss | None) -> bool:
        """Update the progress with an evaluation. Returns whether its weights are kept."""
        if score > self.highest:
            self.highest, self.highest_step, self.undefined = score, self.step, 0
        # A killed attempt may have reached this step before, and its weights are saved.
        if self.step <= self.best_step:
            return False
        kept = score > self.best if loss is None else is_kept(loss, Loss(self.least_loss, self.least_error))
        if kept:
            self.best, self.best_step = score, self.step
        if loss is not None and loss.mean < self.least_loss:
            self.least_loss, self.least_error = loss.mean, loss.error
        return kept


@dataclass(frozen=True)
class Plan:
    """Length of a training, as functions of the settings and the number of training samples."""

    settings: LearningSettings
    num_samples: int
    patience_epochs: float | None = None

    @property
    def num_steps(self) -> int:
        """Number of updates of the whole training."""
        return num_steps(self.settings.epochs, num_samples=self.num_samples, batch_size=self.settings.batch_size)

    @property
    def steps_per_epoch(self) -> float:
        """Number of updates per pass over the samples."""
        return self.num_samples / self.settings.batch_size

    @property
    def steps_between(self) -> int:
        """Number of updates between two evaluations on the validation samples."""
        return max(round(self.settings.evaluate_epochs * self.num_samples / self.settings.batch_size), 1)

    def epoch(self, step: int) -> float:
        """Return the number of passes over the samples after this number of updates."""
        return step * self.settings.batch_size / self.num_samples

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation follows an update."""
        return step == self.num_steps or step % self.steps_between == 0

    def is_done(self, progress: Progress) -> bool:
        """Whether the training is complete."""
        return progress.step >= self.num_steps or self.is_out_of_patience(progress)

    def is_out_of_patience(self, progress: Progress) -> bool:
        """Whether early stopping applies: the score has not improved for `patience_epochs`. It depends only on the
        content of a checkpoint, so a resumed training stops at the same step."""
        if self.patience_epochs is None or progress.step % self.steps_between:
            return False
        patience = self.patience_epochs * self.num_samples / self.settings.batch_size
        return progress.step - progress.highest_step - progress.undefined >= patience

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update after `step` updates."""
        settings = self.settings
        return learning_rate(
            step,
            schedule="restarts" if settings.decay_lr else settings.schedule,
            lr=settings.lr,
            lr_min=settings.lr_min,
            num_steps=self.num_steps,
            warmup_steps=round(settings.warmup_epochs * self.steps_per_epoch),
            period_steps=max(round(settings.period_epochs * self.steps_per_epoch), 1),
            gamma=settings.gamma,
        )
