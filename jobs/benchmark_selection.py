"""Which weights of a training should be kept, where few validation images choose? Train, and compare rules.

One training gives all rules: at each evaluation it is kept what the weights say of the validation images and of the
held-out images. The same command continues what was stopped; a command with other cases adds them to the table.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.comparing.settings import TableSettings
from jobs.config import BUT, OF, require

TAKEN = ("run", "dataset", "seed", "num_labels", "label_file", "label_fraction", "allow_overlap", "num_folds", "fold")
TAKEN += ("target", "patience_epochs", "evaluate_epochs", "ema_decay")


@dataclass(frozen=True)
class Case:
    """A data set, and how many of its labels are known: all, so many, or so many of each class."""

    name: str
    folder: str
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Settings(TableSettings):
    """Which data sets, and how to train. The settings of `deeplense train` that are given count for all of them."""

    datasets: str
    """data sets with commas between; m3:60 knows 60 labels, m3:400/400/20 so many of each class"""
    seeds: str = "0:5"
    """seeds of labels, weights, order and augmentation: 0:3 is 0, 1 and 2; or a list, such as 0,1,5"""
    split: str = "test"
    """the held-out images"""
    num_evaluations: int = 20
    """evaluations of a training, at most one an epoch"""
    label: str = ""
    """added to the names of the cases, to tell ways to train apart"""
    mean_decay: float = 0.99
    """of the running mean of the weights"""
    training: Mapping[str, Any] = field(default_factory=dict, metadata={OF: "train", BUT: TAKEN})
    """settings of `deeplense train`"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_evaluations > 0, f"num_evaluations={self.num_evaluations} must be above 0.")
        require(0 < self.mean_decay < 1, f"mean_decay={self.mean_decay} must be between 0 and 1.")
        _ = self.cases

    @property
    def cases(self) -> list[Case]:
        """The data sets with their numbers of labels."""
        return [read_case(given, self.label) for given in self.names("datasets")]


def read_case(given: str, label: str = "") -> Case:
    """What FOLDER, FOLDER:60 or FOLDER:400/400/20 stands for. Raises ValueError for other numbers."""
    folder, colon, counts = given.partition(":")
    words = counts.split("/") if colon else []
    good = all(word.isdecimal() and int(word) > 0 for word in words)
    require(good, f"datasets: {given} must be a data set, or one with a number of labels behind a colon, as in m3:60.")
    name = "-".join([Path(folder).resolve().name, *words, *filter(None, [label])])
    return Case(name, folder, tuple(int(word) for word in words))


def run(settings: Settings) -> int:
    """Train what is left, and print the table."""
    from jobs.comparing.selection import make_curves
    from jobs.comparing.selection_table import write_table
    from jobs.progress import say

    for seed, case in itertools.product(settings.all_seeds, settings.cases):
        make_curves(settings, case, seed)
    for line in write_table(settings.output):
        say(line)
    return 0
