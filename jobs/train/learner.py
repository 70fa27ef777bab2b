"""Training of `deeplense train`: classification or regression."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.data.transforms import NUM_UNIFORMS
from deeplense.evaluation.metrics import auc_names, classification_metrics, regression_metrics, softmax
from deeplense.evaluation.selection import few_images, log_loss
from deeplense.models.registry import Network
from deeplense.random.columns import Columns
from deeplense.training.loop import share_buffers
from jobs.data.part import Part
from jobs.frame.learner import Evaluation
from jobs.frame.predict import predict_part
from jobs.settings import require
from jobs.train.network import make_network
from jobs.train.objective import Objective, make_objective
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings

EVALUATION_BATCH = 256
COLUMNS = Columns({"augmentation": NUM_UNIFORMS})


@dataclass(frozen=True)
class Supervised:
    """The learner of a classification or a regression."""

    settings: Settings
    train: Part
    val: Part
    fixed_rate: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "Supervised":
        """Return the learner for these settings. Raises ValueError if a class has no training image or no validation
        image."""
        train, val = learning_parts(settings)
        if not settings.regression:
            refuse_missing_classes(train, val)
        return cls(settings, train, val)

    @property
    def read(self) -> Sequence[Part]:
        """Training and validation samples."""
        return [self.train, self.val]

    @property
    def ema_decay(self) -> float | None:
        """Decay of the moving average of the weights."""
        return self.settings.ema_decay

    @property
    def patience_epochs(self) -> float | None:
        """Number of epochs without a better score before early stopping."""
        return self.settings.patience_epochs

    @property
    def layer_decay(self) -> float | None:
        """Layer-wise learning rate decay."""
        return self.settings.layer_decay

    @property
    def score_name(self) -> str:
        """Name of the validation score."""
        return "-MAE" if self.settings.regression else "AUC"

    def weight_decay(self, step: int, num_steps: int) -> None:
        """Return None: the weight decay is constant."""

    def make_network(self, *, load_pretrained: bool) -> Network:
        """Return the network for these settings."""
        return make_network(self.settings, self.train.split, load_pretrained=load_pretrained)

    def make_trainee(self, network: nn.Module, statistics: Mapping[str, list[float]]) -> "SupervisedTrainee":
        """Return the network with its loss."""
        return SupervisedTrainee(self, cast(Network, network), make_objective(self.settings, self.train, statistics))

    @property
    def few(self) -> str:
        """Note that few images are available for model selection, if that is so; else empty."""
        words = "" if self.settings.regression else few_images(class_counts(self.val))
        return f" (few: {words}, so later weights are kept unless they are clearly worse)" if words else ""


@dataclass(frozen=True)
class SupervisedTrainee:
    """A classification or regression network with its loss."""

    learner: Supervised
    network: Network
    objective: Objective
    columns = COLUMNS

    def description(self, where: str) -> str:
        """Describe the model and the number of images."""
        train, settings = self.learner.train, self.learner.settings
        parameters, size = sum(p.numel() for p in self.network.parameters()) / 1e6, self.network.input_size
        fitted = "" if size.way == "native" else f", images {size.verb} to {size.size} pixels"
        return (
            f"training {settings.model_name} ({parameters:.2f} M parameters{fitted}) on {train.split.name} ({where}): "
            f"{len(train)} training, {len(self.learner.val)} validation images{self.learner.few}"
        )

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Return the loss of a batch."""
        return self.objective.step(model, batch)

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Do nothing."""

    def evaluate(
        self, network: nn.Module, accelerator: Accelerator, *, step: int, beat: Callable[[], None]
    ) -> Evaluation:
        """Return metrics on the validation samples, each counted once."""
        share_buffers(accelerator, network)
        found = predict_part(
            network,
            self.objective.forward,
            self.learner.val,
            accelerator,
            batch_size=EVALUATION_BATCH,
            after_batch=beat,
        )
        weights = np.ones((1, len(found.labels)))
        if self.learner.settings.regression:
            center, _ = self.objective.target_scale
            rows = regression_metrics(found.outputs[:, 0], found.target, center, weights)
            metrics = {name: float(row[0]) for name, row in rows.items()}
            return Evaluation(metrics, -metrics["mae"])
        rows = classification_metrics(softmax(found.outputs), found.labels, weights)
        loss = log_loss(found.outputs, found.labels)
        names = {f"auc_{k}": name for k, name in enumerate(auc_names(self.learner.val.split.schema.classes))}
        metrics = {names.get(name, name): float(row[0]) for name, row in rows.items()} | {"log_loss": loss.mean}
        return Evaluation(metrics, metrics["auc_macro"], loss)


def refuse_missing_classes(train: Part, val: Part) -> None:
    """Raise ValueError, naming the classes, if a class has no training image or no validation image."""
    classes = train.split.schema.classes
    counts = [np.bincount(part.labels, minlength=len(classes)) for part in (train, val)]
    lacking = [
        f"{name!r} has {learnt} and {held}"
        for name, learnt, held in zip(classes, *counts, strict=True)
        if not (learnt and held)
    ]
    require(
        not lacking,
        f"{train.split.name}: each class needs at least one training image and one validation image, but "
        f"{'; '.join(lacking)}. Add images of that class, or pack the data set again without it.",
    )


def class_counts(part: Part) -> dict[str, int]:
    """Return the number of images of each class."""
    classes = part.split.schema.classes
    return dict(zip(classes, np.bincount(part.labels, minlength=len(classes)).tolist(), strict=True))
