"""Measure this machine: simulation against lenstronomy, or training against a bare PyTorch loop. Ratios are of one
run, in turns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import require


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
    """Print a table, and write it if asked."""
    from deeplense.files import write_json
    from jobs.measure import measure_simulation, measure_training
    from jobs.progress import say

    rows = measure_simulation(settings) if settings.what == "simulate" else measure_training(settings)
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        say(
            f"{row['what']:<{width}}  {row['ours']:9.1f} images/s   {row['other_name']} {row['other']:9.1f} images/s"
            f"   ratio {row['ratio']:.2f} [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]"
        )
    if settings.output:
        write_json(settings.output, rows)
    return 0
