"""Measure this machine: simulation against lenstronomy, training against a bare PyTorch loop, or checkpoints against
plain copies and files. Ratios are of one run, in turns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    what: Literal["simulate", "train", "checkpoint"] = field(metadata={"help": "simulate, train or checkpoint"})
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
    folder: Path | None = None
    """checkpoint: where to write for a while, some 6 GB; by default the system's folder for such files"""
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

    if settings.what == "checkpoint":
        return run_checkpoint(settings)
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


def run_checkpoint(settings: Settings) -> int:
    """Print the table of checkpoints, and write it if asked."""
    from deeplense.files import write_json
    from jobs.measure_checkpoint import measure_checkpoint, tell

    rows = measure_checkpoint(settings)
    tell(rows)
    if settings.output:
        write_json(settings.output, rows)
    return 0
