"""What `deeplense train` learns: the class of an image, or a number."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.data.transforms import NUM_UNIFORMS
from deeplense.evaluation.metrics import classification_metrics, regression_metrics, softmax
from deeplense.evaluation.selection import few_images, log_loss
from deeplense.models.registry import Network
from deeplense.training.loop import share_buffers
from jobs.config import require
from jobs.experiment import (
    Part,
    learning_parts,
    make_network,
    make_objective,
    predict_part,
)
from jobs.learner import Evaluation
from jobs.train import Settings

EVALUATION_BATCH = 256


class Supervised:
    """The learner of a classification, or of a regression."""

    fixed_rate: tuple[str, ...] = ()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.train, self.val = learning_parts(settings)
        if not settings.regression:
            refuse_missing_classes(self.train, self.val)
        self.ema_decay, self.patience_epochs = settings.ema_decay, settings.patience_epochs
        self.layer_decay = settings.layer_decay
        self.score_name = "-MAE" if settings.regression else "AUC"

    @property
    def read(self) -> Sequence[Part]:
        """What is learnt from, and what chooses."""
        return [self.train, self.val]

    @property
    def num_uniforms(self) -> int:
        """Those of the augmentation."""
        return NUM_UNIFORMS

    def make_network(self, *, load_pretrained: bool) -> Network:
        """The network of these settings."""
        self.network = make_network(self.settings, self.train.split, load_pretrained=load_pretrained)
        return self.network

    def begin(self, statistics: Mapping[str, list[float]]) -> None:
        """Make the objective."""
        self.objective = make_objective(self.settings, self.train, statistics)

    def description(self, where: str) -> str:
        """Which model on how many images."""
        parameters, size = sum(p.numel() for p in self.network.parameters()) / 1e6, self.network.input_size
        fitted = "" if size.way == "native" else f", images {size.verb} to {size.size} pixels"
        return (
            f"training {self.settings.model_name} ({parameters:.2f} M parameters{fitted}) on {len(self.train)} images "
            f"of {self.train.split.name} ({where}), choosing by {len(self.val)}{self.few}"
        )

    @property
    def few(self) -> str:
        """In words that the choice of the weights rests on few images, if it does."""
        words = "" if self.settings.regression else few_images(self.val_counts)
        return f" (few: {words}, so the last weights are kept unless they are clearly worse)" if words else ""

    @property
    def val_counts(self) -> dict[str, int]:
        """Validation images of each class."""
        return class_counts(self.val)

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The loss of a batch."""
        return self.objective.step(model, batch)

    def weight_decay(self, step: int, num_steps: int) -> None:
        """It stays what it is."""

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Nothing follows."""

    def evaluate(self, network: nn.Module, accelerator: Accelerator, beat: Callable[[], None]) -> Evaluation:
        """Metrics on the validation samples, each counted once."""
        share_buffers(accelerator, network)
        found = predict_part(
            network,
            self.objective.forward,
            self.val,
            accelerator,
            batch_size=EVALUATION_BATCH,
            after_batch=beat,
        )
        weights = np.ones((1, len(found.labels)))
        if self.settings.regression:
            center, _ = self.objective.target_scale
            rows = regression_metrics(found.outputs[:, 0], found.target, center, weights)
            metrics = {name: float(row[0]) for name, row in rows.items()}
            return Evaluation(metrics, -metrics["mae"])
        rows = classification_metrics(softmax(found.outputs), found.labels, weights)
        loss = log_loss(found.outputs, found.labels)
        metrics = {name: float(row[0]) for name, row in rows.items()} | {"log_loss": loss.mean}
        return Evaluation(metrics, metrics["auc_macro"], loss)


def refuse_missing_classes(train: Part, val: Part) -> None:
    """Raise ValueError, naming the classes, where a class has no training image or no validation image."""
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
    """How many images of each class there are."""
    classes = part.split.schema.classes
    return dict(zip(classes, np.bincount(part.labels, minlength=len(classes)).tolist(), strict=True))
