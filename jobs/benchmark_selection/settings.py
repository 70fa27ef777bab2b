"""Compare rules for model selection (which checkpoint of a training to keep) with few validation images.

One training serves all rules: at each evaluation, the outputs on the validation images and on the held-out images are
stored. Run the same command again to resume; a command with other data sets adds them to the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.settings import BUT, OF, require
from jobs.trials.settings import TableSettings

TAKEN = ("run", "dataset", "seed", "num_labels", "label_file", "label_fraction", "allow_overlap", "num_folds", "fold")
TAKEN += ("target", "patience_epochs", "evaluate_epochs", "ema_decay")


@dataclass(frozen=True)
class Case:
    """A data set and its number of labelled images: all (no counts), one count in total, or one count per class."""

    name: str
    folder: str
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Settings(TableSettings):
    """Settings of `deeplense benchmark selection`. Settings of `deeplense train` apply to all data sets."""

    datasets: str
    """comma-separated data sets, optionally with a number of labelled images: m3:60 uses 60, m3:400/400/20 uses these
    numbers per class"""
    seeds: str = "0:5"
    """seeds of the label subset, initial weights, order and augmentation: a range (0:3 is 0, 1 and 2) or a list, such
    as 0,1,5"""
    split: str = "test"
    """split of the held-out images"""
    num_evaluations: int = 20
    """number of evaluations per training, at most one per epoch"""
    label: str = ""
    """suffix of the case names in the table, to distinguish training settings"""
    mean_decay: float = 0.99
    """decay of the exponential moving average (EMA) of the weights"""
    training: Mapping[str, Any] = field(default_factory=dict, metadata={OF: "train", BUT: TAKEN})
    """settings of `deeplense train` that apply to all trainings"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_evaluations > 0, f"num_evaluations={self.num_evaluations} must be above 0.")
        require(0 < self.mean_decay < 1, f"mean_decay={self.mean_decay} must be between 0 and 1.")
        _ = self.cases

    @property
    def cases(self) -> list[Case]:
        """The data sets with their numbers of labelled images."""
        return [read_case(given, self.label) for given in self.names("datasets")]


def read_case(given: str, label: str = "") -> Case:
    """Parse FOLDER, FOLDER:60 or FOLDER:400/400/20. Raises ValueError for anything else."""
    folder, colon, counts = given.partition(":")
    words = counts.split("/") if colon else []
    good = all(word.isdecimal() and int(word) > 0 for word in words)
    require(good, f"datasets: {given} must be a data set, or a data set, a colon and a number of labels, as in m3:60.")
    name = "-".join([Path(folder).resolve().name, *words, *filter(None, [label])])
    return Case(name, folder, tuple(int(word) for word in words))
