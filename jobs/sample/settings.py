"""Generate a data set of images with a trained diffusion model. To resume a job that was stopped or killed, run the
same command again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deeplense.diffusion.zoo import SAMPLERS
from jobs.bounds import read_part
from jobs.settings import FREE, refuse_outside, require

if TYPE_CHECKING:
    Sampler = str
else:
    Sampler = Literal[tuple(SAMPLERS)]

USUAL_GUIDANCE = 1.0
BASIC = ("run", "output", "num_images", "sampler", "num_steps", "conditions", "guidance", "seed", "device")
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to generate, and with which model."""

    run: str
    """run folder of `deeplense diffuse`, or its W&B id"""
    output: Path
    """folder of the data set; the split becomes a subfolder"""
    num_images: int
    """number of images; image k depends only on the weights, the seed and k"""
    sampler: Sampler = "dpm_solver"
    """ddpm: all time steps, as in training; ddim: first order; dpm_solver: second order, one network evaluation per
    step; heun: second order, two evaluations per step"""
    num_steps: int = 50
    """number of steps of the sampler; with ddpm, fewer than num_times of the run make the images too smooth"""
    guidance: float = USUAL_GUIDANCE
    """classifier-free guidance scale: 0 ignores the conditions, 1 is the trained model, above 1 overemphasises them"""
    conditions: str = ""
    """conditions of all generated images, such as class=axion,theta_E=1.2; by default the conditions of the training
    images are used in turn"""
    weights: Literal["last", "best"] = "last"
    """last: weights of the last checkpoint; best: weights with the lowest validation loss"""
    split: str = "train"
    """name of the split"""
    seed: int = 0
    """random seed; image k differs between seeds"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """floating-point precision of the network"""
    compile: Literal[0, 1] = 0
    """1: compile the network with PyTorch (with CUDA graphs on a GPU); takes about a minute, then samples faster"""
    batch_size: int = 64
    """number of images per batch; another batch size changes the last digits of the pixels"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """device to compute on"""
    num_workers: int = field(default=0, metadata=FREE)
    """number of processes; 0 for one per core, or one for a GPU; the output does not depend on it"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N generates only every N-th shard, starting with the K-th; the part that ends last completes the split"""
    runs_root: Path = field(default=Path("runs"), metadata=FREE)
    """folder that is searched for a W&B run id"""

    def __post_init__(self) -> None:
        refuse_outside(self, ("num_images", "num_steps", "batch_size"), lambda value: value > 0, "above 0")
        refuse_outside(self, ("seed", "guidance"), lambda value: value >= 0, "0 or more")
        require(self.split.isidentifier(), f"split={self.split!r} must be a plain name, such as train, val or test.")
        if self.part is not None:
            read_part(self.part)
