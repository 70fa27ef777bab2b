"""Interface of a training job, used by the common loop that updates, evaluates, saves and stops.

A `Learner` is defined by the settings and the samples. A `Trainee` is its network, ready for training. Each is complete
when it is created.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.evaluation.selection import Loss
from deeplense.random.columns import Columns
from jobs.data.part import Part


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation. If `loss` is known, the weights kept are the latest whose loss is not significantly
    above the lowest. Otherwise they are the first with the highest score, if there is a score. A NaN score is undefined
    and is ignored."""

    metrics: Mapping[str, float]
    score: float | None = None
    loss: Loss | None = None
    problem: str = ""
    """error message if the training must end here, else empty"""


class Trainee(Protocol):
    """A network on its device, with everything needed to train and evaluate it."""

    @property
    def columns(self) -> Columns:
        """The random numbers per sample, by name."""
        ...

    def description(self, where: str) -> str:
        """Describe what is about to be trained; `where` is the place from which the images are read."""
        ...

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Return the metrics of a batch after `step` updates, each a mean over its samples. `loss` is minimised."""
        ...

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Run what follows update number `step`, on all ranks."""
        ...

    def evaluate(
        self, network: nn.Module, accelerator: Accelerator, *, step: int, beat: Callable[[], None]
    ) -> Evaluation:
        """Evaluate the weights after `step` updates on validation samples, with the same result on all ranks. `beat`
        reports progress to the watchdog."""
        ...


class Learner(Protocol):
    """What to train: the samples, the network and the objective."""

    @property
    def train(self) -> Part:
        """The training samples."""
        ...

    @property
    def read(self) -> Sequence[Part]:
        """All samples that are read, the training samples first."""
        ...

    @property
    def ema_decay(self) -> float | None:
        """Decay of the exponential moving average of the weights, which is then evaluated and kept; None for no
        average."""
        ...

    @property
    def patience_epochs(self) -> float | None:
        """Number of epochs without a better score after which the training ends; None for no early stopping."""
        ...

    @property
    def layer_decay(self) -> float | None:
        """Factor of the learning rate from each layer to the one before it; None for equal learning rates."""
        ...

    @property
    def fixed_rate(self) -> tuple[str, ...]:
        """Prefixes of the names of parameters whose learning rate stays at its peak value."""
        ...

    @property
    def score_name(self) -> str:
        """The score for early stopping and, if evaluations return no loss, for model selection; larger is better. Empty
        if there is no score."""
        ...

    def weight_decay(self, step: int, num_steps: int) -> float | None:
        """Return the weight decay of the update after `step` updates; None if it is constant."""
        ...

    def make_network(self, *, load_pretrained: bool) -> nn.Module:
        """Return a new network, with all trained parameters in one module. `load_pretrained` is off if other weights
        are loaded afterwards."""
        ...

    def make_trainee(self, network: nn.Module, statistics: Mapping[str, list[float]]) -> Trainee:
        """Prepare a network, already on its device, for training.

        Args:
            network: one of `make_network`.
            statistics: mean and standard deviation of each band of the samples.
        """
        ...
