"""Train a classifier or a regression network on labelled images. To resume a run that was stopped or killed, run the
same command again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deeplense.models.zoo import ARCHITECTURES
from jobs.conditions import GIVEN, counts_with
from jobs.frame.settings import LearningSettings
from jobs.settings import refuse_outside, require

BASIC = (
    "run",
    "dataset",
    "model_name",
    "epochs",
    "batch_size",
    "lr",
    "stretch",
    "target",
    "num_folds",
    "fold",
    "pretrained",
    "patience_epochs",
    "device",
    "seed",
)
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """What to train, on which data, and how."""

    label_fraction: float = 1.0
    """fraction of the training images of each class that is used; with the same seed, and without groups, smaller
    subsets are nested in larger ones"""
    num_labels: int | None = None
    """number of labelled training images, stratified by class; val_fraction of them is used for model selection, and a
    split val is ignored; with the same seed, smaller subsets are nested in larger ones; all labels by default"""
    label_file: Path | None = None
    """file that lists the labelled samples, one name per line or a DeepLense_SSL subset (.pkl); they are used like
    those of num_labels"""
    allow_overlap: Literal[0, 1] = field(default=0, metadata=counts_with(label_file=GIVEN))
    """1: label_file may list samples of splits other than train; evaluations then exclude them"""
    target: str = "class"
    """what to predict: class, or the name of a continuous target, such as log10_axion_mass (samples without it are
    excluded)"""
    model_name: str = "resnet18"
    """a model listed by `deeplense models`, or any other timm model"""
    complex: Literal[0, 1] = 0
    """1: add hidden layers of 1024, 512 and 128 units between the features and the outputs"""
    pretrained: Literal[0, 1] = 0
    """1: start from the published weights of timm, or from pretrained_file"""
    pretrained_file: Path | None = field(default=None, metadata=counts_with(pretrained=1))
    """file with weights: those of timm if the hub is not reachable, or those written by `deeplense export`"""
    init_from: Path | None = None
    """run of `deeplense train`, or of `finetune --mode full`, whose best weights initialise the network; model_name
    must be the same; the head is kept if it has the same target and number of outputs"""
    backbone: Path | None = None
    """run of `deeplense pretrain` whose backbone initialises the network; model_name must be the same"""
    tune: Literal[0, 1] = 1
    """0: freeze the backbone and train the head only"""
    layer_decay: float | None = None
    """layer-wise learning rate decay: factor from each layer to the one before it; for pretrained weights; off by
    default"""
    dropout: float = 0.0
    """dropout rate before the last layer"""
    drop_path: float = 0.0
    """stochastic depth rate: probability of dropping a residual branch, if the network has any"""
    label_smoothing: float = field(default=0.0, metadata=counts_with(target="class"))
    """label smoothing, at least 0 and below 1"""
    patience_epochs: float | None = None
    """early stopping: number of epochs without a better validation score after which the training ends; off by default
    """
    flips: Literal[0, 1] = 1
    """1: augment with flips and quarter turns"""
    random_zoom: float = 1.0
    """augment with a random zoom between 1/random_zoom and random_zoom; 1 for none"""
    random_rotation: float = 0.0
    """augment with a random rotation of at most this many degrees; 0 for none"""
    num_folds: int = 0
    """number of cross-validation folds; one fold of the split train is held out for `deeplense evaluate`; 0 for none"""
    fold: int = field(default=0, metadata=counts_with(num_folds=GIVEN))
    """index of the held-out fold, from 0"""
    ema_decay: float | None = None
    """decay of the exponential moving average of the weights, which is then evaluated and kept as the best weights; off
    by default"""

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
            "fsdp=1 does not support a moving average of the weights; leave out --ema_decay or --fsdp.",
        )
        require(0 < self.label_fraction <= 1, f"label_fraction={self.label_fraction} must be above 0 and at most 1.")
        require(self.random_zoom >= 1, f"random_zoom={self.random_zoom} must be at least 1 (1 is no zoom).")
        require(self.num_folds != 1 and self.num_folds >= 0, f"num_folds={self.num_folds} must be 0, or at least 2.")
        require(0 <= self.fold < max(self.num_folds, 1), f"fold={self.fold} must be below num_folds={self.num_folds}.")
        refuse_outside(self, ("num_labels",), lambda value: value is None or value > 0, "above 0")
        require(
            not self.chosen_labels or (self.label_fraction == 1 and not self.num_folds),
            f"{' and '.join(self.chosen_labels)} cannot be combined with label_fraction or num_folds; give one of "
            "them.",
        )
        require(len(self.chosen_labels) < 2, "num_labels and label_file cannot be combined; give one of them.")
        sources = {"init_from": self.init_from, "backbone": self.backbone, "pretrained=1": self.pretrained}
        given = [name for name, value in sources.items() if value]
        require(len(given) < 2, f"{' and '.join(given)} cannot be combined; give only one of them.")

    @property
    def least_samples(self) -> int:
        """Fewest samples with which a process can compute its part of a loss: a batch norm of features, such as those
        of the hidden layers of `complex`, needs two."""
        known = ARCHITECTURES.get(self.model_name)
        return 2 if self.complex else known.least_samples if known else 1

    @property
    def chosen_labels(self) -> list[str]:
        """The settings that select a subset of the labels, if any."""
        return [name for name in ("num_labels", "label_file") if getattr(self, name) is not None]

    @property
    def regression(self) -> bool:
        """Whether the target is a continuous number."""
        return self.target != "class"
