"""Predict images with trained runs, labelled or not, and write a table of predictions. To resume a job that was stopped
or killed, run the same command again."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

from jobs.bounds import read_part
from jobs.conditions import GIVEN, counts_with
from jobs.data.source_settings import LAYOUTS, SourceSettings
from jobs.settings import FREE, require

ALL = "all"
BASIC = (
    "run",
    "dataset",
    "split",
    "output",
    "layout",
    "bands",
    "catalog",
    "crop",
    "views",
    "embeddings",
    "prevalence",
    "coverage",
    "weights",
    "device",
)
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings(SourceSettings):
    """Settings of `deeplense predict`: which runs predict which images."""

    run: str
    """run folder or W&B id; several form an ensemble: comma-separated, or a pattern such as 'runs/fold*'"""
    dataset: str = ""
    """data set to predict: a folder or a name below data_root. With another layout, the folder or file of the images"""
    output: Path
    """folder of the tables"""
    layout: LAYOUTS = "dataset"
    """layout of the images: dataset for a data set of deeplense; folders, files, catalogue, cubes, npz, hdf5, parquet
    and others for files, which are read as `deeplense pack` would read them"""
    split: str = field(default=ALL, metadata=counts_with(layout="dataset"))
    """split to predict; all: all splits of the data set, one after the other"""
    views: Literal[1, 4, 8] = 1
    """number of views of each image whose logits are averaged: 4 adds quarter turns, 8 also flips"""
    embeddings: Literal[0, 1] = 0
    """1: also write the features before the last layer of the first run, as float16"""
    calibrate: Literal[0, 1] = 1
    """1: divide the logits of each run by a temperature, fitted to its validation images"""
    allow_pretrained_overlap: Literal[0, 1] = 0
    """1: also calibrate with images that a backbone was pretrained on, without labels"""
    prevalence: float | None = None
    """fraction of the class class_name among the images; by default probabilities are for the class fractions that the
    runs were trained with"""
    class_name: str = field(default="", metadata=counts_with(prevalence=GIVEN))
    """class that prevalence is the fraction of; may be left out if the classes include lens, lenses or lensed"""
    coverage: float | None = None
    """write sets of classes that contain the true class with this probability, such as 0.9"""
    weights: Literal["best", "last"] = "best"
    """best: the weights selected on the validation images; last: those of the last checkpoint"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """floating-point precision of the networks"""
    batch_size: int = 256
    """images per batch; affects results only by rounding"""
    images_per_file: int | None = None
    """images per file of the table, the unit that a stopped job repeats; by default at most 16,384"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N writes only every N-th file, starting with the K-th; the part that ends last completes the table"""
    num_workers: int = field(default=0, metadata=FREE)
    """number of processes; 0 for one per core, or one for a GPU; the output does not depend on it"""
    device: Literal["auto", "cuda", "mps", "cpu"] = field(default="auto", metadata=FREE)
    """device to compute on; auto: a GPU if there is one"""
    data_root: Path = field(default=Path("datasets"), metadata=FREE | counts_with(layout="dataset"))
    """folder that contains the data sets"""
    runs_root: Path = field(default=Path("runs"), metadata=FREE)
    """folder that is searched for runs by W&B id"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.run.strip(", ")), "no run is given; give --run RUN, the folder of a trained run.")
        for name in ("prevalence", "coverage"):
            value = getattr(self, name)
            right = value is None or (isfinite(value) and 0 < value < 1)
            require(right, f"{name}={value} must be above 0 and below 1.")
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be above 0.")
        require(self.num_workers >= 0, f"num_workers={self.num_workers} must be 0 or more.")
        require(
            self.images_per_file is None or self.images_per_file > 0,
            f"images_per_file={self.images_per_file} must be above 0.",
        )
        if self.part is not None:
            read_part(self.part)

    @property
    def origin(self) -> Path:
        """The folder or file to read, if it is not a data set."""
        return Path(self.dataset) if self.dataset else super().origin

    @property
    def names_source(self) -> bool:
        """Whether the images are given."""
        require(not (self.dataset and self.source), "give --dataset or --source, not both: they mean the same.")
        return bool(self.dataset) or super().names_source
