"""Convert images of other programs and surveys into a data set of shards."""

from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Literal

from deeplense.data.conditions import listed, parse_condition, read_sky, read_targets, split_classes
from jobs.bounds import read_part
from jobs.conditions import GIVEN, conditions_of, counts_with
from jobs.settings import FREE, require

OF_ARCHIVES, OF_STAMPS = counts_with(layout="npz"), counts_with(layout=("npz", "files"))
OF_CATALOGUES, OF_COLUMNS = counts_with(catalog=GIVEN), counts_with(catalog=GIVEN, layout="npz")
"""Metadata of settings that name columns: those of a catalogue, or arrays of an npz file."""
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
class Settings:
    """Settings of `deeplense pack`: what to pack and how."""

    layout: Literal["deeplense", "gsoc", "lens-finding", "files", "npz"]
    """layout of the source. deeplense: {axion,cdm,no_sub}/*.npy, also below train, val and test; gsoc:
    {train,val}/{no,sphere,vort}/*.npy; lens-finding: {lenses,nonlenses}/*.npy with indices.pkl; files: *.npy in one
    folder; npz: one file with arrays of images and columns"""
    source: Path
    """folder or file to read"""
    output: Path
    """folder of the data set; each split is written to a subfolder"""
    val_fraction: float = 0.0
    """fraction of the images of each class for the split val, if the layout has no splits"""
    test_fraction: float = 0.0
    """fraction of the images of each class for the split test, if the layout has no splits"""
    seed: int = 0
    """random seed of the order in the shards and of the random splits"""
    crop: int | None = None
    """keep only the central crop x crop pixels"""
    fill_nan: float | None = None
    """value that replaces non-finite pixels; by default they are an error"""
    dtype: Literal["source", "float32", "float16"] = "source"
    """data type of the stored pixels; source: integers stay integers, floats become float32. float16 keeps 3
    significant digits"""
    scale: float = 1.0
    """for images stored as integers: a pixel has the value stored x scale + zero, like BSCALE and BZERO in FITS"""
    zero: float = 0.0
    """offset of the pixel values, see scale"""
    unit: str = ""
    """unit of the pixel values, such as nJy"""
    pixel_scale: float | None = None
    """side of a pixel in arcsec"""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """lossless compression of each stored image; needs the package hdf5plugin. Uncompressed images are read fastest"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N writes only every N-th shard, starting from the K-th; the part that ends last completes the data set"""
    catalog: Path | None = None
    """CSV file with a row for each image, matched by the name of the image"""
    join: Literal["name", "order"] = field(default="name", metadata=OF_CATALOGUES)
    """how rows are matched to images; order (npz only): row k of the catalogue belongs to image k"""
    name_column: str = field(default="", metadata=OF_CATALOGUES)
    """column of the catalogue with the names of the images; by default name, id, file or similar"""
    unmatched: Literal["refuse", "leave_out"] = field(default="refuse", metadata=OF_CATALOGUES)
    """refuse: unmatched images or rows are an error; leave_out: skip images without a row in the catalogue, and rows
    without an image"""
    where: str = field(default="", metadata=OF_COLUMNS)
    """keep only images that meet these conditions, comma-separated: COLUMN=VALUE, or with !=, <, <=, >, >=; COLUMN!=
    keeps those that have a value"""
    classes: str = ""
    """names of the classes in the order of their indices, comma-separated; by default all, sorted. For npz and files
    also conditions, such as lens:grade>=2,other:grade<1"""
    targets: str = field(default="", metadata=OF_COLUMNS)
    """numeric columns to store as regression targets, with their units: theta_E:arcsec,z_lens"""
    group: str = field(default="", metadata=OF_COLUMNS)
    """column that groups images: those with the same value stay in one split and one fold"""
    sky: str = field(default="", metadata=OF_COLUMNS)
    """RA,DEC,ARCSEC: two columns in degrees and a distance; images within ARCSEC of each other, also through chains of
    neighbours, stay in one split and one fold"""
    label_key: str = field(default="label", metadata=OF_STAMPS)
    """npz, files: name of the column with the labels"""
    unlabelled: Literal[0, 1] = field(default=0, metadata=OF_STAMPS)
    """npz, files: 1 packs all images, without labels"""
    image_key: str = field(default="images", metadata=OF_ARCHIVES)
    """name of the array with the images"""
    name_key: str = field(default="", metadata=OF_ARCHIVES)
    """name of the array with the names of the images; by default name, id, file or similar"""
    axes: Literal["auto", "NCHW", "NHWC"] = field(default="auto", metadata=OF_STAMPS)
    """npz, files: whether the bands are the first or the last axis of an image, if its shape is ambiguous"""
    bands: str = field(default="", metadata=OF_STAMPS)
    """npz, files: comma-separated names of the bands"""

    def __post_init__(self) -> None:
        fractions = (self.val_fraction, self.test_fraction)
        require(
            min(fractions) >= 0 and sum(fractions) < 1,
            f"val_fraction and test_fraction are {fractions}; their sum must be below 1.",
        )
        require(self.crop is None or self.crop > 0, f"crop={self.crop} must be above 0.")
        require(
            self.pixel_scale is None or 0 < self.pixel_scale < inf,
            f"pixel_scale={self.pixel_scale} must be above 0 and finite, in arcsec.",
        )
        for condition in listed(self.where):
            parse_condition(condition)
        split_classes(listed(self.classes))
        read_targets(self.targets)
        read_sky(self.sky)
        if self.part is not None:
            read_part(self.part)
        for name, condition in conditions_of(type(self), {}):
            counts = condition.holds(vars(self)) or name not in given(self)
            require(
                counts, f"{name} has an effect only {condition.where({})}; leave it out, or {condition.remedy({})}."
            )
        require(
            self.layout == "npz" or self.join == "name",
            "join=order has an effect only with --layout npz; files are matched by name. Leave it out.",
        )
        labels = self.layout != "files" or self.catalog or self.label_key == "label"
        require(bool(labels), f"label_key={self.label_key} must be a column of a catalogue; give --catalog CSV.")


def given(settings: Settings) -> list[str]:
    """Return the names of the settings that differ from their defaults."""
    return [each.name for each in fields(settings) if getattr(settings, each.name) != each.default]
