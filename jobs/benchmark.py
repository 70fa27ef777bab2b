"""Measure this machine: simulation against lenstronomy, training against a bare PyTorch loop, reading images and saving
checkpoints against plain copies and other packages, random views against torchvision, pretraining against lightly,
diffusion models and sampling from them against diffusers.
Ratios are of one run, in turns. (`deeplense benchmark models` and `benchmark labels` are jobs of their own.)"""

import importlib
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jobs.config import plain, require
from jobs.counting import counts_with
from jobs.runs import environment, num_cores, version_of

DEFAULTS = {
    "simulate": {"num_images": 96},
    "train": {"batch_size": 64, "model_name": "resnet18"},
    "pretrain": {"batch_size": 64, "model_name": "vit_small"},
    "data": {"num_images": 20_000, "batch_size": 256},
    "views": {"batch_size": 64},
    "diffuse": {"batch_size": 16, "model_name": "unet_small"},
    "sample": {"batch_size": 16, "model_name": "unet_small"},
}
"""What a setting that is 0 stands for."""
PEERS = ("lenstronomy", "webdataset", "litdata", "mosaicml-streaming", "hdf5plugin", "lightly", "diffusers")
"""Packages to compare with, or that are needed for it."""


def of(*what: str) -> dict[str, Any]:
    """Metadata of a setting that counts with these measurements only."""
    return counts_with(what=what)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    what: Literal["simulate", "train", "data", "checkpoint", "views", "pretrain", "diffuse", "sample"] = field(
        metadata={"help": "simulate, train, data, checkpoint, views, pretrain, diffuse or sample"}
    )
    model: Literal["Model_I", "Model_II", "Model_III"] = field(default="Model_III", metadata=of("simulate", "train"))
    """simulate, train: kind of images"""
    preset: Literal["published", "noisy", "physical"] = field(default="noisy", metadata=of("simulate"))
    """simulate: published has the vortex as 100 points, the others as a line"""
    model_name: str = field(default="", metadata=of("train", "pretrain", "diffuse", "sample"))
    """train, pretrain: a model of timm, or of the zoo; by default resnet18, vit_small. diffuse,
    sample: a U-Net, as in `deeplense diffuse`; by default unet_small"""
    precision: Literal["fp32", "bf16"] = field(default="fp32", metadata=of("pretrain", "diffuse", "sample"))
    """pretrain, diffuse, sample: of both sides"""
    batch_size: int = field(default=0, metadata=of("train", "pretrain", "diffuse", "data", "views", "sample"))
    """train, pretrain, diffuse: samples of an update; data: images of a batch; views, sample: images of a round; 0 for
    64, data 256, diffuse and sample 16"""
    num_images: int = field(default=0, metadata=of("simulate", "data"))
    """simulate: images of each class a round; data: images of an epoch; 0 for 96 and 20000"""
    image_size: int = field(default=64, metadata=of("data", "diffuse", "sample"))
    """data, diffuse, sample: pixels of a side"""
    dtype: Literal["float32", "float16", "uint8"] = field(default="float32", metadata=of("data"))
    """data: as which the images are stored"""
    num_steps: int = field(default=12, metadata=of("train", "sample"))
    """train: updates a round; sample: evaluations of the network"""
    rounds: int = 5
    """each side is timed so often, in turns; the median counts"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(
        default="auto", metadata=of("train", "pretrain", "diffuse", "sample")
    )
    """train, pretrain, diffuse, sample: where"""
    compile: Literal[0, 1] = field(default=0, metadata=of("sample"))
    """sample: 1 to compile our network"""
    folder: Path | None = field(default=None, metadata=of("data", "checkpoint"))
    """data, checkpoint: a folder on the disk to be measured; by default that for temporary files. What is made there,
    up to 6 GB, is removed"""
    memory: Literal[0, 1] = field(default=0, metadata=of("data"))
    """data: 1 to measure the memory that our reader takes for many images, too (a minute, 1 GB of disk)"""
    output: Path | None = None
    """file for the numbers and their circumstances, as JSON"""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_steps", "rounds"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0.")
        for name in ("batch_size", "num_images"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be above 0, or 0 for a usual number.")
        require(self.folder is None or self.folder.is_dir(), f"folder={self.folder} is no folder.")


def run(settings: Settings) -> int:
    """Print a table, and write it with its circumstances if asked."""
    from deeplense.files import write_json
    from jobs.measuring.timing import table_of
    from jobs.progress import say

    usual = DEFAULTS.get(settings.what, {})
    settings = replace(settings, **{name: getattr(settings, name) or value for name, value in usual.items()})
    before = circumstances(settings)
    rows = importlib.import_module(f"jobs.measuring.{settings.what}").measure(settings)
    for line in table_of(rows):
        say(line)
    if settings.output:
        after = {"load_average_after": os.getloadavg(), "seconds": time.time() - before["unix_time"]}
        write_json(settings.output, before | after | {"rows": [asdict(row) for row in rows]})
    return 0


def circumstances(settings: Settings) -> dict[str, Any]:
    """What a number depends on: the machine, how busy it is, versions, settings."""
    here = environment()
    packages = here["packages"] | {name: version_of(name) for name in PEERS}
    return here | {
        "packages": packages,
        "settings": plain(settings),
        "num_cores": num_cores(),
        "unix_time": time.time(),
        "load_average_before": os.getloadavg(),
    }
