"""Evaluate a trained run on images that it never saw, and write a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import FREE, require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to evaluate, and on what."""

    run: str
    """folder of a run, or its W&B id, or a pattern of folders that held out different folds: their predictions are
    put together"""
    dataset: str | None = None
    """another data set than the run's own: a folder or a name below data_root"""
    split: str = "test"
    """which split; for runs with num_folds it is the fold that was held out"""
    weights: Literal["best", "last"] = "best"
    """the best on the validation samples, or those of the last checkpoint"""
    output: Path | None = None
    """folder of the report; by default RUN/report"""
    explain: int = 0
    """held-out images for which the report shows what the network looked at, the first of each class; of a pattern of
    folders, the first run's"""
    runs_root: Path = Path("runs")
    """where runs are looked for by W&B id"""
    batch_size: int = field(default=256, metadata=FREE)
    """images at a time; changes no number but by rounding"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """where to compute"""

    def __post_init__(self) -> None:
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be above 0.")
        require(self.explain >= 0, f"explain={self.explain} must be 0 or more.")


def run(settings: Settings) -> int:
    """Write the report and print its numbers."""
    from jobs.evaluation_run import evaluate

    return evaluate(settings)
