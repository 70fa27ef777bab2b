"""Evaluate a trained run on held-out images, or evaluate generated images, and write a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.conditions import GIVEN, counts_with
from jobs.settings import FREE, require

OF_RUNS, OF_GENERATED = counts_with(generated=None), counts_with(generated=GIVEN)
BASIC = ("run", "dataset", "split", "weights", "output", "explain", "generated", "device")
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense evaluate`: what to evaluate and on which images."""

    run: str = ""
    """folder of a run, its W&B id, or a glob pattern of runs with different folds, whose predictions are pooled. With
    `generated`: comma-separated runs whose features are used for the distances"""
    dataset: str | None = None
    """data set to evaluate on, by default that of the run: a folder or a name below data_root. With `generated`: the
    data set of real images"""
    data_root: Path = field(default=Path("datasets"), metadata=FREE | OF_GENERATED)
    """folder that contains the data sets, for `generated`; a run stores its own"""
    split: str = "test"
    """split to evaluate on; for runs with num_folds, test is the held-out fold"""
    weights: Literal["best", "last"] = field(default="best", metadata=OF_RUNS)
    """best: the weights selected on the validation images; last: those of the last checkpoint"""
    output: Path | None = None
    """folder of the report; by default RUN/report for the run's own held-out images, RUN/report-NAME-SPLIT for other
    images, GENERATED/report for generated ones. A report on other images is never overwritten"""
    allow_pretrained_overlap: Literal[0, 1] = field(default=0, metadata=OF_RUNS)
    """1: also evaluate on images that the backbone was pretrained on, without labels; the report gives their number"""
    generated: Path | None = None
    """data set of generated images to compare with the real images of `dataset`"""
    fid_weights: Path | None = field(default=None, metadata=OF_GENERATED)
    """weights file of the Inception network that defines FID, for `generated`"""
    num_resamples: int = field(default=100, metadata=OF_GENERATED)
    """number of random half samples for the confidence intervals of the distances, for `generated`"""
    gate: float = field(default=0.9, metadata=OF_GENERATED)
    """threshold of the distance ratio (to the nearest training image, generated over held-out) below which generated
    images are reported as copies"""
    prevalence: float | None = field(default=None, metadata=OF_RUNS)
    """fraction of a class in a survey, such as 5e-4: the report then has purity and completeness for it, for each class
    against the rest"""
    top: int = field(default=0, metadata=OF_RUNS)
    """N: also report how many of the N images with the highest probability of a class are of that class"""
    survey_size: int = field(default=0, metadata=counts_with(top=GIVEN))
    """number of objects in the survey; with prevalence, also report how many of its best ranked objects, as many as top
    says, are expected to be of the class"""
    explain: int = field(default=0, metadata=OF_RUNS)
    """number of held-out images with explanation maps (attention, Grad-CAM) in the report, the first of each class; for
    a pattern of runs, from the first run"""
    runs_root: Path = field(default=Path("runs"), metadata=counts_with(run=GIVEN))
    """folder that is searched for runs by W&B id"""
    batch_size: int = field(default=256, metadata=FREE | OF_RUNS)
    """images per batch; affects results only by rounding"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE | counts_with(run=GIVEN))
    """device to compute on; auto: a GPU if there is one"""

    def __post_init__(self) -> None:
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be above 0.")
        require(
            bool(self.run) or self.generated is not None,
            "nothing to evaluate; give --run RUN, or --generated DIR with --dataset DIR.",
        )
        require(self.generated is not None or self.fid_weights is None, "fid_weights needs --generated DIR; add it.")
        require(self.num_resamples > 1, f"num_resamples={self.num_resamples} must be 2 or more.")
        require(0 < self.gate <= 1, f"gate={self.gate} must be above 0 and at most 1.")
        require(self.explain >= 0, f"explain={self.explain} must be 0 or more.")
        self.check_survey()

    def check_survey(self) -> None:
        """Raise ValueError if what is said of a survey cannot be."""
        known = self.prevalence is None or 0 < self.prevalence < 1
        require(known, f"prevalence={self.prevalence} must be above 0 and below 1, such as 5e-4.")
        require(self.top >= 0, f"top={self.top} must be 0 or more.")
        require(self.survey_size >= 0, f"survey_size={self.survey_size} must be 0 or more.")
        require(not self.survey_size or self.prevalence is not None, "survey_size needs --prevalence; add it.")
        require(
            not self.survey_size or self.top <= self.survey_size,
            f"top={self.top} is above survey_size={self.survey_size}; use {self.survey_size} or less.",
        )
