"""Images of other programs and surveys: which a source has, and each of them, without packing them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplense.data import layouts
from deeplense.data.catalogues import attach, read_catalogue
from deeplense.data.choosing import only_where, refuse_names
from deeplense.data.conditions import listed
from deeplense.data.records import Layout, Record
from jobs.data.source_settings import SourceSettings
from jobs.settings import require


def open_source(settings: SourceSettings) -> Layout:
    """List the images of a source, with the columns of its catalogue, and only those that `where` selects. No labels
    are assigned. Raises ValueError, naming the file, for input that cannot be read or does not fit."""
    try:
        there = settings.origin.exists()
        require(there, f"{settings.origin} does not exist; give the folder or file to read as --source.")
        found = open_layout(settings)
    except OSError as error:
        raise ValueError(f"{error.filename or settings.origin} cannot be read ({error.strerror}).") from error
    if settings.catalog and settings.layout != "catalogue":
        found = attach(
            found,
            read_catalogue(settings.catalog),
            join=settings.join,
            name_column=settings.name_column,
            leave_out=settings.unmatched == "leave_out",
        )
    found = only_where(found, listed(settings.where))
    refuse_names(found)
    return found


def open_layout(settings: SourceSettings) -> Layout:
    """Return all images of the source."""
    source, bands = settings.origin, listed(settings.bands)
    if settings.layout == "npz":
        keys = {"image_key": settings.image_key, "name_key": settings.name_key}
        return layouts.npz(source, **keys, axes=settings.axes, bands=bands)
    if settings.layout == "files":
        return layouts.files(source, axes=settings.axes, bands=bands)
    readers = {"deeplense": layouts.deeplense, "gsoc": layouts.gsoc, "lens-finding": layouts.lens_finding}
    return readers[settings.layout](source)


def load(settings: SourceSettings, layout: Layout, record: Record) -> tuple[np.ndarray, Mapping[str, float]]:
    """Return one image (C, H, W), cropped and filled, and its numbers: targets and columns of its file or catalogue.

    The pixels are those of the file, before `scale` and `zero`.
    """
    image, numbers = layout.load(record)
    require(image.dtype.kind in "biuf", f"{record.path}: contains {image.dtype}, but real numbers are expected.")
    numbers = {**numbers, **dict(zip(layout.numbers, record.numbers, strict=True))}
    endless = [name for name, value in numbers.items() if np.isinf(value)]
    require(not endless, f"{record.path}: {record.name} has an infinite value of {', '.join(endless)}.")
    if settings.crop:
        image = central(record, image, settings.crop)
    if settings.fill_nan is not None and image.dtype.kind == "f":
        image = np.where(np.isfinite(image), image, settings.fill_nan)
    return image, numbers


def central(record: Record, image: Any, size: int) -> Any:
    """Return the central crop of an image (C, H, W)."""
    height, width = image.shape[1:]
    require(min(height, width) >= size, f"{record.path}: has {height} x {width} pixels, too few for --crop {size}.")
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]
