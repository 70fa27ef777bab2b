"""Learn classes from few labels on a pretrained backbone, and evaluate on held-out images.

All of the backbone learns, or a linear classifier on its features, or nearest neighbours vote. The same command
continues a run that was stopped or killed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs import config
from jobs.config import BUT, OF, require
from jobs.counting import ALWAYS, counts_with
from jobs.train import Settings as TrainSettings

SCRATCH = "scratch"
RECIPE = Path(__file__).parent / "recipes" / "finetune.yaml"
TAKEN = ("run", "dataset", "backbone", "num_labels", "seed", "epochs", "tune", "pretrained", "pretrained_file")
TAKEN += ("num_folds", "fold", "label_fraction", "target", "patience_epochs")
NUM_UPDATES, MIN_EPOCHS = 600, 30.0
OF_TRAININGS = counts_with(mode="full")
OF_PROBES = ("data_root", "label_file", "allow_overlap", "model_name", "stretch", "device")
"""Settings of a training that say what a probe is of."""


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
    """full: the backbone learns too; linear: a logistic regression on its features; knn:
    the votes of the nearest 20"""
    num_labels: int | None = None
    """labels of the split train that are known, all by default, with the shares of its classes; fewer are among more"""
    num_updates: int = field(default=NUM_UPDATES, metadata=OF_TRAININGS)
    """of full, at least"""
    min_epochs: float = field(default=MIN_EPOCHS, metadata=OF_TRAININGS)
    """of full: more updates where these are fewer passes over the labels"""
    seed: int = 0
    """of labels, weights, order and augmentation"""
    split: str = "test"
    """what is evaluated on"""
    allow_pretrained_overlap: Literal[0, 1] = 0
    """1: evaluate also on images that the pretraining of the backbone saw, without labels; the report counts them"""
    training: Mapping[str, Any] = field(
        default_factory=dict, metadata={OF: "train", BUT: TAKEN, ALWAYS: OF_PROBES} | OF_TRAININGS
    )
    """settings of `deeplense train`"""

    def __post_init__(self) -> None:
        require(self.num_updates > 0, f"num_updates={self.num_updates} must be above 0.")
        require(self.min_epochs >= 0, f"min_epochs={self.min_epochs} must be 0 or more.")
        require(self.num_labels is None or self.num_labels > 0, f"num_labels={self.num_labels} must be above 0.")
        require(
            self.mode == "full" or self.backbone != SCRATCH,
            f"mode={self.mode} needs features; give a run of `deeplense pretrain` as --backbone.",
        )
        require(
            self.backbone != SCRATCH or "model_name" in self.training,
            "backbone=scratch says nothing of the network; give --model_name.",
        )

    @property
    def learning(self) -> TrainSettings:
        """The settings of the training as far as they are known without the backbone and the data."""
        return self.trained_with({})

    def trained_with(self, found: Mapping[str, object]) -> TrainSettings:
        """The settings of the training: the recipe, over it what the backbone and the data ask for, over it what is
        given."""
        asked: dict[str, object] = {"run": self.run, "dataset": self.dataset, "seed": self.seed}
        if self.num_labels is not None:
            asked["num_labels"] = self.num_labels
        values = asked | dict(found) | dict(self.training)
        return config.parse("train", [f"--config={RECIPE}", *(f"--{name}={value}" for name, value in values.items())])


def run(settings: Settings) -> int:
    """Learn, evaluate, and print the numbers; returns 0, or 85 when stopped with the state saved (or none made)."""
    from jobs.finetuning import finetune

    return finetune(settings)
