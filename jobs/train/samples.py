"""Selection of training, validation and held-out samples for trainings with labels."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deeplense.data.dataset import Split
from deeplense.data.layouts import read_names
from deeplense.data.subsets import first_of_each, fold_of, some_of_each
from jobs.data.folders import find_datasets, splits_of
from jobs.data.part import HELD_OUT, Part
from jobs.settings import require
from jobs.train.settings import Settings


def open_part(datasets: Sequence[Path], name: str, settings: "Settings") -> Part:
    """Return the labelled samples of one split of all data sets. Raises ValueError if there is no such split, naming
    the existing ones, or no such target."""
    for dataset in datasets:
        require((dataset / name).is_dir(), f"{dataset} has no split {name!r}; it has {', '.join(splits_of(dataset))}.")
    return labelled_part(Split(*(dataset / name for dataset in datasets)), settings)


def labelled_part(split: Split, settings: "Settings") -> Part:
    """Return the samples of a split whose target is known. Raises ValueError if there is no such target."""
    if settings.regression:
        known = split.schema.quantities
        told = f"{split.name} has no target {settings.target!r}; its targets: {', '.join(known) or 'none'}."
        require(settings.target in known, told)
        target = split.column(f"target/{settings.target}")
        return Part(split, np.flatnonzero(np.isfinite(target)), target)
    require(
        len(split.schema.classes) > 0,
        f"{split.name} has no labels, but a classifier needs labels. Pack it with labels (`deeplense pack "
        "--label_key`), or train on it without labels by `deeplense pretrain`.",
    )
    require(
        len(split.schema.classes) > 1,
        f"{split.name} has the classes {list(split.schema.classes)}; two or more are needed.",
    )
    return Part(split, np.flatnonzero(split.labels >= 0), None)


def known_part(settings: "Settings") -> Part:
    """Return all labelled samples: those of the split train without the held-out fold, a subset of them, or those
    listed in a file."""
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
        f"num_labels={settings.num_labels} exceeds the {len(train)} labels of {train.split.name}; give fewer.",
    )
    return train.only(first_of_each(train.labels, settings.num_labels, seed=settings.seed, groups=train.groups))


def named_part(datasets: Sequence[Path], file: Path, settings: "Settings") -> Part:
    """Return the samples listed in a file. Raises ValueError if some do not exist, or belong to splits other than train
    and that is not allowed."""
    names, in_all = read_names(file), set.intersection(*(set(splits_of(dataset)) for dataset in datasets))
    found = {split: named(open_part(datasets, split, settings), names) for split in sorted(in_all | {"train"})}
    missing = set(names).difference(*found.values())
    require(
        not missing,
        f"{file}: {len(missing)} of the {len(names)} listed samples are not among the labelled samples of "
        f"{settings.dataset}: {few(missing)}. Pack them too, or give another --label_file.",
    )
    others = {split: some for split, some in found.items() if some and split != "train"}
    told = "; ".join(f"{len(some)} of the split {split}, {few(some)}" for split, some in others.items())
    require(
        bool(settings.allow_overlap) or not others,
        f"{file} lists samples outside the training split: {told}. Give a file of samples of train, or use "
        "--allow_overlap 1, which excludes these samples from evaluations.",
    )
    folders = [dataset / split for split in ("train", *others) for dataset in datasets]
    part = labelled_part(Split(*folders), settings)
    part = part.only(np.isin(ids_of(part), names))
    require(
        len(part) == len(names),
        f"several samples of {settings.dataset} have the same name as in {file}; use one data set.",
    )
    return part


def ids_of(part: Part) -> np.ndarray:
    """Return the names of the samples of a part, (n,)."""
    return np.array(part.split.ids)[part.indices]


def named(part: Part, names: Sequence[str]) -> list[str]:
    """Return which of these names belong to samples of a part."""
    return sorted(set(ids_of(part).tolist()) & set(names))


def few(names: Iterable[str]) -> str:
    """Return the first three names."""
    first = sorted(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")


def learning_parts(settings: "Settings") -> tuple[Part, Part]:
    """Return the training and the validation samples. Validation samples are the split val, or a fraction of each class
    of train."""
    datasets = find_datasets(settings.dataset, settings.data_root)
    train = known_part(settings)
    have_val = {"val" in splits_of(dataset) for dataset in datasets}
    require(
        len(have_val) == 1,
        f"some of the data sets {settings.dataset} have a split val, others do not; use the same splits in all.",
    )
    if have_val == {True} and not (settings.num_folds or settings.chosen_labels):
        val = open_part(datasets, "val", settings)
    else:
        train, val = train.split_off(settings.val_fraction, seed=settings.seed)
        require(
            len(val) > 0,
            f"val_fraction={settings.val_fraction} of the {len(train)} samples of {train.split.name} leaves no "
            "validation sample; use a larger val_fraction.",
        )
    if settings.label_fraction < 1:
        train = train.only(some_of_each(train.labels, settings.label_fraction, seed=settings.seed, groups=train.groups))
        require(
            len(train) > 0, f"label_fraction={settings.label_fraction} leaves no training samples; use a larger one."
        )
    return train, val


def held_out_part(settings: "Settings", datasets: Sequence[Path], split_name: str) -> Part:
    """Return the samples that no training has seen: the held-out fold, or a separate split."""
    if holds_out_fold(settings, datasets, split_name):
        train = open_part(datasets, "train", settings)
        return train.only(folds(train, settings) == settings.fold)
    return open_part(datasets, split_name, settings)


def holds_out_fold(settings: "Settings", datasets: Sequence[Path], split_name: str) -> bool:
    """Whether the held-out samples are a fold of the run's own data set. For a run without folds, another data set or
    another split, they are that split."""
    own = find_datasets(settings.dataset, settings.data_root)
    same = [folder.resolve() for folder in datasets] == [folder.resolve() for folder in own]
    return bool(settings.num_folds) and same and split_name == HELD_OUT


def refuse_unlabelled(part: Part, settings: "Settings") -> None:
    """Raise ValueError if no image of a part has a label."""
    what = f"the target {settings.target}" if settings.regression else "the class"
    require(
        len(part) > 0,
        f"{part.split.name} has no labels: {what} is unknown for all of its {len(part.split)} images, so predictions "
        "cannot be evaluated; give a data set with labels.",
    )


def folds(part: Part, settings: "Settings") -> np.ndarray:
    """Return the fold of each sample. It does not depend on the seed of the training, so that seeds can be compared."""
    return fold_of(part.labels, settings.num_folds, seed=0, groups=part.groups)
