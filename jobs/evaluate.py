"""Evaluate a trained run on images that it never saw, or images that were generated, and write a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import FREE, require
from jobs.counting import GIVEN, counts_with

OF_RUNS, OF_GENERATED = counts_with(generated=None), counts_with(generated=GIVEN)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to evaluate, and on what."""

    run: str = ""
    """folder of a run, or its W&B id, or a pattern of folders that held out different folds: their predictions are
    put together. With `generated`, runs with commas between, whose features distances are taken of"""
    dataset: str | None = None
    """another data set than the run's own: a folder or a name below data_root. With `generated`, the real one"""
    data_root: Path = field(default=Path("datasets"), metadata=FREE | OF_GENERATED)
    """folder of data sets, for `generated`; a run has its own"""
    split: str = "test"
    """which split; for runs with num_folds, test is the fold that was held out"""
    weights: Literal["best", "last"] = field(default="best", metadata=OF_RUNS)
    """the best on the validation samples, or those of the last checkpoint"""
    output: Path | None = None
    """folder of the report; by default RUN/report for what the run itself holds out, RUN/report-NAME-SPLIT for other
    images, and that of `generated`. A report of other images is never replaced"""
    allow_pretrained_overlap: Literal[0, 1] = field(default=0, metadata=OF_RUNS)
    """1: evaluate also on images that the pretraining of the backbone saw, without labels; the report counts them"""
    generated: Path | None = None
    """data set of generated images, to be held against the real ones of `dataset`"""
    fid_weights: Path | None = field(default=None, metadata=OF_GENERATED)
    """file with the weights of Inception that FID is defined on, for `generated`"""
    num_resamples: int = field(default=100, metadata=OF_GENERATED)
    """half samples that the intervals of distances are made of, for `generated`"""
    gate: float = field(default=0.9, metadata=OF_GENERATED)
    """ratio of distances to the nearest image learnt from, below which generated images are called copies"""
    explain: int = field(default=0, metadata=OF_RUNS)
    """held-out images for which the report shows what the network looked at, the first of each class; of a pattern of
    folders, the first run's"""
    runs_root: Path = field(default=Path("runs"), metadata=counts_with(run=GIVEN))
    """where runs are looked for by W&B id"""
    batch_size: int = field(default=256, metadata=FREE | OF_RUNS)
    """images at a time; changes no number but by rounding"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """where to compute"""

    def __post_init__(self) -> None:
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be above 0.")
        require(
            bool(self.run) or self.generated is not None,
            "there is nothing to evaluate; give --run RUN, or --generated DIR with --dataset DIR.",
        )
        require(self.generated is not None or self.fid_weights is None, "fid_weights is for --generated DIR; give one.")
        require(self.num_resamples > 1, f"num_resamples={self.num_resamples} must be 2 or more.")
        require(0 < self.gate <= 1, f"gate={self.gate} must be above 0, and 1 at most.")
        require(self.explain >= 0, f"explain={self.explain} must be 0 or more.")


def run(settings: Settings) -> int:
    """Write the report and print its numbers."""
    if settings.generated is not None:
        from jobs.generated import evaluate_generated

        return evaluate_generated(settings)
    from jobs.evaluation_run import evaluate

    return evaluate(settings)
