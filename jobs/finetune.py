"""Learn classes from few labels on a pretrained backbone: all of it, a linear classifier on its features, or the votes
of nearest neighbours; and evaluate on held-out images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.config import BUT, OF, require

SCRATCH = "scratch"
TAKEN = ("run", "dataset", "backbone", "num_labels", "seed", "epochs", "tune", "pretrained", "pretrained_file")
TAKEN += ("num_folds", "fold", "label_fraction", "target")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which backbone, on which labels, and how. The settings of `deeplense train` that are given go over the recipe
    jobs/recipes/finetune.yaml."""

    backbone: str
    """run of `deeplense pretrain`, or scratch for the same training without one"""
    run: Path
    """folder of the run; one that exists is continued"""
    dataset: str
    """folder of a data set, or its name below data_root"""
    mode: Literal["full", "linear", "knn"] = "full"
    """full: the backbone learns too; linear: a logistic regression on its features; knn: the votes of the nearest 20"""
    num_labels: int | None = None
    """labels of the split train that are known, all by default, with the shares of its classes; fewer are among more"""
    num_updates: int = 600
    """of full, whatever the number of labels"""
    seed: int = 0
    """of labels, weights, order and augmentation"""
    split: str = "test"
    """what is evaluated on"""
    training: Mapping[str, Any] = field(default_factory=dict, metadata={OF: "train", BUT: TAKEN})
    """settings of `deeplense train`"""

    def __post_init__(self) -> None:
        require(self.num_updates > 0, f"num_updates={self.num_updates} must be above 0.")
        require(self.num_labels is None or self.num_labels > 0, f"num_labels={self.num_labels} must be above 0.")
        require(
            self.mode == "full" or self.backbone != SCRATCH,
            f"mode={self.mode} needs features; give a run of `deeplense pretrain` as --backbone.",
        )
        require(
            self.backbone != SCRATCH or "model_name" in self.training,
            "backbone=scratch says nothing of the network; give --model_name.",
        )


def run(settings: Settings) -> int:
    """Learn, evaluate, and print the numbers; returns 0, or 85 when stopped with the state saved (or none made)."""
    from jobs.finetuning import finetune

    return finetune(settings)
