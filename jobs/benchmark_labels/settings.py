"""Compare pretrained backbones with the same networks trained from scratch, for several numbers of labels.

Each is trained on a subset of the labels, with several seeds; the results are put into one table.
Run the same command again to resume; if everything is done, it only rewrites the table. `deeplense submit --on CLUSTER
benchmark labels ...` runs it as a job array with one task per run of `deeplense finetune`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.finetune.settings import MIN_EPOCHS, NUM_UPDATES, TAKEN
from jobs.settings import BUT, OF, require
from jobs.trials.settings import QueueSettings

ALL = "all"
MODES = ("full", "linear", "knn")


@dataclass(frozen=True, kw_only=True)
class Settings(QueueSettings):
    """Settings of `deeplense benchmark labels`. Settings of `deeplense train` override the recipe of `deeplense
    finetune`, also for training from scratch."""

    backbones: str
    """comma-separated runs of `deeplense pretrain`"""
    num_labels: str = "300,600,1200,all"
    """comma-separated numbers of labelled training images; all: all those of the split train"""
    modes: str = "full,linear,knn"
    """comma-separated modes of `deeplense finetune` for the backbones; from scratch, the whole network is trained"""
    seeds: str = "0:5"
    """seeds of the label subset, initial weights, order and augmentation: a range (0:3 is 0, 1 and 2) or a list, such
    as 0,1,5"""
    num_updates: int = NUM_UPDATES
    """minimum number of updates, for mode full and from scratch"""
    min_epochs: float = MIN_EPOCHS
    """minimum number of passes over the labelled images, for mode full and from scratch; more updates are made if
    needed"""
    allow_pretrained_overlap: Literal[0, 1] = 0
    """1: also test on images that a backbone was pretrained on, without labels; by default they are excluded for all
    runs"""
    training: Mapping[str, Any] = field(default_factory=dict, metadata={OF: "train", BUT: (*TAKEN, "model_name")})
    """settings of `deeplense train` that apply to all runs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("backbones", "num_labels", "modes"):
            self.require_each_once(name)
        for count in self.names("num_labels"):
            good = count == ALL or (count.isdecimal() and int(count) > 0)
            require(good, f"num_labels: {count!r} is neither a number above 0 nor {ALL}.")
        for mode in self.names("modes"):
            require(mode in MODES, f"modes: unknown mode {mode!r}; choose from {', '.join(MODES)}.")
