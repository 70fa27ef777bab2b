"""What a job that learns must know of itself, for the one frame that updates, evaluates, saves and stops:
jobs/training_run.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.evaluation.selection import Loss
from jobs.experiment import Part


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. The weights that are kept are the last whose `loss` is not worse than the least, where
    it is known; else the first of the highest score, where there is one. A score that is NaN is undefined, and chooses
    nothing."""

    metrics: Mapping[str, float]
    score: float | None = None
    loss: Loss | None = None
    problem: str = ""
    """why it is to end here with an error, if it is"""


class Learner(Protocol):
    """What is learnt: from which samples, by which network, to what end."""

    train: Part
    """the samples that are learnt from"""
    ema_decay: float | None
    """of the running mean of the weights, if there is one; its weights are then those that count"""
    patience_epochs: float | None
    """after how many without a better score it ends, if ever"""
    layer_decay: float | None
    """by which each layer learns more slowly than the one behind it, if so"""
    fixed_rate: tuple[str, ...]
    """beginnings of the names of parameters whose learning rate stays at its highest"""
    score_name: str
    """what patience looks at, and, where evaluations give no loss, the choice of the weights; larger is better"""

    @property
    def read(self) -> Sequence[Part]:
        """All samples that are read."""
        ...

    @property
    def num_uniforms(self) -> int:
        """Random numbers that go with a sample; known when there is a network."""
        ...

    def make_network(self, *, load_pretrained: bool) -> nn.Module:
        """All that learns, in one module; `load_pretrained` is off where other weights follow anyway."""
        ...

    def begin(self, statistics: Mapping[str, list[float]]) -> None:
        """Take the mean and standard deviation of each band of the samples."""
        ...

    def description(self, where: str) -> str:
        """What is about to be learnt, in words; `where` is where the images are read."""
        ...

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The metrics of a batch, each a mean over its samples, after `step` updates; `loss` is minimised."""
        ...

    def weight_decay(self, step: int, num_steps: int) -> float | None:
        """That of the update after `step` updates; None where it stays what it is."""
        ...

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """What follows an update, on all ranks."""
        ...

    def evaluate(self, network: nn.Module, accelerator: Accelerator, beat: Callable[[], None]) -> Evaluation:
        """Evaluate weights on samples that are not learnt from, the same on all ranks; `beat` tells the watchdog that
        it goes on."""
        ...
