"""Convert images of other programs and surveys into a data set of shards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deeplense.data.conditions import listed, read_sky, read_targets, split_classes
from jobs.bounds import read_part
from jobs.conditions import counts_with
from jobs.data.source_settings import ARCHIVES, OF_COLUMNS, SourceSettings
from jobs.settings import FREE, require

OF_LABELS = counts_with(layout=(*ARCHIVES, "files", "catalogue", "cubes", "dataset"))
"""Metadata of settings on labels that are a column."""
BASIC = (
    "layout",
    "source",
    "output",
    "val_fraction",
    "test_fraction",
    "catalog",
    "label_key",
    "bands",
    "crop",
    "unit",
    "pixel_scale",
    "seed",
)
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings(SourceSettings):
    """Settings of `deeplense pack`: what to pack and how."""

    output: Path
    """folder of the data set; each split is written to a subfolder"""
    val_fraction: float = 0.0
    """fraction of the images of each class for the split val, if the layout has no splits"""
    test_fraction: float = 0.0
    """fraction of the images of each class for the split test, if the layout has no splits"""
    seed: int = 0
    """random seed of the order in the shards and of the random splits"""
    dtype: Literal["source", "float32", "float16"] = "source"
    """data type of the stored pixels; source: integers stay integers, floats become float32. float16 keeps 3
    significant digits"""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """lossless compression of each stored image; needs the package hdf5plugin. Uncompressed images are read fastest"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N writes only every N-th shard, starting from the K-th; the part that ends last completes the data set"""
    grades: Path | None = None
    """CSV file with the columns id and grade: the grades become the labels, and images without a grade are left out"""
    classes: str = ""
    """names of the classes in the order of their indices, comma-separated; by default all, sorted. Where labels are
    a column also conditions, such as lens:grade>=2,other:grade<1"""
    targets: str = field(default="", metadata=OF_COLUMNS)
    """numeric columns to store as regression targets, with their units: theta_E:arcsec,z_lens"""
    group: str = field(default="", metadata=OF_COLUMNS)
    """column that groups images: those with the same value stay in one split and one fold"""
    sky: str = field(default="", metadata=OF_COLUMNS)
    """RA,DEC,ARCSEC: two columns in degrees and a distance; images within ARCSEC of each other, also through chains of
    neighbours, stay in one split and one fold"""
    label_key: str = field(default="label", metadata=OF_LABELS)
    """name of the column with the labels"""
    label: str = ""
    """class of all images of the source; classes then lists all classes of the data sets that are trained on together
    """
    unlabelled: Literal[0, 1] = field(default=0, metadata=OF_LABELS)
    """1 packs all images, without labels"""

    def __post_init__(self) -> None:
        fractions = (self.val_fraction, self.test_fraction)
        require(
            min(fractions) >= 0 and sum(fractions) < 1,
            f"val_fraction and test_fraction are {fractions}; their sum must be below 1.",
        )
        split_classes(listed(self.classes))
        read_targets(self.targets)
        read_sky(self.sky)
        if self.part is not None:
            read_part(self.part)
        super().__post_init__()
        require(
            self.grades is None or (self.label_key == "label" and not self.unlabelled),
            "the labels are those of --grades; leave out label_key and unlabelled.",
        )
        require(
            not self.label or (self.label_key == "label" and not self.unlabelled and self.grades is None),
            "label gives all images one class; leave out label_key, unlabelled and grades.",
        )
        require(
            not self.label or not self.classes or self.label in listed(self.classes),
            f"label={self.label} is not one of --classes {self.classes}; add it.",
        )
        labels = self.layout not in ("files", "cubes") or self.catalog or self.label_key == "label"
        require(bool(labels), f"label_key={self.label_key} must be a column of a catalogue; give --catalog CSV.")
