"""Learn to make images by diffusion. The same command continues a run that was stopped or killed."""

from dataclasses import dataclass, field
from typing import Literal

from jobs.config import FREE, require
from jobs.counting import GIVEN, counts_with
from jobs.learning import LearningSettings, learn, refuse_outside

CLASS = "class"


@dataclass(frozen=True, kw_only=True)
class Settings(LearningSettings):
    """What to learn to make, and how."""

    model_name: Literal["unet", "unet_small", "unet_earlier"] = "unet"
    """U-Net of four levels with 64 to 512 channels; with 16 to 64, for a CPU; or as in the earlier work"""
    noise_schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    """how much noise there is at each time"""
    num_times: int = 1000
    """of the noise schedule"""
    predict: Literal["eps", "v", "x0"] = "v"
    """what the network is asked for: the noise, alpha noise - sigma image, or the image"""
    loss: Literal["l2", "huber", "l1"] = "l2"
    """l1, the earlier one, learns the median of what could be below the noise, and loses faint arcs"""
    min_snr_gamma: float | None = 5.0
    """times of little noise count by min(signal to noise, gamma), as an error of the image, which learns fast what is
    large; none: all times alike, which learns the noise of an instrument and small structure better"""
    conditions: str = ""
    """what images are told to be, with commas between: class, and names of numbers, such as log10_axion_mass,theta_E"""
    drop_share: float = field(default=0.1, metadata=counts_with(conditions=GIVEN))
    """of the images of which that is not said, for guidance"""
    flips: Literal[0, 1] = 0
    """1: flips and quarter turns"""
    ema_decay: float = 0.999
    """of the running mean of the weights, which makes the images"""
    lr: float = 2e-4
    """highest learning rate"""
    warmup_epochs: float = 1.0
    """in which the learning rate rises to lr"""
    clip_grad: float | None = 1.0
    """largest norm of the gradient"""
    num_sampled: int = 64
    """images made at each evaluation, by 20 steps of dpm_solver, and held against those learnt from; 0 for none"""
    stop_on_copies: Literal[0, 1] = field(default=0, metadata=FREE | counts_with(num_sampled=GIVEN))
    """1: end with an error where they are copies of what was learnt from"""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, ("num_times",), lambda value: value > 1, "2 or more (1000 is usual)")
        refuse_outside(self, ("drop_share", "ema_decay"), lambda value: 0 <= value < 1, "at least 0 and below 1")
        refuse_outside(self, ("num_sampled",), lambda value: value >= 0, "0 or more")
        refuse_outside(self, ("min_snr_gamma",), lambda value: value is None or value > 0, "above 0")
        names = self.condition_names
        require(
            len(set(names)) == len(names),
            f"conditions={self.conditions} names one twice; name each once, with commas between.",
        )
        require(not self.fsdp, "fsdp=1 keeps no running mean of the weights, which makes the images; leave out --fsdp.")

    @property
    def condition_names(self) -> list[str]:
        """What is said of images, the class first."""
        names = [name.strip() for name in self.conditions.split(",")] if self.conditions else []
        return sorted(names, key=lambda name: name != CLASS)


def run(settings: Settings) -> int:
    """Learn until done or told to stop; returns 0, or 85 when stopped with the state saved (or none made)."""
    from jobs.diffusing import Diffusion

    return learn(settings, lambda: Diffusion(settings))
