"""Training objective: normalisation, augmentation, network and loss."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deeplense.data.dataset import Batch
from deeplense.data.scaling import Scaling, Statistics
from deeplense.data.transforms import augment
from jobs.data.part import Part
from jobs.settings import require
from jobs.train.settings import Settings


@dataclass(frozen=True)
class Objective:
    """Training objective: normalisation, augmentation, network and loss. `target_scale` is the centre and scale of the
    target."""

    settings: "Settings"
    scaling: Scaling
    target_scale: tuple[float, float]

    def inputs(self, batch: Batch) -> Tensor:
        """Return the images as network inputs, without augmentation."""
        return self.scaling.scaled(batch.images)

    def forward(self, network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Return the network outputs for a batch: logits (B, K), or the continuous target (B, 1) in its own unit."""
        outputs = network(self.inputs(batch))
        center, scale = self.target_scale
        return outputs * scale + center if self.settings.regression else outputs

    def step(self, network: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]], batch: Batch) -> dict[str, Tensor]:
        """Return the metrics of a batch in training."""
        settings = self.settings
        images = augment(
            self.inputs(batch),
            batch.uniforms,
            flips=bool(settings.flips),
            random_zoom=settings.random_zoom,
            random_rotation=settings.random_rotation,
        )
        given = network(images)
        outputs, penalty = given if isinstance(given, tuple) else (given, None)
        metrics = self.loss_of_numbers(outputs, batch) if settings.regression else self.loss_of_classes(outputs, batch)
        if penalty is not None:
            added = penalty.float().mean()
            metrics |= {"loss": metrics["loss"] + added, "penalty": added}
        return metrics

    def loss_of_numbers(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the metrics of a regression."""
        center, scale = self.target_scale
        error = outputs.float()[:, 0] - (batch.target - center) / scale
        loss = functional.smooth_l1_loss(error, torch.zeros_like(error))
        return {"loss": loss, "mae": error.abs().mean() * scale}

    def loss_of_classes(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the metrics of a classification."""
        loss = functional.cross_entropy(outputs.float(), batch.labels, label_smoothing=self.settings.label_smoothing)
        return {"loss": loss, "accuracy": (outputs.argmax(dim=1) == batch.labels).float().mean()}


def make_objective(settings: "Settings", part: Part, statistics: Statistics) -> Objective:
    """Return the objective of a run. Continuous targets are scaled by their median and standard deviation over the
    training samples."""
    scaling = Scaling(statistics, settings.stretch)
    if part.target is None:
        return Objective(settings, scaling, (0.0, 1.0))
    values = part.target[part.indices]
    center, scale = float(np.median(values)), float(np.std(values)) or 1.0
    require(
        bool(np.isfinite([center, scale, 1 / scale]).all()),
        f"{part.split.name}: the values of {settings.target} have median {center} and standard deviation {scale}, too "
        "large or too small to compute with; give them in another unit.",
    )
    return Objective(settings, scaling, (center, scale))
