"""Measure speed on this machine and compare it with other packages: simulation with lenstronomy, training and
predictions with a bare PyTorch loop, reading images and saving checkpoints with plain copies and other packages, random
views with torchvision, pretraining with lightly, training of and sampling from diffusion models with diffusers.
Both sides are timed alternately in one run. (`deeplense benchmark models` and `benchmark labels` are separate jobs.)"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.conditions import counts_with
from jobs.settings import require

DEFAULTS = {
    "simulate": {"num_images": 96},
    "train": {"batch_size": 64, "model_name": "resnet18"},
    "pretrain": {"batch_size": 64, "model_name": "vit_small"},
    "data": {"num_images": 20_000, "batch_size": 256},
    "views": {"batch_size": 64},
    "diffuse": {"batch_size": 16, "model_name": "unet_small"},
    "sample": {"batch_size": 16, "model_name": "unet_small"},
    "predict": {"batch_size": 256, "num_images": 1024, "model_name": "resnet18"},
}
"""The values of settings that are 0 or empty, for each measurement."""


def of(*what: str) -> dict[str, Any]:
    """Return the metadata of a setting that has an effect only with these measurements."""
    return counts_with(what=what)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense benchmark`: what to measure."""

    what: Literal["simulate", "train", "data", "checkpoint", "views", "pretrain", "diffuse", "sample", "predict"] = (
        field(metadata={"help": "what to measure"})
    )
    model: Literal["Model_I", "Model_II", "Model_III"] = field(default="Model_III", metadata=of("simulate", "train"))
    """simulate, train: survey of the simulated images"""
    preset: Literal["published", "noisy", "physical"] = field(default="noisy", metadata=of("simulate"))
    """simulate: preset of the simulation; published models the vortex as 100 point masses, the others as a line"""
    model_name: str = field(default="", metadata=of("train", "pretrain", "diffuse", "sample", "predict"))
    """train, pretrain, predict: a model of timm or of the zoo; by default resnet18, vit_small for pretrain. diffuse,
    sample: a U-Net of `deeplense diffuse`; by default unet_small"""
    precision: Literal["fp32", "bf16"] = field(default="fp32", metadata=of("pretrain", "diffuse", "sample"))
    """pretrain, diffuse, sample: numerical precision of both sides"""
    batch_size: int = field(
        default=0, metadata=of("train", "pretrain", "diffuse", "data", "views", "sample", "predict")
    )
    """train, pretrain, diffuse: images per update; data, predict: images per batch; views, sample: images per round; 0:
    64 for train, pretrain and views, 256 for data and predict, 16 for diffuse and sample"""
    num_images: int = field(default=0, metadata=of("simulate", "data", "predict"))
    """simulate: images per class and round; data: images per epoch; predict: images per round; 0: 96, 20000 and 1024"""
    image_size: int = field(default=64, metadata=of("data", "diffuse", "sample", "predict"))
    """data, diffuse, sample, predict: side of the images in pixels"""
    dtype: Literal["float32", "float16", "uint8"] = field(default="float32", metadata=of("data"))
    """data: data type of the stored images"""
    num_steps: int = field(default=12, metadata=of("train", "sample"))
    """train: updates per round; sample: sampling steps (evaluations of the network)"""
    rounds: int = 5
    """number of times each side is timed, alternately; the median is reported"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(
        default="auto", metadata=of("train", "pretrain", "diffuse", "sample", "predict")
    )
    """train, pretrain, diffuse, sample, predict: device to compute on"""
    compile: Literal[0, 1] = field(default=0, metadata=of("sample"))
    """sample: 1 compiles the network of deeplense (torch.compile)"""
    folder: Path | None = field(default=None, metadata=of("data", "checkpoint"))
    """data, checkpoint: folder on the disk to measure; by default that for temporary files. Up to 6 GB are written
    there and removed afterwards"""
    memory: Literal[0, 1] = field(default=0, metadata=of("data"))
    """data: 1 also measures the memory use of our reader for many images (takes a minute and 1 GB of disk)"""
    stamps: Literal[0, 1] = field(default=0, metadata=of("data"))
    """data: 1 also measures how fast `deeplense pack` reads FITS stamps"""
    output: Path | None = None
    """JSON file for the results, with the machine, versions and settings"""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_steps", "rounds"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0.")
        for name in ("batch_size", "num_images"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be 0 (the default) or more.")
        require(self.folder is None or self.folder.is_dir(), f"folder={self.folder} is not a folder; create it first.")
