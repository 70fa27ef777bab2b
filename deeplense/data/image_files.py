"""An image from one file, or from one for each band: .npy, FITS, PNG, JPEG or TIFF."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.archives import AXES, Axes, band_axis
from deeplense.data.fits_files import Content, Hdu, chosen_parts, parts_of, read_data
from deeplense.data.fits_headers import EQUAL, Header, facts_of
from deeplense.data.foreign import read_npy
from deeplense.data.pictures import read_picture
from deeplense.data.rebinning import Grid, grid_of, rebinned
from deeplense.data.records import Facts, Loaded, Record, number_kind

NPY = (".npy",)
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz", ".fz")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = tuple(sorted((*NPY, *FITS, *PICTURES), key=len, reverse=True))
"""Endings of files that may be images, in lower case, the longest first."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files of images are read.

    Args:
        bands: names of the bands; empty for those of the files.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        hdu: name or number of the extension of a FITS file; "" for the default.
        resample: band to whose pixels the others are rebinned; "" to refuse other pixels.
        unit: unit of the pixels; "" for that of the headers.
        pixel_scale_arcsec: side of a pixel; None for that of the headers.
    """

    bands: Sequence[str] = ()
    axes: Axes = "auto"
    hdu: str = ""
    resample: str = ""
    unit: str = ""
    pixel_scale_arcsec: float | None = None

    def __post_init__(self) -> None:
        require_choice("axes", self.axes, AXES)


class Plane(NamedTuple):
    """One band, or all bands of a cube, of an image.

    Args:
        pixels: (H, W) or (C, H, W).
        facts: what the file says about them.
        header: its cards, if it is FITS.
        origin: the file, and its extension if there are several, for messages.
    """

    pixels: np.ndarray
    facts: Facts
    header: Header
    origin: str


def suffix_of(name: str) -> str:
    """Return the ending of the name of an image, as it is written; "" if it is no image.

    Example:
        >>> suffix_of("a.b.FITS.gz"), suffix_of("notes.txt")
        ('.FITS.gz', '')
    """
    lower = name.lower()
    return next((name[-len(ending) :] for ending in SUFFIXES if lower.endswith(ending)), "")


def stem_of(name: str) -> str:
    """Return the name of an image without its ending.

    Example:
        >>> stem_of("a.b.fits.gz"), stem_of("J1234.5+67")
        ('a.b', 'J1234.5+67')
    """
    return name[: len(name) - len(suffix_of(name))]


def load_image(record: Record, reading: Reading) -> Loaded:
    """Return the image (C, H, W) of a record, without targets.

    Args:
        record: the record.
        reading: how files are read.

    Raises:
        ValueError: a file holds something else, or its bands do not fit together; the message names the file.
    """
    if record.hdu:
        reading = replace(reading, hdu=record.hdu)
    if not record.more:
        planes = planes_of(record.path, reading)
    else:
        each = replace(reading, bands=())
        planes = [only_plane(path, each) for path in (record.path, *record.more)]
    if len(planes) == 1 and reading.resample:
        raise ValueError(f"{record.path}: all bands are in one image, so --resample has no effect; leave it out.")
    if len(planes) == 1:
        return alone(planes[0], record.path, reading)
    return together(planes, reading)


def only_plane(path: Path, reading: Reading) -> Plane:
    """Return the one band that a file holds.

    Args:
        path: the file.
        reading: how files are read.

    Raises:
        ValueError: it holds several bands.
    """
    (first, *more) = planes_of(path, reading)
    pixels = first.pixels
    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    if more or pixels.ndim != 2:
        raise ValueError(f"{path}: an image of shape {pixels.shape} instead of (H, W); one band per file is expected.")
    return first._replace(pixels=pixels)


def planes_of(path: Path, reading: Reading) -> list[Plane]:
    """Return the image of a file: one plane, or one for each band that is an extension of its own.

    Args:
        path: the file.
        reading: how files are read.

    Raises:
        ValueError: the file holds something else; the message names it.
    """
    suffix = suffix_of(path.name).lower()
    if suffix in FITS:
        return fits_planes(path, reading)
    if suffix in PICTURES:
        pixels, bands = read_picture(path)
        return [Plane(pixels, Facts(bands), {}, str(path))]
    if suffix in NPY:
        return [Plane(read_npy(path), Facts(), {}, str(path))]
    raise ValueError(f"{path}: not an image; known endings are {', '.join(sorted(SUFFIXES))}.")


def fits_planes(path: Path, reading: Reading) -> list[Plane]:
    """Return the image of a FITS file as planes.

    Args:
        path: the file.
        reading: how files are read.

    Raises:
        ValueError: the file is damaged, or it is not known which of its images are meant; the message names it.
    """
    try:
        with Content(path) as content:
            parts = parts_of(content)
            chosen = chosen_parts(parts, bands=reading.bands, hdu=reading.hdu)
            return [plane_of(path, part, read_data(content, part), alone=len(chosen) == 1) for part in chosen]
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error


def plane_of(path: Path, part: Hdu, pixels: np.ndarray, *, alone: bool) -> Plane:
    """Return a part of a FITS file as a plane; axes of length 1 before the last three are dropped.

    Args:
        path: the file.
        part: the part.
        pixels: its image.
        alone: whether it is the only one that is used.
    """
    while pixels.ndim > 3 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim not in (2, 3):
        told = f"an image of shape {pixels.shape} instead of (H, W) or (C, H, W)"
        raise ValueError(f"{told}; give --layout cubes if it holds many images")
    origin = str(path) if alone else f"{path} [{part.name or part.number}]"
    return Plane(pixels, facts_of(part.header, pixels.shape), part.header, origin)


def alone(plane: Plane, path: Path, reading: Reading) -> Loaded:
    """Return a plane with all bands as an image (C, H, W).

    Args:
        plane: the plane.
        path: its file, for messages.
        reading: how files are read.

    Raises:
        ValueError: it is no image of numbers.
    """
    pixels = plane.pixels
    if not number_kind(pixels.dtype) or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(
            f"{path}: {pixels.dtype} of shape {pixels.shape}; one image (H, W), (C, H, W) or (H, W, C) of real numbers "
            "is expected."
        )
    if pixels.ndim == 2:
        return Loaded(pixels[None], {}, plane.facts)
    if plane.facts.bands and len(plane.facts.bands) == len(pixels):
        return Loaded(pixels, {}, plane.facts)
    facts = replace(plane.facts, bands=())
    return Loaded(np.moveaxis(pixels, band_axis(path, pixels.shape, reading.axes), 0), {}, facts)


def together(planes: Sequence[Plane], reading: Reading) -> Loaded:
    """Return the planes of some bands as an image (C, H, W).

    Args:
        planes: a plane (H, W) of each band.
        reading: how files are read.

    Raises:
        ValueError: the bands differ in unit, pixel scale or shape; the message names two of them.
    """
    for plane in planes:
        if plane.pixels.ndim != 2 or not number_kind(plane.pixels.dtype):
            raise ValueError(f"{plane.origin}: {plane.pixels.dtype} of shape {plane.pixels.shape} instead of (H, W).")
    if reading.resample:
        planes = on_one_grid(planes, reading)
    first = planes[0]
    for plane in planes[1:]:
        refuse_unlike(first, plane, reading)
    scale = reading.pixel_scale_arcsec or first.facts.pixel_scale_arcsec
    return Loaded(
        np.stack([plane.pixels for plane in planes]),
        {},
        replace(common_facts(planes, reading), pixel_scale_arcsec=scale),
    )


def common_facts(planes: Sequence[Plane], reading: Reading) -> Facts:
    """Return what the files say about an image of several bands: its position, and a zero point for each band.

    Args:
        planes: a plane of each band.
        reading: how files are read.
    """
    placed = next((plane.facts.columns for plane in planes if "ra" in plane.facts.columns), {})
    columns = {name: placed[name] for name in ("ra", "dec") if name in placed}
    names = list(reading.bands) or [str(k) for k in range(len(planes))]
    for name, plane in zip(names, planes, strict=True):
        if "zero_point" in plane.facts.columns:
            columns[f"zero_point_{name}"] = plane.facts.columns["zero_point"]
    return Facts(tuple(reading.bands), reading.unit or planes[0].facts.unit, None, columns)


def refuse_unlike(first: Plane, other: Plane, reading: Reading) -> None:
    """Raise an error if two bands of an image do not fit together.

    Args:
        first: a band.
        other: another band.
        reading: how files are read; a unit or pixel scale that is given holds for all.

    Raises:
        ValueError: unit, pixel scale or shape differ.
    """
    here, there = first.facts, other.facts
    if not reading.unit and here.unit != there.unit:
        raise ValueError(
            f"{first.origin} has the unit {here.unit!r}, but {other.origin} has {there.unit!r}; convert the images to "
            "one unit, or give --unit if it is only written differently."
        )
    if reading.pixel_scale_arcsec is None and not same_scale(here.pixel_scale_arcsec, there.pixel_scale_arcsec):
        raise ValueError(
            f"{first.origin} has pixels of {said(here.pixel_scale_arcsec)}, but {other.origin} of "
            f"{said(there.pixel_scale_arcsec)}. Give --resample BAND to rebin all to the pixels of one band, or "
            "--pixel_scale if they are equal."
        )
    if first.pixels.shape != other.pixels.shape:
        raise ValueError(
            f"{first.origin} has the shape {first.pixels.shape}, but {other.origin} has {other.pixels.shape}; bands "
            "must have the same pixels. Give --resample BAND if they show the same sky."
        )


def same_scale(first: float | None, second: float | None) -> bool:
    """Whether two pixel scales are equal within 1 %.

    Example:
        >>> same_scale(0.1, 0.1005), same_scale(0.1, 0.2), same_scale(None, 0.1)
        (True, False, False)
    """
    if first is None or second is None:
        return first is second
    return abs(first - second) <= EQUAL * max(first, second)


def said(scale: float | None) -> str:
    """Return a pixel scale in words."""
    return "unknown size" if scale is None else f"{scale:.5g} arcsec"


def on_one_grid(planes: Sequence[Plane], reading: Reading) -> list[Plane]:
    """Return all bands on the pixels of one of them.

    Args:
        planes: a plane of each band.
        reading: how files are read, with the band whose pixels are used.

    Raises:
        ValueError: there is no such band, or it is unknown where the pixels of a band are.
    """
    if reading.resample not in reading.bands or len(reading.bands) != len(planes):
        raise ValueError(
            f"--resample {reading.resample}: the bands are {', '.join(reading.bands) or 'unknown'}; name one of them."
        )
    target = planes[list(reading.bands).index(reading.resample)]
    grid = grid_with(target)
    found = []
    for plane in planes:
        try:
            pixels = rebinned(plane.pixels, grid_with(plane), grid, unit=reading.unit or plane.facts.unit)
        except ValueError as error:
            raise ValueError(f"{plane.origin}: {error}.") from error
        centre = {"ra": grid.centre[0], "dec": grid.centre[1]}
        scale, columns = target.facts.pixel_scale_arcsec, {**plane.facts.columns, **centre}
        facts = replace(plane.facts, pixel_scale_arcsec=scale, columns=columns)
        found.append(plane._replace(pixels=pixels, facts=facts))
    return found


def grid_with(plane: Plane) -> Grid:
    """Return where the pixels of a band are. Raises ValueError, naming the file, if its header does not say it."""
    grid = grid_of(plane.header, plane.pixels.shape)
    if grid is None:
        raise ValueError(f"{plane.origin}: its header has no coordinates, so --resample cannot place its pixels.")
    return grid
