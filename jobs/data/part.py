"""Subsets of a split, and the data sets and splits that settings name."""

from dataclasses import dataclass, replace

import numpy as np

from deeplense.data.dataset import Split
from deeplense.data.subsets import split_off
from jobs.data.folders import find_datasets, splits_of
from jobs.frame.settings import LearningSettings
from jobs.settings import require

HELD_OUT = "test"
"""The split that is held out, unless cross-validation folds of the split train are."""


@dataclass(frozen=True)
class Part:
    """Some samples of a split, used for training, validation or testing. `target` is the continuous target of all
    samples of the split (N,); None for classification."""

    split: Split
    indices: np.ndarray
    target: np.ndarray | None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """Class indices, (n,)."""
        return self.split.labels[self.indices]

    @property
    def groups(self) -> np.ndarray | None:
        """Numbers of the groups that must not be divided between subsets, (n,); None if the data have none."""
        groups = self.split.groups()
        return None if groups is None else groups[self.indices]

    def split_off(self, fraction: float, *, seed: int) -> tuple["Part", "Part"]:
        """Divide into two parts, the second with this fraction of each class. No group is in both."""
        rest, part = split_off(self.labels, fraction, seed=seed, groups=self.groups)
        return self.only(rest), self.only(part)

    def only(self, chosen: np.ndarray) -> "Part":
        """Return the samples at these positions, given as indices or as a mask."""
        return replace(self, indices=self.indices[chosen])


def image_parts(settings: "LearningSettings", *, labelled: bool = False) -> tuple[Part, Part]:
    """Return the training and the validation images, independent of labels: the split val, or a fraction of train. The
    split test is not used. The classes of several data sets may differ unless `labelled`."""
    folders = find_datasets(settings.dataset, settings.data_root)
    for folder in folders:
        require("train" in splits_of(folder), f"{folder} has no split 'train'; it has {', '.join(splits_of(folder))}.")
    train = whole(Split(*(folder / "train" for folder in folders), labelled=labelled))
    if all("val" in splits_of(folder) for folder in folders):
        return train, whole(Split(*(folder / "val" for folder in folders), labelled=labelled))
    kept, held = split_off(np.zeros(len(train)), settings.val_fraction, seed=settings.seed, groups=train.groups)
    require(
        len(held) > 1,
        f"val_fraction={settings.val_fraction} of {len(train)} images leaves none for validation.",
    )
    return train.only(kept), train.only(held)


def whole(split: Split) -> Part:
    """Return all samples of a split, labelled or not."""
    return Part(split, np.arange(len(split)), None)


def evenly(number: int, most: int) -> np.ndarray:
    """Return at most `most` evenly spaced indices below `number`."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))
