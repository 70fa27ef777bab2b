"""Fine-tune or probe a pretrained backbone with few labels, and evaluate it on held-out images.

The mode is full fine-tuning, a linear probe, or k-nearest neighbours. To resume a run that was stopped or killed, run
the same command again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs import command_line
from jobs.conditions import ALWAYS, counts_with
from jobs.settings import BUT, OF, require
from jobs.train.settings import Settings as TrainSettings

SCRATCH = "scratch"
RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.yaml"
TAKEN = ("run", "dataset", "backbone", "num_labels", "seed", "epochs", "tune", "pretrained", "pretrained_file")
TAKEN += ("num_folds", "fold", "label_fraction", "target", "patience_epochs", "init_from", "lengthen")
NUM_UPDATES, MIN_EPOCHS = 600, 30.0
OF_TRAININGS = counts_with(mode="full")
OF_PROBES = ("data_root", "label_file", "allow_overlap", "model_name", "stretch", "device")
"""Settings of a training that also apply to a probe."""
BASIC = ("backbone", "run", "dataset", "mode", "num_labels", "model_name", "split", "device", "seed")
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which backbone to use, with which labels, and how. Settings of `deeplense train` that are given override the
    recipe jobs/recipes/finetune.yaml."""

    backbone: str
    """run of `deeplense pretrain`; scratch trains the same network from random weights"""
    run: Path
    """run folder; an existing run is resumed"""
    dataset: str
    """data set folder, or its name below data_root"""
    mode: Literal["full", "linear", "knn"] = "full"
    """full: fine-tune the backbone; linear: logistic regression on its frozen features; knn: 20 nearest neighbours in
    feature space"""
    num_labels: int | None = None
    """number of labelled training images, stratified by class; smaller subsets are nested in larger ones; all labels by
    default"""
    num_updates: int = field(default=NUM_UPDATES, metadata=OF_TRAININGS)
    """minimum number of updates of mode full"""
    min_epochs: float = field(default=MIN_EPOCHS, metadata=OF_TRAININGS)
    """minimum number of epochs of mode full; raises the number of updates if needed"""
    seed: int = 0
    """random seed of labels, initial weights, sample order and augmentation"""
    split: str = "test"
    """split to evaluate on"""
    allow_pretrained_overlap: Literal[0, 1] = 0
    """1: also evaluate on images that the backbone was pretrained on without labels; the report gives their number"""
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
            f"mode={self.mode} needs a pretrained backbone; give a run of `deeplense pretrain` as --backbone.",
        )
        require(
            self.backbone != SCRATCH or "model_name" in self.training,
            "backbone=scratch does not define the network; give --model_name.",
        )

    @property
    def learning(self) -> TrainSettings:
        """The settings of the training, without the values that depend on the backbone and the data."""
        return self.trained_with({})

    def trained_with(self, found: Mapping[str, object]) -> TrainSettings:
        """Return the settings of the training. Given settings override values found from the backbone and the data,
        which override the recipe."""
        asked: dict[str, object] = {"run": self.run, "dataset": self.dataset, "seed": self.seed}
        if self.num_labels is not None:
            asked["num_labels"] = self.num_labels
        values = asked | dict(found) | dict(self.training)
        return command_line.parse(
            "train", [f"--config={RECIPE}", *(f"--{name}={value}" for name, value in values.items())]
        )
