"""Settings that say how images of other programs and surveys are read, without what is done with them."""

from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Literal

from deeplense.data.conditions import listed, parse_condition, read_targets
from jobs.conditions import GIVEN, conditions_of, counts_with
from jobs.settings import require

LAYOUTS = Literal[
    "deeplense",
    "gsoc",
    "lens-finding",
    "folders",
    "files",
    "catalogue",
    "cubes",
    "npz",
    "hdf5",
    "parquet",
    "dataset",
]
ARCHIVES = ("npz", "hdf5", "parquet")
"""Layouts of one file with an array of images and columns beside them."""
WITH_COLUMNS = (*ARCHIVES, "catalogue", "dataset")
"""Layouts that have columns without another catalogue."""
IN_FILES = ("files", "folders", "catalogue")
"""Layouts with a file, or several, for each image."""
IN_ORDER = (*ARCHIVES, "cubes")
"""Layouts whose images may be matched to the rows of a catalogue by their order."""
OF_CATALOGUES = counts_with(catalog=GIVEN)
OF_COLUMNS = counts_with(catalog=GIVEN, layout=WITH_COLUMNS, grades=GIVEN)
"""Metadata of settings that name columns: those of a catalogue, or arrays beside the images."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """How a source of images is read. `jobs.data.source` opens it."""

    layout: LAYOUTS
    """layout of the source. deeplense: {axion,cdm,no_sub}/*.npy, also below train, val and test; gsoc:
    {train,val}/{no,sphere,vort}/*.npy; lens-finding: {lenses,nonlenses}/*.npy with indices.pkl; folders: a folder per
    class, with any names, also below train, val and test; files: images in one folder; catalogue: a table names the
    files; cubes: FITS or npy files of many images, one per band; npz, hdf5, parquet: one file with images and columns;
    dataset: a data set of deeplense. Images are .npy, .fits, .png, .jpg or .tif"""
    source: Path | None = None
    """folder or file to read; with layout catalogue, the folder that contains the files, by default that of the
    catalogue"""
    bands: str = field(default="", metadata=counts_with(layout=(*IN_FILES, "cubes", *ARCHIVES)))
    """comma-separated names of the bands, in order. In FITS files with several images the names of the extensions,
    such as VIS_BGSUB,NIR_Y_BGSUB or SCI:2; with pattern, and in cubes, the names in those of the files. NAME=VIS_BGSUB
    stores a band under another name"""
    only_bands: str = ""
    """comma-separated names of the bands that are used, in order, as they are stored; by default all"""
    pattern: str = field(default="", metadata=counts_with(layout=("files", "folders", "cubes")))
    """names of the files if there is one per band, such as {id}_{band}.fits or {id}/{band}.fits; cubes: {band}.fits"""
    hdu: str = field(default="", metadata=counts_with(layout=(*IN_FILES, "cubes")))
    """FITS: name or number of the extension with the image; by default the only one, or those that bands names"""
    resample: str = field(default="", metadata=counts_with(layout=IN_FILES))
    """FITS: band to whose pixels the others are rebinned, by exact overlap of areas; by default bands with other
    pixels are an error"""
    axes: Literal["auto", "NCHW", "NHWC"] = field(
        default="auto", metadata=counts_with(layout=("npz", "files", "folders", "catalogue", "hdf5", "parquet"))
    )
    """whether the bands are the first or the last axis of an image, if its shape is ambiguous"""
    image_key: str = field(default="images", metadata=counts_with(layout=ARCHIVES))
    """name of the array or column with the images"""
    name_key: str = field(default="", metadata=counts_with(layout=ARCHIVES))
    """name of the array or column with the names of the images; by default name, id, file or similar"""
    catalog: Path | None = None
    """table with a row for each image, matched by the name of the image: .csv, .ecsv, .fits, .parquet or .txt"""
    file_column: str = field(default="", metadata=counts_with(layout="catalogue"))
    """column with the file of each image, relative to source; by default file, filename, path or similar"""
    hdu_column: str = field(default="", metadata=counts_with(layout="catalogue"))
    """column with the name or number of the FITS extension of each image"""
    join: Literal["name", "order"] = field(default="name", metadata=OF_CATALOGUES)
    """how rows are matched to images; order (npz, hdf5, parquet, cubes): row k of the catalogue belongs to image k"""
    name_column: str = field(default="", metadata=OF_CATALOGUES)
    """column of the catalogue with the names of the images; by default name, id, file or similar"""
    unmatched: Literal["refuse", "leave_out"] = field(default="refuse", metadata=OF_CATALOGUES)
    """refuse: unmatched images or rows are an error; leave_out: skip images without a row in the catalogue, and rows
    without an image"""
    where: str = field(default="", metadata=OF_COLUMNS)
    """keep only images that meet these conditions, comma-separated: COLUMN=VALUE, or with !=, <, <=, >, >=; COLUMN!=
    keeps those that have a value"""
    keep: str = field(default="", metadata=OF_COLUMNS)
    """columns that are kept with the images, with their units: ra,dec,mag_g:mag"""
    crop: int | None = None
    """keep only the central crop x crop pixels"""
    fill_nan: float | None = None
    """value that replaces non-finite pixels; by default they are an error"""
    scale: float = 1.0
    """for images stored as integers: a pixel has the value stored x scale + zero, like BSCALE and BZERO in FITS"""
    zero: float = 0.0
    """offset of the pixel values, see scale"""
    unit: str = ""
    """unit of the pixel values, such as nJy; by default that of the headers"""
    pixel_scale: float | None = None
    """side of a pixel in arcsec; by default that of the headers"""

    def __post_init__(self) -> None:
        require(
            self.layout != "catalogue" or self.catalog is not None,
            "--layout catalogue needs a table that names the files; give --catalog FILE.",
        )
        require(self.names_source, "give --source, the folder or file to read.")
        require(self.crop is None or self.crop > 0, f"crop={self.crop} must be above 0.")
        require(
            self.pixel_scale is None or 0 < self.pixel_scale < inf,
            f"pixel_scale={self.pixel_scale} must be above 0 and finite, in arcsec.",
        )
        for condition in listed(self.where):
            parse_condition(condition)
        read_targets(self.keep, setting="keep")
        refuse_idle(self)
        require(
            self.layout in IN_ORDER or self.join == "name",
            "join=order has an effect only with --layout npz, hdf5, parquet or cubes; files are matched by name. "
            "Leave it out.",
        )
        names = self.names_of_bands
        unique = len(set(names)) == len(set(names.values())) == len(listed(self.bands))
        require(unique and all(names), f"--bands {self.bands}: give each band a unique name.")
        require(
            not self.resample or not names or self.resample in names,
            f"resample={self.resample} must be one of --bands {self.bands}.",
        )

    @property
    def names_of_bands(self) -> dict[str, str]:
        """The name under which each band is stored, by its name in the files."""
        pairs = [each.partition("=") for each in listed(self.bands)]
        return {(own if sign else name).strip(): name.strip() for name, sign, own in pairs}

    @property
    def names_source(self) -> bool:
        """Whether the folder or file to read is given."""
        return self.source is not None or (self.layout == "catalogue" and self.catalog is not None)

    @property
    def origin(self) -> Path:
        """The folder or file to read."""
        if self.source is not None:
            return self.source
        assert self.catalog is not None
        return self.catalog.parent


def refuse_idle(settings: SourceSettings) -> None:
    """Raise ValueError, naming the first, if a setting was changed that has no effect."""
    for name, condition in conditions_of(type(settings), {}):
        counts = condition.holds(vars(settings)) or name not in given(settings)
        require(counts, f"{name} has an effect only {condition.where({})}; leave it out, or {condition.remedy({})}.")


def given(settings: SourceSettings) -> list[str]:
    """Return the names of the settings that differ from their defaults."""
    return [each.name for each in fields(settings) if getattr(settings, each.name) != each.default]
