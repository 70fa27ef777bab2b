"""Make images by a trained diffusion model, as a data set. The same command continues what was stopped or killed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import FREE, require
from jobs.learning import import_without, refuse_outside
from jobs.parts import read_part

USUAL_GUIDANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make, and by which model."""

    run: str
    """folder of a run of `deeplense diffuse`, or its W&B id"""
    output: Path
    """folder of the data set; the split becomes a folder in it"""
    num_images: int
    """how many; image k is a function of the weights, the seed and k alone"""
    sampler: Literal["ddpm", "ddim", "dpm_solver", "heun"] = "dpm_solver"
    """ddpm: all times, as it was learnt; ddim: first order; dpm_solver: second order, one evaluation a step; heun:
    second order, two"""
    num_steps: int = 50
    """of the sampler; ddpm wants as many as there are times"""
    guidance: float = USUAL_GUIDANCE
    """by how much the images are what they are told to be: 0 not, 1 as learnt, above 1 exaggerated"""
    conditions: str = ""
    """what all images are told to be, such as class=axion,theta_E=1.2; by default each is told what is known of an
    image that was learnt from, in turn"""
    weights: Literal["last", "best"] = "last"
    """those of the last checkpoint, or those of the lowest loss on images that were not learnt from"""
    split: str = "train"
    """name of the split"""
    seed: int = 0
    """equal numbers of different seeds are different images"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the network"""
    compile: Literal[0, 1] = 0
    """1: let PyTorch compile the network, and record it for GPUs: a minute at first, and faster after"""
    batch_size: int = 64
    """images at a time, always so many, for another number changes the last digits"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """where to compute"""
    num_workers: int = field(default=0, metadata=FREE)
    """processes; 0 for one on each core, or one for a GPU. The bytes do not depend on it"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N makes only every N-th shard, from the K-th on; whichever part ends last completes the split"""
    runs_root: Path = field(default=Path("runs"), metadata=FREE)
    """where runs are looked for by W&B id"""

    def __post_init__(self) -> None:
        refuse_outside(self, ("num_images", "num_steps", "batch_size"), lambda value: value > 0, "above 0")
        refuse_outside(self, ("seed", "guidance"), lambda value: value >= 0, "0 or more")
        require(self.split.isidentifier(), f"split={self.split!r} must be a plain name, such as train, val or test.")
        if self.part is not None:
            read_part(self.part)


def run(settings: Settings) -> int:
    """Write the split; a second call with the same settings continues or finds it done."""
    import_without("timm", "wandb")
    from jobs.sampling import sample

    return sample(settings)
