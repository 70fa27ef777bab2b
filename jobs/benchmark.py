"""Measure this machine: simulation against lenstronomy, or training against a bare PyTorch loop. Ratios are of one
run, in turns."""

import importlib
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.config import plain, require
from jobs.runs import environment, num_cores, version_of

MEASUREMENTS = {"simulate": "measure_simulation", "train": "measure_training"}
"""The module of each, and the function in it that makes the rows."""
PEERS = ("lenstronomy",)
"""Packages to compare with."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    what: Literal["simulate", "train"] = field(metadata={"help": "simulate or train"})
    model: Literal["Model_I", "Model_II", "Model_III"] = "Model_III"
    """kind of images"""
    preset: Literal["published", "noisy", "physical"] = "noisy"
    """simulate: published has the vortex as 100 points, the others as a line"""
    model_name: str = "resnet18"
    """train: a model of timm"""
    batch_size: int = 64
    """train: samples of an update"""
    num_images: int = 96
    """simulate: images of each class a round"""
    num_steps: int = 12
    """train: updates a round"""
    rounds: int = 5
    """each side is timed so often, in turns; the median counts"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """train: where"""
    output: Path | None = None
    """file for the numbers, as JSON"""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_images", "num_steps", "rounds"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0.")


def run(settings: Settings) -> int:
    """Print a table, and write it with its circumstances if asked."""
    from deeplense.files import write_json
    from jobs.measure import table_of
    from jobs.progress import say

    before = circumstances(settings)
    name = MEASUREMENTS[settings.what]
    rows = getattr(importlib.import_module(f"jobs.{name}"), name)(settings)
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
