"""Pretrain a backbone on images without their labels. The same command continues a run that was stopped or killed."""

from dataclasses import dataclass, field
from typing import Literal

from jobs.config import FREE, require
from jobs.counting import counts_with
from jobs.learning import OF_COSINES, LearningSettings, learn, refuse_outside

TEACHERS = ("dino", "ibot")
MASKED = ("ibot", "simmim")
ENCODERS = {
    name: "teacher.backbone" if name in TEACHERS else "backbone" for name in (*TEACHERS, "simsiam", "simmim", "lejepa")
}
"""Where the backbone that is used afterwards stands in the state of each method."""
OF_TEACHERS, OF_MASKS = counts_with(method=TEACHERS), counts_with(method=MASKED)
OF_HEADS = counts_with(method=("dino", "ibot", "simsiam", "lejepa"))
OF_LOCAL_VIEWS = counts_with(method=("dino", "ibot", "lejepa"))


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """What to pretrain, by which method, on which views."""

    method: Literal["dino", "ibot", "simsiam", "simmim", "lejepa"] = "dino"
    """DINO, iBOT, SimSiam, SimMIM, or LeJEPA"""
    model_name: str = "vit_small"
    """one of `deeplense models`, or any other model of timm; patches of 8 pixels in images of up to 96"""
    views: Literal["lenses", "published"] = "lenses"
    """how images are cropped, turned, blurred, dimmed: ours for stamps of lenses, or as DeepLense_SSL did it"""
    image_size: int = 0
    """pixels a side of the large views, and of the middle of an image that the backbone is evaluated on; 0 for all"""
    local_size: int = field(default=0, metadata=OF_LOCAL_VIEWS)
    """pixels a side of the local views; 0 for half of the large ones"""
    num_local: int | None = None
    """local views of an image; by default as views says, and none for simsiam and simmim"""
    out_dim: int | None = field(default=None, metadata=OF_HEADS)
    """prototypes of dino and ibot, numbers of the projection of simsiam and lejepa; by default as the method says"""
    hidden_dim: int | None = field(default=None, metadata=OF_HEADS)
    """width of the layers between features and these; by default 2048"""
    teacher_momentum: float | None = field(default=None, metadata=OF_TEACHERS)
    """share of the teacher that stays in the first update, rising to 1; by default 0.99"""
    teacher_temp: float | None = field(default=None, metadata=OF_TEACHERS)
    """temperature of the teacher after its warm-up, lower is sharper; by default 0.02"""
    mask_share: float = field(default=0.3, metadata=OF_MASKS)
    """of the patches that are hidden (ibot in half of the views, simmim in all)"""
    batch_size: int = 128
    """samples of one update, over all processes"""
    lr: float = 5e-4
    """highest learning rate"""
    lr_min: float = field(default=1e-6, metadata=OF_COSINES)
    """lowest learning rate of the cosines"""
    schedule: Literal["constant", "cosine", "restarts", "step"] = "cosine"
    """of the learning rate, after the warm-up"""
    warmup_epochs: float = 10.0
    """in which the learning rate rises to lr"""
    drop_path: float = 0.0
    """share of residual branches that are left out at random, where the network has some"""
    weight_decay: float = 0.04
    """not on biases and norms"""
    weight_decay_end: float | None = None
    """if given, weight decay goes there as a cosine"""
    epochs: float = 100.0
    """passes over the training samples"""
    clip_grad: float | None = 3.0
    """largest norm of the gradient"""
    stretch: Literal["linear", "asinh", "standard_asinh"] = "standard_asinh"
    """of the pixel values, in units of their standard deviation; asinh for images with bright cores, standard_asinh
    also about their mean, without which features collapse where that is not small"""
    evaluate_epochs: float = 5.0
    """epochs between looks at the features: whether they collapse, and what they know of labels, if there are any"""
    checkpoint_blocks: Literal[0, 1] = 0
    """1: compute the blocks of a vision transformer twice, to save memory"""
    stop_on_collapse: Literal[0, 1] = field(default=0, metadata=FREE)
    """1: end with an error where the features have collapsed"""

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
            not self.local_size or self.num_local != 0, "local_size is given, but num_local=0; leave one of them out."
        )
        require(
            self.balance != "class",
            "balance=class looks at labels, which a pretraining does not; leave it out, or give --balance survey.",
        )
        require(
            self.weight_decay_end is None or self.weight_decay > 0,
            "weight_decay_end is given, but weight_decay=0; give both, or none.",
        )


def run(settings: Settings) -> int:
    """Pretrain until done or told to stop; returns 0, or 85 when stopped with the state saved (or none made)."""
    from jobs.pretraining import Pretraining

    return learn(settings, lambda: Pretraining(settings))
