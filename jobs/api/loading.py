"""Trained runs and their reports, in Python."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplense.files import read_json
from deeplense.models.registry import Network
from jobs.runs.checkpoints import Which
from jobs.runs.curves import read_curves
from jobs.runs.folder import find_run
from jobs.runs.stored import REPORT
from jobs.settings import plain, require
from jobs.train.stored import TrainedRun, open_trained

RUNS = Path("runs")


class LoadedRun:
    """A trained network with its preprocessing.

    Attributes:
        path: the run folder.
        settings: all settings of the training, by name.
        classes: names of the classes; empty for a regression.
        bands: names of the bands that images must have, in this order.
        image_shape: shape (C, H, W) of an image.
        target: name of the regression target; None for a classification.
        weights: which weights these are, and from which step.
        network: the network (a `torch.nn.Module`, in evaluation mode). It takes images after `preprocess`.
        device: where it computes.
    """

    def __init__(self, trained: TrainedRun, device: torch.device) -> None:
        schema, settings = trained.train.split.schema, trained.settings
        self.path = trained.run
        self.settings: Mapping[str, Any] = plain(settings)
        self.classes: tuple[str, ...] = () if settings.regression else tuple(schema.classes)
        self.bands: tuple[str, ...] = tuple(schema.bands)
        self.image_shape = schema.shape
        self.target = settings.target if settings.regression else None
        self.weights = trained.weights
        self.device = device
        self.network: Network = trained.network().to(device).eval()
        self._objective = trained.objective()

    def __repr__(self) -> str:
        what = f"target {self.target}" if self.target else f"classes {', '.join(self.classes)}"
        return f"<{self.path}: {self.settings['model_name']}, {what}, images {self.image_shape}; {self.weights}>"

    def preprocess(self, images: np.ndarray | Tensor) -> Tensor:
        """Return network inputs: images stretched and normalised as in training.

        Args:
            images: (N, C, H, W) in the unit of the training images.

        Raises:
            ValueError: the images have another shape, or values that are not finite.
        """
        given = torch.as_tensor(np.asarray(images) if not isinstance(images, Tensor) else images)
        shape = tuple(given.shape[1:])
        require(
            given.ndim == 4 and shape == self.image_shape,
            f"images have the shape {tuple(given.shape)}, but {self.path} was trained on images of shape "
            f"{self.image_shape}; give an array (N, {', '.join(map(str, self.image_shape))}), bands {self.bands}.",
        )
        given = given.to(self.device, torch.float32)
        require(bool(given.isfinite().all()), "some pixels are NaN or infinite; replace them first.")
        return self._objective.scaling.scaled(given)

    def predict(self, images: np.ndarray | Tensor, *, batch_size: int = 256) -> np.ndarray:
        """Return the outputs of the network: logits (N, K) of the classes, or the target (N,) in its own unit.

        Args:
            images: (N, C, H, W) in the unit of the training images.
            batch_size: number of images that are computed at once.

        Raises:
            ValueError: the images have another shape, or values that are not finite.
        """
        parts = [outputs.float().cpu().numpy() for outputs in self._outputs(images, batch_size)]
        found = np.concatenate(parts) if parts else np.zeros((0, max(len(self.classes), 1)), dtype=np.float32)
        if not self.target:
            return found
        center, scale = self._objective.target_scale
        return found[:, 0] * scale + center

    @torch.no_grad()
    def _outputs(self, images: np.ndarray | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield the outputs of the network for each batch."""
        require(batch_size > 0, f"batch_size={batch_size} is not positive.")
        for start in range(0, len(images), batch_size):
            yield self.network(self.preprocess(images[start : start + batch_size]))

    def predict_probabilities(self, images: np.ndarray | Tensor, *, batch_size: int = 256) -> np.ndarray:
        """Return the probability of each class, (N, K); the columns are in the order of `classes`.

        Args:
            images: (N, C, H, W) in the unit of the training images.
            batch_size: number of images that are computed at once.

        Raises:
            ValueError: the run is a regression, the images have another shape, or values that are not finite.
        """
        require(not self.target, f"{self.path} predicts {self.target}, not classes; use predict().")
        return torch.from_numpy(self.predict(images, batch_size=batch_size)).softmax(dim=1).numpy()

    def metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the logged curves, by name such as `train/loss`: steps (n,) and values (n,)."""
        return read_curves(self.path)

    def report(self) -> dict[str, Any]:
        """Return the report of the last evaluation. Raises ValueError if the run has not been evaluated."""
        return read_report(self.path)


def load_run(path: str | Path, *, weights: Which = "best", device: str = "cpu") -> LoadedRun:
    """Load a run of `deeplense train` or `deeplense finetune --mode full`. Its data set must exist where it was: the
    names of the classes and the scale of a regression target come from it.

    Args:
        path: run folder.
        weights: `best` (those that model selection kept) or `last`.
        device: `cpu`, `cuda` or `mps`.

    Raises:
        ValueError: the folder is not such a run, has no intact checkpoint yet, or its data set is missing or has
            changed.

    Example:
        >>> run = deeplense.load_run("runs/first")  # doctest: +SKIP
        >>> run.predict_probabilities(images).shape  # doctest: +SKIP
        (100, 3)
    """
    return LoadedRun(open_trained(find_run(str(path), RUNS), which=weights), torch.device(device))


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report of `deeplense evaluate`. Each metric has `value`, and its 95 % interval, `low` to `high`.

    Args:
        path: run folder, folder of a report, or its report.json.

    Raises:
        ValueError: there is no report; evaluate the run first.

    Example:
        >>> deeplense.read_report("runs/first")["metrics"]["accuracy"]["value"]  # doctest: +SKIP
        0.944
    """
    given = Path(path)
    for each in (given, given / "report.json", given / REPORT / "report.json"):
        if each.is_file():
            found = read_json(each)
            require(isinstance(found, dict), f"{each} is not a report.")
            return dict(found)
    raise ValueError(f"{given} has no report; write one with `deeplense evaluate --run {given}`.")
