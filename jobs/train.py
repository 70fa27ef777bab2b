"""Train a classifier, or a regression, on one data set. The same command continues a run that was stopped or killed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import require
from jobs.counting import GIVEN, counts_with
from jobs.learning import LearningSettings, learn, refuse_outside


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """What to train, on what, and how."""

    label_fraction: float = 1.0
    """part of each class of the training samples that is learnt from; a smaller part is in a larger one"""
    num_labels: int | None = None
    """if given, labels that are known, with the shares of the classes of the split train: a part of them (val_fraction)
    chooses the best weights, and a split val is left alone; fewer are among more"""
    label_file: Path | None = None
    """if given, file with the names of the samples whose labels are known, one a line, or as DeepLense_SSL publishes
    its subsets (.pkl); they are used as those of num_labels are"""
    allow_overlap: Literal[0, 1] = field(default=0, metadata=counts_with(label_file=GIVEN))
    """1: label_file may name samples of other splits than train, which evaluations then leave out"""
    target: str = "class"
    """what is learnt: class, or the name of a number, such as log10_axion_mass (samples without it are left out)"""
    model_name: str = "resnet18"
    """one of `deeplense models`, or any other model of timm"""
    complex: Literal[0, 1] = 0
    """1: layers of 1024, 512 and 128 units between the features and the outputs"""
    pretrained: Literal[0, 1] = 0
    """1: start from timm's published weights, or from those of pretrained_file"""
    pretrained_file: Path | None = field(default=None, metadata=counts_with(pretrained=1))
    """file with weights: timm's, where the hub cannot be reached, or those of `deeplense export`"""
    backbone: Path | None = None
    """run of `deeplense pretrain` from whose backbone to start; model_name must be the same"""
    tune: Literal[0, 1] = 1
    """0: only the last layers learn"""
    layer_decay: float | None = None
    """if given, each layer learns by this factor more slowly than the one behind it; for pretrained weights"""
    dropout: float = 0.0
    """before the last layer"""
    drop_path: float = 0.0
    """share of residual branches that are left out at random, where the network has some"""
    label_smoothing: float = field(default=0.0, metadata=counts_with(target="class"))
    """0 to 1"""
    patience_epochs: float | None = None
    """if given, the training ends when so many have brought no better validation score"""
    flips: Literal[0, 1] = 1
    """1: flips and quarter turns"""
    random_zoom: float = 1.0
    """zoom between 1/random_zoom and random_zoom; 1 for none"""
    random_rotation: float = 0.0
    """rotation within so many degrees; 0 for none"""
    num_folds: int = 0
    """cross-validation: 0 for none; else one fold of train is held out for `deeplense evaluate`"""
    fold: int = field(default=0, metadata=counts_with(num_folds=GIVEN))
    """which fold is held out, from 0"""
    ema_decay: float | None = None
    """if given, a running mean of the weights is evaluated and kept as the best, with this decay"""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(
            self, ("dropout", "label_smoothing", "drop_path"), lambda value: 0 <= value < 1, "at least 0 and below 1"
        )
        refuse_outside(self, ("random_rotation",), lambda value: value >= 0, "0 or more")
        refuse_outside(self, ("patience_epochs",), lambda value: value is None or value > 0, "above 0")
        refuse_outside(
            self, ("ema_decay", "layer_decay"), lambda value: value is None or 0 < value < 1, "between 0 and 1"
        )
        require(
            not self.fsdp or self.ema_decay is None,
            "fsdp=1 keeps no running mean of the weights; leave out --ema_decay, or --fsdp.",
        )
        require(0 < self.label_fraction <= 1, f"label_fraction={self.label_fraction} must be above 0, and 1 at most.")
        require(self.random_zoom >= 1, f"random_zoom={self.random_zoom} must be at least 1, which is no zoom.")
        require(self.num_folds != 1 and self.num_folds >= 0, f"num_folds={self.num_folds} must be 0, or 2 and more.")
        require(0 <= self.fold < max(self.num_folds, 1), f"fold={self.fold} must be below num_folds={self.num_folds}.")
        refuse_outside(self, ("num_labels",), lambda value: value is None or value > 0, "above 0")
        require(
            not self.chosen_labels or (self.label_fraction == 1 and not self.num_folds),
            f"{' and '.join(self.chosen_labels)} is given, and label_fraction or num_folds; give one of them.",
        )
        require(len(self.chosen_labels) < 2, "num_labels and label_file are given; give one of them.")
        require(
            not (self.backbone and self.pretrained), "backbone and pretrained=1 are two starts; leave one of them out."
        )

    @property
    def chosen_labels(self) -> list[str]:
        """The settings by which some of the labels are known, if any."""
        return [name for name in ("num_labels", "label_file") if getattr(self, name) is not None]

    @property
    def regression(self) -> bool:
        """Whether a number is learnt."""
        return self.target != "class"


def run(settings: Settings) -> int:
    """Train until done or told to stop; returns 0, or 85 when stopped with the state saved (or none made)."""
    from jobs.supervised import Supervised

    return learn(settings, lambda: Supervised(settings))
