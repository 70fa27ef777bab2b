"""Train a diffusion model that generates images. To resume a run that was stopped or killed, run the same command
again."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from deeplense.diffusion.zoo import SCHEDULES
from jobs.conditions import GIVEN, counts_with
from jobs.frame.settings import LearningSettings
from jobs.settings import FREE, refuse_outside, require

CLASS = "class"

if TYPE_CHECKING:
    NoiseSchedule = str
else:
    NoiseSchedule = Literal[tuple(SCHEDULES)]
BASIC = ("run", "dataset", "model_name", "conditions", "epochs", "batch_size", "lr", "device", "seed")
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """Which diffusion model to train, and how."""

    model_name: Literal["unet", "unet_small", "unet_earlier"] = "unet"
    """unet: four levels with 64 to 512 channels; unet_small: 16 to 64 channels, for a CPU; unet_earlier: as in the
    earlier work"""
    noise_schedule: NoiseSchedule = "cosine"
    """noise schedule of the diffusion process"""
    num_times: int = 1000
    """number of time steps of the noise schedule"""
    predict: Literal["eps", "v", "x0"] = "v"
    """prediction target of the network: eps: the noise; v: alpha noise - sigma image; x0: the image"""
    loss: Literal["l2", "huber", "l1"] = "l2"
    """loss function; l1, used in the earlier work, predicts the median and loses faint arcs below the noise"""
    min_snr_gamma: float | None = 5.0
    """min-SNR loss weighting: weight min(SNR, gamma), as an error of the image, so large structure is learned fast;
    null: equal weights at all times, which is better for instrument noise and small structure"""
    conditions: str = ""
    """comma-separated conditions of the model: class, and names of continuous targets, such as log10_axion_mass,theta_E
    """
    drop_share: float = field(default=0.1, metadata=counts_with(conditions=GIVEN))
    """fraction of the training images whose conditions are dropped, for classifier-free guidance"""
    flips: Literal[0, 1] = 0
    """1: augment with flips and quarter turns"""
    ema_decay: float = 0.999
    """decay of the exponential moving average of the weights, which generates the images"""
    lr: float = 2e-4
    """peak learning rate"""
    warmup_epochs: float = 1.0
    """epochs of linear warm-up of the learning rate to lr"""
    clip_grad: float | None = 1.0
    """maximum norm of the gradient"""
    num_sampled: int = 64
    """number of images generated at each evaluation with 20 steps of dpm_solver and compared with the training images;
    0 for none"""
    stop_on_copies: Literal[0, 1] = field(default=0, metadata=FREE | counts_with(num_sampled=GIVEN))
    """1: end with an error if the generated images are copies of training images"""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, ("num_times",), lambda value: value > 1, "2 or more (usually 1000)")
        refuse_outside(self, ("drop_share", "ema_decay"), lambda value: 0 <= value < 1, "at least 0 and below 1")
        refuse_outside(self, ("num_sampled",), lambda value: value >= 0, "0 or more")
        refuse_outside(self, ("min_snr_gamma",), lambda value: value is None or value > 0, "above 0")
        names = self.condition_names
        require(
            len(set(names)) == len(names),
            f"conditions={self.conditions} contains a duplicate; give each condition once, separated by commas.",
        )
        require(
            not self.fsdp,
            "fsdp=1 does not support the moving average of the weights; leave out --fsdp.",
        )

    @property
    def condition_names(self) -> list[str]:
        """The names of the conditions, the class first."""
        names = [name.strip() for name in self.conditions.split(",")] if self.conditions else []
        return sorted(names, key=lambda name: name != CLASS)
