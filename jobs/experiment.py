"""What the settings of a run mean: its data, its network, its loss. Training and evaluation share it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from deeplense.data.dataset import Batch, Split, evaluation_batches, splits_of
from deeplense.data.layouts import read_names
from deeplense.data.order import first_of_each, fold_of, rank_slice, some_of_each, split_off
from deeplense.data.sampling import Order, Shuffle
from deeplense.data.scaling import Scaling, Statistics
from deeplense.data.transforms import augment
from deeplense.evaluation.predict import Predictions, join, predict
from deeplense.models.registry import Network, build
from deeplense.training.finite import NotFinite
from deeplense.training.loop import gather_lists
from jobs.config import require
from jobs.pretrained import load_encoder, read_pretrained

if TYPE_CHECKING:
    from jobs.learning import LearningSettings
    from jobs.train import Settings


HELD_OUT = "test"
"""The split that is held out, unless folds of the split train are."""


@dataclass(frozen=True)
class Part:
    """Some samples of a split: what is learnt from, what chooses, or what is held out. `target` is the number to be
    learnt, of all samples of the split (N,); None for the class."""

    split: Split
    indices: np.ndarray
    target: np.ndarray | None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """Numbers of the classes, (n,)."""
        return self.split.labels[self.indices]

    @property
    def groups(self) -> np.ndarray | None:
        """The numbers of groups that no split may cut, (n,); None where the data have none."""
        groups = self.split.groups()
        return None if groups is None else groups[self.indices]

    def split_off(self, fraction: float, *, seed: int) -> tuple["Part", "Part"]:
        """In two, the second with this fraction of each class, no group in both."""
        rest, part = split_off(self.labels, fraction, seed=seed, groups=self.groups)
        return self.only(rest), self.only(part)

    def only(self, chosen: np.ndarray) -> "Part":
        """The part of it at these places, by number or by mask."""
        return replace(self, indices=self.indices[chosen])


def find_datasets(names: str, data_root: Path) -> list[Path]:
    """The folders of one or more data sets, with commas between: paths, or names below the data root. Raises ValueError
    where one is neither."""
    return [find_dataset(name.strip(), data_root) for name in names.split(",")]


def find_dataset(dataset: str, data_root: Path) -> Path:
    """The folder of a data set: a path, or a name below the data root. Raises ValueError where it is neither."""
    for folder in (Path(dataset), data_root / dataset):
        if splits_of(folder):
            return folder
    raise ValueError(
        f"there is no data set {dataset!r}, neither as a folder nor below data_root={data_root}. Make one by "
        "`deeplense simulate` or `deeplense pack`; if there is one, `deeplense verify` says what it lacks."
    )


def open_part(datasets: Sequence[Path], name: str, settings: "Settings") -> Part:
    """The samples of one split of all data sets that the target is known for. Raises ValueError where there is no such
    split, naming those there are, or no such target."""
    for dataset in datasets:
        require((dataset / name).is_dir(), f"{dataset} has no split {name!r}; it has {', '.join(splits_of(dataset))}.")
    return labelled_part(Split(*(dataset / name for dataset in datasets)), settings)


def labelled_part(split: Split, settings: "Settings") -> Part:
    """The samples of a split that the target is known for. Raises ValueError where there is no such target."""
    if settings.regression:
        require(
            settings.target in split.schema.targets,
            f"{split.name} has no target {settings.target!r}; it has {sorted(split.schema.targets)}.",
        )
        target = split.column(f"target/{settings.target}")
        return Part(split, np.flatnonzero(np.isfinite(target)), target)
    require(
        len(split.schema.classes) > 0,
        f"{split.name} has no labels, and a classifier needs some. Pack it with labels (`deeplense pack --label_key`), "
        "or train on it without labels by `deeplense pretrain`.",
    )
    require(
        len(split.schema.classes) > 1,
        f"{split.name} has the classes {list(split.schema.classes)}; two or more are needed.",
    )
    return Part(split, np.flatnonzero(split.labels >= 0), None)


def known_part(settings: "Settings") -> Part:
    """All samples whose labels are known: those of the split train, but for a fold; some of them; or those that a file
    names."""
    datasets = find_datasets(settings.dataset, settings.data_root)
    if settings.label_file:
        return named_part(datasets, settings.label_file, settings)
    train = open_part(datasets, "train", settings)
    if settings.num_folds:
        return train.only(folds(train, settings) != settings.fold)
    if settings.num_labels is None:
        return train
    require(
        settings.num_labels <= len(train),
        f"num_labels={settings.num_labels} is more than the {len(train)} labels of {train.split.name}.",
    )
    return train.only(first_of_each(train.labels, settings.num_labels, seed=settings.seed, groups=train.groups))


def named_part(datasets: Sequence[Path], file: Path, settings: "Settings") -> Part:
    """The samples that a file names. Raises ValueError where some are not there, or are of other splits than train and
    that is not allowed."""
    names, in_all = read_names(file), set.intersection(*(set(splits_of(dataset)) for dataset in datasets))
    found = {split: named(open_part(datasets, split, settings), names) for split in sorted(in_all | {"train"})}
    missing = set(names).difference(*found.values())
    require(
        not missing,
        f"{file} names {len(missing)} samples of {len(names)} that are not among those with a label in "
        f"{settings.dataset}: {few(missing)}. Pack them too, or give another --label_file.",
    )
    others = {split: some for split, some in found.items() if some and split != "train"}
    told = "; ".join(f"{len(some)} of the split {split}, {few(some)}" for split, some in others.items())
    require(
        bool(settings.allow_overlap) or not others,
        f"{file} names samples that are not to be learnt from: {told}. Give a file of samples of train; or "
        "--allow_overlap 1, and evaluations leave out those that were learnt from.",
    )
    folders = [dataset / split for split in ("train", *others) for dataset in datasets]
    part = labelled_part(Split(*folders), settings)
    part = part.only(np.isin(ids_of(part), names))
    require(len(part) == len(names), f"several samples of {settings.dataset} have names that {file} names; give one.")
    return part


def ids_of(part: Part) -> np.ndarray:
    """The names of the samples of a part, (n,)."""
    return np.array(part.split.ids)[part.indices]


def named(part: Part, names: Sequence[str]) -> list[str]:
    """Those of these names that samples of a part have."""
    return sorted(set(ids_of(part).tolist()) & set(names))


def few(names: Iterable[str]) -> str:
    """The first three names."""
    first = sorted(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")


def learning_parts(settings: "Settings") -> tuple[Part, Part]:
    """What is learnt from, and what chooses the best weights: the split val, or a part of each class of train."""
    datasets = find_datasets(settings.dataset, settings.data_root)
    train = known_part(settings)
    have_val = {"val" in splits_of(dataset) for dataset in datasets}
    require(len(have_val) == 1, f"some of the data sets {settings.dataset} have a split val, and some have none.")
    if have_val == {True} and not (settings.num_folds or settings.chosen_labels):
        val = open_part(datasets, "val", settings)
    else:
        train, val = train.split_off(settings.val_fraction, seed=settings.seed)
        require(
            len(val) > 0,
            f"{train.split.name} has no split val beside it, and val_fraction={settings.val_fraction} of {len(train)} "
            "samples is none.",
        )
    if settings.label_fraction < 1:
        train = train.only(some_of_each(train.labels, settings.label_fraction, seed=settings.seed, groups=train.groups))
        require(len(train) > 0, f"label_fraction={settings.label_fraction} leaves no samples to learn from.")
    return train, val


def image_parts(settings: "LearningSettings", *, labelled: bool = False) -> tuple[Part, Part]:
    """What is learnt from, and what is only looked at: the split val, or a part of train, which no label decides. The
    split test is left alone; the classes of several data sets may differ unless `labelled`."""
    folders = find_datasets(settings.dataset, settings.data_root)
    for folder in folders:
        require("train" in splits_of(folder), f"{folder} has no split 'train'; it has {', '.join(splits_of(folder))}.")
    train = whole(Split(*(folder / "train" for folder in folders), labelled=labelled))
    if all("val" in splits_of(folder) for folder in folders):
        return train, whole(Split(*(folder / "val" for folder in folders), labelled=labelled))
    kept, held = split_off(np.zeros(len(train)), settings.val_fraction, seed=settings.seed, groups=train.groups)
    require(len(held) > 1, f"val_fraction={settings.val_fraction} of {len(train)} images leaves none to look at.")
    return train.only(kept), train.only(held)


def whole(split: Split) -> Part:
    """All samples of a split, with labels or without."""
    return Part(split, np.arange(len(split)), None)


def held_out_part(settings: "Settings", datasets: Sequence[Path], split_name: str) -> Part:
    """What no training saw: the fold that was left out, or a split of its own."""
    if holds_out_fold(settings, datasets, split_name):
        train = open_part(datasets, "train", settings)
        return train.only(folds(train, settings) == settings.fold)
    return open_part(datasets, split_name, settings)


def holds_out_fold(settings: "Settings", datasets: Sequence[Path], split_name: str) -> bool:
    """Whether it is a fold of its own data set that a run held out; a run without folds, or on another data set or
    split, holds out that split."""
    own = find_datasets(settings.dataset, settings.data_root)
    same = [folder.resolve() for folder in datasets] == [folder.resolve() for folder in own]
    return bool(settings.num_folds) and same and split_name == HELD_OUT


def refuse_unlabelled(part: Part, settings: "Settings") -> None:
    """Raise ValueError where nothing is known of any image of a part."""
    what = f"the target {settings.target}" if settings.regression else "the class"
    require(
        len(part) > 0,
        f"{part.split.name} has no labels: {what} is known of none of its {len(part.split)} images, and predictions "
        "can be compared with nothing; give a data set with labels.",
    )


def evenly(number: int, most: int) -> np.ndarray:
    """Places of some of so many things, evenly spaced."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))


def make_order(settings: "LearningSettings", part: Part) -> Order:
    """In which order the samples are learnt from: all alike, or classes and data sets by weight."""
    surveys, classes = part.split.sources[part.indices], part.labels
    mix = [float(weight) for weight in settings.mix.split(",")] if settings.mix else []
    require(
        len(mix) in (0, len(part.split.folders)),
        f"mix={settings.mix} gives {len(mix)} weights for {len(part.split.folders)} data sets; give one for each.",
    )
    by_survey = bool(mix) or settings.balance == "survey"
    by_class = settings.balance == "class"
    members = np.stack([surveys if by_survey else 0 * surveys, classes if by_class else 0 * classes])
    kinds = np.unique(members, axis=1).T
    weights = [
        (mix[survey] if mix else 1.0) / (kinds[:, 0] == survey).sum() if by_survey else 1.0 for survey, _ in kinds
    ]
    return Order(
        [part.indices[(members == kind[:, None]).all(axis=0)] for kind in kinds],
        weights=weights if len(kinds) > 1 else (),
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle=Shuffle(settings.shuffle_block, settings.shuffle_window),
    )


def folds(part: Part, settings: "Settings") -> np.ndarray:
    """The fold of each of these samples; it does not depend on the seed of the training, so that seeds can be
    compared."""
    return fold_of(part.labels, settings.num_folds, seed=0, groups=part.groups)


def make_network(settings: "Settings", split: Split, *, load_pretrained: bool) -> Network:
    """The network of a run; `load_pretrained` is off where other weights follow anyway."""
    channels, height, width = split.schema.shape
    require(
        height == width,
        f"{split.name} has images of {height} x {width} pixels; they must be square. Pack them with --crop.",
    )
    network = build(
        settings.model_name,
        image_size=height,
        in_chans=channels,
        num_outputs=1 if settings.regression else len(split.schema.classes),
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        extra_layers=bool(settings.complex),
        tune=bool(settings.tune),
        pretrained=bool(settings.pretrained),
        pretrained_file=settings.pretrained_file,
        load_pretrained=load_pretrained,
    )
    if settings.backbone and load_pretrained:
        load_encoder(network, read_pretrained(settings.backbone))
    return network


@dataclass(frozen=True)
class Objective:
    """How a batch becomes a loss: normalisation, augmentation, network, loss."""

    settings: "Settings"
    scaling: Scaling
    target_scale: tuple[float, float]

    def inputs(self, batch: Batch) -> Tensor:
        """Images as the network gets them, without augmentation."""
        return self.scaling.scaled(batch.images)

    def forward(self, network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """What the network says of a batch: logits (B, K), or the number (B, 1) in its own unit."""
        outputs = network(self.inputs(batch))
        center, scale = self.target_scale
        return outputs * scale + center if self.settings.regression else outputs

    def step(self, network: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]], batch: Batch) -> dict[str, Tensor]:
        """The metrics of a batch in training."""
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
        """The metrics of a regression."""
        center, scale = self.target_scale
        error = outputs.float()[:, 0] - (batch.target - center) / scale
        loss = functional.smooth_l1_loss(error, torch.zeros_like(error))
        return {"loss": loss, "mae": error.abs().mean() * scale}

    def loss_of_classes(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The metrics of a classification."""
        loss = functional.cross_entropy(outputs.float(), batch.labels, label_smoothing=self.settings.label_smoothing)
        return {"loss": loss, "accuracy": (outputs.argmax(dim=1) == batch.labels).float().mean()}


def make_objective(settings: "Settings", part: Part, statistics: Statistics) -> Objective:
    """The objective of a run; numbers are learnt in units of their spread among the samples learnt from."""
    scaling = Scaling(statistics, settings.stretch)
    if part.target is None:
        return Objective(settings, scaling, (0.0, 1.0))
    values = part.target[part.indices]
    center, scale = float(np.median(values)), float(np.std(values)) or 1.0
    require(
        bool(np.isfinite([center, scale, 1 / scale]).all()),
        f"{part.split.name}: the values of {settings.target} have the median {center} and the spread {scale}, too "
        "large or too small to compute with; give them in another unit.",
    )
    return Objective(settings, scaling, (center, scale))


def predict_part(
    network: nn.Module,
    forward: Callable[[nn.Module, Batch], Tensor],
    part: Part,
    accelerator: Accelerator,
    *,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Outputs (b, K) that `forward` gets for each batch from a network, on all samples of a part, each computed on one
    rank only, the same on all ranks. Raises NotFinite where they are not finite."""
    mine = part.indices[rank_slice(len(part), accelerator.process_index, accelerator.num_processes)]
    training = network.training
    network.eval()

    def forward_and_tell(batch: Batch) -> Tensor:
        after_batch()
        return forward(network, batch)

    with accelerator.autocast():
        parts = predict(
            forward_and_tell,
            evaluation_batches(part.split, mine, batch_size=batch_size, target=part.target),
            device=accelerator.device,
        )
    network.train(training)
    found = join(gather_lists(accelerator, parts), part.indices)
    bad = int((~np.isfinite(found.outputs)).reshape(len(found.outputs), -1).any(axis=1).sum())
    if bad:
        raise NotFinite(
            f"the outputs of the network are not finite for {bad} of {len(part)} images of {part.split.name}; its "
            "weights are of a training that failed. Train again with a lower --lr, a --clip_grad, or --precision fp32."
        )
    return found
