"""Put pretrained backbones beside the same networks from scratch, over numbers of labels, in one table.

Each learns from some of the labels, several seeds each.
The same command continues what was stopped, and makes the table at once where all is done. `deeplense submit --on
CLUSTER benchmark labels ...` makes a job array of it, an element for each run of `deeplense finetune`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.comparing.settings import QueueSettings
from jobs.config import BUT, OF, require
from jobs.finetune import MIN_EPOCHS, NUM_UPDATES, TAKEN

ALL = "all"
MODES = ("full", "linear", "knn")


@dataclass(frozen=True, kw_only=True)
class Settings(QueueSettings):
    """Which backbones, on how many labels of which data. The settings of `deeplense train` that are given go over the
    recipe of `deeplense finetune`, from scratch too."""

    backbones: str
    """runs of `deeplense pretrain`, with commas between"""
    num_labels: str = "300,600,1200,all"
    """how many labels are known, with commas between; all for those of the split train"""
    modes: str = "full,linear,knn"
    """how the backbones are used, as `deeplense finetune` knows it; from scratch all is learnt"""
    seeds: str = "0:5"
    """seeds of labels, weights, order and augmentation: 0:3 is 0, 1 and 2; or a list, such as 0,1,5"""
    num_updates: int = NUM_UPDATES
    """of full and from scratch, at least"""
    min_epochs: float = MIN_EPOCHS
    """of full and from scratch: more updates where these are fewer passes over the labels"""
    allow_pretrained_overlap: Literal[0, 1] = 0
    """1: test also on images that a pretraining saw, without labels; by default they are left out for all alike"""
    training: Mapping[str, Any] = field(default_factory=dict, metadata={OF: "train", BUT: (*TAKEN, "model_name")})
    """settings of `deeplense train` for all of them"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("backbones", "num_labels", "modes"):
            self.require_each_once(name)
        for count in self.names("num_labels"):
            good = count == ALL or (count.isdecimal() and int(count) > 0)
            require(good, f"num_labels: {count!r} is neither a number above 0 nor {ALL}.")
        for mode in self.names("modes"):
            require(mode in MODES, f"modes: there is no {mode!r}; there are {', '.join(MODES)}.")


def run(settings: Settings) -> int:
    """Do what is left, and print the table; returns 0, 1 where a run failed, or 85 when told to stop."""
    from jobs.comparing.labels import make_table
    from jobs.comparing.queue import do_all

    return do_all(settings, make_table(settings))


def runs_left(settings: Settings) -> dict[str, Path]:
    """Names and folders of the runs that are not finished yet."""
    from jobs.comparing.labels import make_plan
    from jobs.comparing.trials import left

    return left([cell.trial for cell in make_plan(settings)], settings.only)
