"""What the settings of a run mean: its data, its network, its loss. Training and evaluation share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from deeplense.data.dataset import Batch, Split, evaluation_batches, splits_of
from deeplense.data.order import fold_of, rank_slice, split_off
from deeplense.data.transforms import augment, normalise
from deeplense.evaluation.predict import Predictions, join, predict
from deeplense.models.registry import Network, build
from deeplense.training.loop import gather_lists
from jobs.config import require

if TYPE_CHECKING:
    from jobs.train import Settings

Statistics = Mapping[str, list[float]]


@dataclass(frozen=True)
class Part:
    """Some samples of a split: what is learnt from, what chooses, or what is held out."""

    split: Split
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """Numbers of the classes, (N,)."""
        return self.split.labels[self.indices]


def find_dataset(dataset: str, data_root: Path) -> Path:
    """The folder of a data set: a path, or a name below the data root. Raises ValueError where it is neither."""
    for folder in (Path(dataset), data_root / dataset):
        if splits_of(folder):
            return folder
    raise ValueError(
        f"there is no data set {dataset!r}, neither as a folder nor below data_root={data_root}. Make one by "
        "`deeplense simulate` or `deeplense pack`; if there is one, `deeplense verify` says what it lacks."
    )


def open_split(dataset: Path, name: str) -> Split:
    """One split of a data set. Raises ValueError, naming those there are, where it is not there."""
    require((dataset / name).is_dir(), f"{dataset} has no split {name!r}; it has {', '.join(splits_of(dataset))}.")
    return Split(dataset / name)


def usable(split: Split, settings: "Settings") -> np.ndarray:
    """Indices of the samples that the target is known for."""
    if settings.regression:
        require(
            settings.target in split.targets,
            f"{split.folder} has no target {settings.target!r}; it has {sorted(split.targets)}.",
        )
        return np.flatnonzero(np.isfinite(split.targets[settings.target]))
    require(
        len(split.schema.classes) > 1,
        f"{split.folder} has the classes {list(split.schema.classes)}; two or more are needed.",
    )
    return np.flatnonzero(split.labels >= 0)


def learning_parts(settings: "Settings") -> tuple[Part, Part]:
    """What is learnt from, and what chooses the best weights: the split val, or a part of each class of train."""
    dataset = find_dataset(settings.dataset, settings.data_root)
    train = open_split(dataset, "train")
    indices = usable(train, settings)
    if settings.num_folds:
        indices = indices[folds(train, indices, settings) != settings.fold]
    if "val" in splits_of(dataset) and not settings.num_folds:
        val = open_split(dataset, "val")
        return Part(train, indices), Part(val, usable(val, settings))
    kept, held = split_off(train.labels[indices], settings.val_fraction, seed=settings.seed)
    require(
        len(held) > 0,
        f"{dataset} has no split val, and val_fraction={settings.val_fraction} of {len(indices)} samples is none.",
    )
    return Part(train, indices[kept]), Part(train, indices[held])


def held_out_part(settings: "Settings", dataset: Path, split_name: str) -> Part:
    """What no training saw: the fold that was left out, or a split of its own."""
    if settings.num_folds:
        train = open_split(dataset, "train")
        indices = usable(train, settings)
        return Part(train, indices[folds(train, indices, settings) == settings.fold])
    split = open_split(dataset, split_name)
    return Part(split, usable(split, settings))


def without_shared(held: Part, learnt: Sequence[Part]) -> tuple[Part, int]:
    """The held-out samples less those whose very pixels were learnt from or chose the weights, and how many those are.

    Raises ValueError where none is left.
    """
    seen = np.concatenate([part.split.hashes(part.indices) for part in learnt])
    shared = np.isin(held.split.hashes(held.indices), seen)
    require(
        not shared.all(),
        f"all {len(held)} images of {held.split.folder} were learnt from or chose the weights; evaluate on others.",
    )
    return Part(held.split, held.indices[~shared]), int(shared.sum())


def folds(split: Split, indices: np.ndarray, settings: "Settings") -> np.ndarray:
    """The fold of each of these samples; it does not depend on the seed of the training, so that seeds can be
    compared."""
    return fold_of(split.labels[indices], settings.num_folds, seed=0)


def make_network(settings: "Settings", split: Split, *, load_pretrained: bool) -> Network:
    """The network of a run; `load_pretrained` is off where other weights follow anyway."""
    channels, height, width = split.schema.shape
    require(
        height == width,
        f"{split.folder} has images of {height} x {width} pixels; they must be square. Pack them with --crop.",
    )
    return build(
        settings.model_name,
        source=settings.model_source,
        image_size=height,
        in_chans=channels,
        num_outputs=1 if settings.regression else len(split.schema.classes),
        dropout=settings.dropout,
        extra_layers=bool(settings.complex),
        tune=bool(settings.tune),
        pretrained=bool(settings.pretrained) and load_pretrained,
        pretrained_file=settings.pretrained_file,
    )


@dataclass(frozen=True)
class Objective:
    """How a batch becomes a loss: normalisation, augmentation, network, loss."""

    settings: "Settings"
    statistics: Statistics
    target_scale: tuple[float, float]

    def inputs(self, batch: Batch) -> Tensor:
        """Images as the network gets them, without augmentation."""
        mean, std = (torch.tensor(self.statistics[name], device=batch.images.device) for name in ("mean", "std"))
        return normalise(batch.images, mean, std, stretch=self.settings.stretch)

    def forward(self, network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """What the network says of a batch: logits (B, K), or the number (B, 1) in its own unit."""
        outputs = network(self.inputs(batch))
        center, scale = self.target_scale
        return outputs * scale + center if self.settings.regression else outputs

    def step(self, network: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """The metrics of a batch in training."""
        settings = self.settings
        images = augment(
            self.inputs(batch),
            batch.uniforms,
            flips=bool(settings.flips),
            random_zoom=settings.random_zoom,
            random_rotation=settings.random_rotation,
        )
        outputs = network(images)
        if settings.regression:
            center, scale = self.target_scale
            error = outputs.float()[:, 0] - (batch.target - center) / scale
            return {
                "loss": functional.smooth_l1_loss(error, torch.zeros_like(error)),
                "mae": error.abs().mean() * scale,
            }
        loss = functional.cross_entropy(outputs.float(), batch.labels, label_smoothing=settings.label_smoothing)
        return {"loss": loss, "accuracy": (outputs.argmax(dim=1) == batch.labels).float().mean()}


def make_objective(settings: "Settings", part: Part, statistics: Statistics) -> Objective:
    """The objective of a run; numbers are learnt in units of their spread among the samples learnt from."""
    if not settings.regression:
        return Objective(settings, statistics, (0.0, 1.0))
    values = part.split.targets[settings.target][part.indices]
    return Objective(settings, statistics, (float(np.median(values)), float(np.std(values)) or 1.0))


def predict_part(
    network: nn.Module,
    objective: Objective,
    part: Part,
    accelerator: Accelerator,
    settings: "Settings",
    *,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Outputs on all samples of a part, each computed on one rank only, the same on all ranks."""
    mine = part.indices[rank_slice(len(part), accelerator.process_index, accelerator.num_processes)]
    target = settings.target if settings.regression else None
    training = network.training
    network.eval()

    def forward(batch: Batch) -> Tensor:
        after_batch()
        return objective.forward(network, batch)

    with accelerator.autocast():
        parts = predict(
            forward,
            evaluation_batches(part.split, mine, batch_size=batch_size, target=target),
            device=accelerator.device,
        )
    network.train(training)
    return join(gather_lists(accelerator, parts), part.indices)
