"""Pretrain a backbone on unlabelled images by self-supervised learning. To resume a run that was stopped or killed, run
the same command again."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from deeplense.ssl.zoo import METHODS
from jobs.conditions import counts_with
from jobs.frame.settings import OF_COSINES, LearningSettings
from jobs.settings import FREE, refuse_outside, require

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


def of(trait: str) -> dict[str, Any]:
    """Return the metadata of a setting that applies only to methods with this trait."""
    return counts_with(method=tuple(name for name, method in METHODS.items() if getattr(method, trait)))


BASIC = ("run", "dataset", "method", "model_name", "image_size", "epochs", "batch_size", "lr", "device", "seed")
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """Which backbone to pretrain, by which method, and on which views."""

    method: MethodName = "dino"
    """self-supervised method: DINO, iBOT, SimSiam, SimMIM or LeJEPA"""
    model_name: str = "vit_small"
    """a model listed by `deeplense models`, or any other timm model; vit_small has patches of 8 pixels for images of up
    to 96 pixels"""
    views: Literal["lenses", "published"] = "lenses"
    """augmentation preset: lenses for lens cutouts, published as in DeepLense_SSL"""
    image_size: int = 0
    """side of the global views in pixels, and of the central crop that is used for evaluation; 0 for the full image"""
    local_size: int = field(default=0, metadata=of("local_views"))
    """side of the local views in pixels; 0 for half of the global views"""
    num_local: int | None = None
    """number of local views per image; by default that of the views preset, and 0 for simsiam and simmim"""
    out_dim: int | None = field(default=None, metadata=of("head"))
    """number of prototypes (dino, ibot) or dimension of the projection (simsiam, lejepa); by default that of the method
    """
    hidden_dim: int | None = field(default=None, metadata=of("head"))
    """width of the hidden layers of the projection head; 2048 by default"""
    teacher_momentum: float | None = field(default=None, metadata=of("teacher"))
    """initial momentum of the teacher's moving average, which rises to 1; 0.99 by default"""
    teacher_temp: float | None = field(default=None, metadata=of("teacher"))
    """temperature of the teacher after its warm-up, lower is sharper; 0.02 by default"""
    mask_share: float = field(default=0.3, metadata=of("hidden_views"))
    """fraction of the patches that is masked (ibot: in half of the views, simmim: in all views)"""
    batch_size: int = 128
    """samples per update, over all processes"""
    lr: float = 5e-4
    """peak learning rate"""
    lr_min: float = field(default=1e-6, metadata=OF_COSINES)
    """minimum learning rate of the cosine schedules"""
    schedule: Literal["constant", "cosine", "restarts", "step"] = "cosine"
    """learning rate schedule after the warm-up"""
    warmup_epochs: float = 10.0
    """epochs of linear warm-up of the learning rate to lr"""
    drop_path: float = 0.0
    """stochastic depth rate: probability of dropping a residual branch, if the network has any"""
    weight_decay: float = 0.04
    """weight decay; not applied to biases and normalisation layers"""
    weight_decay_end: float | None = None
    """final weight decay of a cosine schedule; constant by default"""
    epochs: float = 100.0
    """passes over the training samples"""
    clip_grad: float | None = 3.0
    """maximum norm of the gradient"""
    stretch: Literal["linear", "asinh", "standard_asinh"] = "standard_asinh"
    """transform of the pixel values, in units of their standard deviation; asinh suits images with bright cores;
    standard_asinh also subtracts the mean, without which the features collapse if the mean is large"""
    evaluate_epochs: float = 5.0
    """epochs between evaluations of the features: collapse checks, and probes of the labels if there are any"""
    checkpoint_blocks: Literal[0, 1] = 0
    """1: activation checkpointing: recompute the blocks of a vision transformer in the backward pass to save memory"""
    stop_on_collapse: Literal[0, 1] = field(default=0, metadata=FREE)
    """1: end with an error if the features have collapsed"""

    @property
    def least_samples(self) -> int:
        """Fewest samples with which a process can compute its part of a loss, from the method."""
        return METHODS[self.method].least_samples

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, ("image_size", "local_size"), lambda value: value >= 0, "0 or more")
        refuse_outside(self, ("drop_path",), lambda value: 0 <= value < 1, "at least 0 and below 1")
        refuse_outside(self, ("mask_share",), lambda value: 0 < value < 1, "between 0 and 1")
        above_zero = ("out_dim", "hidden_dim", "teacher_temp", "weight_decay_end")
        refuse_outside(self, above_zero, lambda value: value is None or value > 0, "above 0")
        refuse_outside(
            self, ("teacher_momentum",), lambda value: value is None or 0 <= value < 1, "at least 0 and below 1"
        )
        refuse_outside(self, ("num_local",), lambda value: value is None or value >= 0, "0 or more")
        require(
            not self.local_size or self.num_local != 0,
            "local_size has no effect with num_local=0; leave one of them out.",
        )
        require(
            self.balance != "class",
            "balance=class needs labels, which pretraining does not use; leave it out, or give --balance survey.",
        )
        require(
            self.weight_decay_end is None or self.weight_decay > 0,
            "weight_decay_end needs weight_decay above 0; give both, or neither.",
        )
