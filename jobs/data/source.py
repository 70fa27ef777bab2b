"""Images of other programs and surveys: which a source has, and each of them, without packing them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from deeplense.candidates.merging import unguarded
from deeplense.data import layouts
from deeplense.data.catalogues import attach, read_catalogue
from deeplense.data.choosing import noted, only_where, refuse_names
from deeplense.data.conditions import holds, is_missing, listed, parse_condition, read_targets
from deeplense.data.cubes import cubes
from deeplense.data.facts import with_facts
from deeplense.data.file_layouts import by_catalogue, files, folders
from deeplense.data.hdf5_files import hdf5
from deeplense.data.image_files import Reading
from deeplense.data.keeping import with_kept
from deeplense.data.own import dataset
from deeplense.data.parquet_files import parquet
from deeplense.data.records import UNLABELLED, Layout, Loaded, Record
from jobs.data.source_settings import SourceSettings
from jobs.settings import require

GRADE = "grade"
"""Column of the grades."""
MOST_MEASURED = 2000
"""Number of images whose sizes are told when they differ."""


def open_source(settings: SourceSettings, *, relabel: bool = False, grades: Path | None = None) -> Layout:
    """List the images of a source, with the columns of its catalogue, and only those that `where` selects. Raises
    ValueError, naming the file, for input that cannot be read or does not fit.

    Classes are those of folders or data sets, if the layout has them and `relabel` is false; no column is taken as
    label. With `grades`, a table with the columns `id` and `grade`, only images that have a grade are listed, with the
    columns of that table and without classes.
    """
    try:
        there = settings.origin.exists()
        require(there, f"{settings.origin} does not exist; give the folder or file to read as --source.")
        found = open_layout(settings, relabel=relabel)
    except OSError as error:
        raise ValueError(f"{error.filename or settings.origin} cannot be read ({error.strerror}).") from error
    where = listed(settings.where)
    if settings.layout == "catalogue":
        where = [each for each in where if parse_condition(each)[0] not in found.columns]
    else:
        found = with_catalogue(settings, found)
    found = graded(found, grades) if grades else found
    found = only_where(found, where)
    found = with_kept(found, read_targets(settings.keep, setting="keep"))
    refuse_names(found)
    names = settings.names_of_bands
    if not found.bands:
        bands = list(names)
        found = with_facts(found, bands=bands, unit=settings.unit, pixel_scale_arcsec=settings.pixel_scale)
    found = replace(found, bands=tuple(names.get(band, band) for band in found.bands))
    return with_only_bands(found, listed(settings.only_bands)) if settings.only_bands else found


def with_only_bands(layout: Layout, bands: Sequence[str]) -> Layout:
    """Return a layout with some of its bands. Raises ValueError if one does not exist or comes twice."""
    lacking = [band for band in bands if band not in layout.bands]
    every = ", ".join(layout.bands)
    require(not lacking, f"--only_bands: {layout.source} has no band {', '.join(lacking)}; its bands are {every}.")
    require(len(set(bands)) == len(bands), f"--only_bands {','.join(bands)}: give each band once.")
    places = [layout.bands.index(band) for band in bands]

    def load(record: Record) -> Loaded:
        """Return an image of these bands."""
        loaded = layout.load(record)
        return loaded._replace(image=loaded.image[places])

    return replace(layout, load=load, bands=tuple(bands))


def with_catalogue(settings: SourceSettings, layout: Layout) -> Layout:
    """Return the images with the columns of the catalogue, if there is one."""
    if settings.catalog is None:
        return layout
    return attach(
        layout,
        read_catalogue(settings.catalog),
        join=settings.join,
        name_column=settings.name_column,
        leave_out=settings.unmatched == "leave_out",
    )


def graded(layout: Layout, path: Path) -> Layout:
    """Return the images that have a grade in a table with the columns `id` and `grade`, without classes of their own.
    Raises ValueError, naming the file, if there is none."""
    table = read_catalogue(path)
    ids = np.array([unguarded(name) for name in table.column("id").tolist()], dtype=object)
    grades = replace(table, columns={**table.columns, "id": ids})
    has_grade = ~is_missing(grades.column(GRADE))
    require(bool(has_grade.any()), f"{path}: the column {GRADE!r} is empty; give a file with grades.")
    found = attach(layout, grades.only(has_grade), name_column="id", leave_out=True)
    return replace(found, classes=(), records=[replace(record, label=UNLABELLED) for record in found.records])


def open_layout(settings: SourceSettings, *, relabel: bool) -> Layout:
    """Return all images of the source; with layout catalogue, those that `where` selects."""
    source, bands = settings.origin, list(settings.names_of_bands)
    if settings.layout in ("npz", "hdf5", "parquet"):
        archive = {"npz": layouts.npz, "hdf5": hdf5, "parquet": parquet}[settings.layout]
        keys = {"image_key": settings.image_key, "name_key": settings.name_key}
        return archive(source, **keys, axes=settings.axes, bands=bands)
    if settings.layout == "cubes":
        return cubes(source, bands=bands, pattern=settings.pattern, hdu=settings.hdu)
    if settings.layout == "dataset":
        return dataset(source, relabel=relabel)
    if settings.layout == "catalogue":
        return named_files(settings)
    if settings.layout == "files":
        beside = (settings.catalog, getattr(settings, "grades", None))
        return files(source, reading_of(settings), pattern=settings.pattern, beside=beside)
    if settings.layout == "folders":
        return folders(source, reading_of(settings), pattern=settings.pattern)
    readers = {"deeplense": layouts.deeplense, "gsoc": layouts.gsoc, "lens-finding": layouts.lens_finding}
    return readers[settings.layout](source)


def named_files(settings: SourceSettings) -> Layout:
    """Return the files that the catalogue names, in the rows that `where` selects."""
    assert settings.catalog is not None
    catalogue = read_catalogue(settings.catalog)
    where = [each for each in listed(settings.where) if parse_condition(each)[0] in catalogue.columns]
    conditions = [holds(each, catalogue.column(parse_condition(each)[0])) for each in where]
    kept = np.all(conditions, axis=0) if where else np.ones(len(catalogue), dtype=bool)
    told = " and ".join(where)
    require(bool(kept.any()), f"{settings.catalog}: none of {len(kept)} rows satisfies {told}; change --where.")
    found = by_catalogue(
        catalogue.only(kept),
        settings.origin,
        reading_of(settings),
        file_column=settings.file_column,
        hdu_column=settings.hdu_column,
        name_column=settings.name_column,
        leave_out=settings.unmatched == "leave_out",
    )
    return noted(found, f"{kept.sum()} of {len(kept)} rows satisfy {told}") if where else found


def reading_of(settings: SourceSettings) -> Reading:
    """Return how files of images are read."""
    return Reading(
        bands=list(settings.names_of_bands),
        axes=settings.axes,
        hdu=settings.hdu,
        resample=settings.resample,
        unit=settings.unit,
        pixel_scale_arcsec=settings.pixel_scale,
    )


def load(
    settings: SourceSettings, layout: Layout, record: Record, *, sizes: bool = True
) -> tuple[np.ndarray, Mapping[str, float], Mapping[str, float | str]]:
    """Return one image (C, H, W), cropped and filled, its targets and its columns by name.

    The pixels are those of the file, before `scale` and `zero`. `sizes`: whether the message about an image that is too
    small for `crop` names the sizes of others, for which many images are read.
    """
    image, targets, facts = layout.load(record)
    require(image.dtype.kind in "biuf", f"{record.path}: contains {image.dtype}, but real numbers are expected.")
    targets = {**targets, **dict(zip(layout.numbers, record.numbers, strict=True))}
    endless = [name for name, value in targets.items() if np.isinf(value)]
    require(not endless, f"{record.path}: {record.name} has an infinite value of the target {', '.join(endless)}.")
    columns = {name: facts.columns.get(name, np.nan) for name in layout.headers}
    image = with_missing(image)
    if settings.crop:
        height, width = image.shape[1:]
        if min(height, width) < settings.crop:
            told = f"{record.path} ({record.name}): has {height} x {width} pixels, too few for --crop {settings.crop}"
            others = f"; {sizes_in(layout)}" if sizes else ""
            raise ValueError(f"{told}{others}. Give a smaller --crop, or leave out small images.")
        image = central(image, settings.crop)
    if settings.fill_nan is not None and image.dtype.kind == "f":
        image = np.where(np.isfinite(image), image, settings.fill_nan)
    return image, targets, {**columns, **dict(zip(layout.kept, record.kept, strict=True))}


def with_missing(image: np.ndarray) -> np.ndarray:
    """Return an image with NaN for the largest number of float32 or float64, which marks missing pixels in some files.

    Example:
        >>> with_missing(np.array([1.0, -3.4028235e38], dtype=np.float32)).tolist()
        [1.0, nan]
    """
    if image.dtype.kind != "f":
        return image
    marked = np.abs(image) >= min(np.finfo(image.dtype).max, np.finfo(np.float32).max)
    return np.where(marked, np.nan, image) if marked.any() else image


def central(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central crop of an image (C, H, W)."""
    height, width = image.shape[1:]
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def sizes_in(layout: Layout) -> str:
    """Return the smallest and the largest image in words, for a message."""
    count = len(layout.records)
    places = np.unique(np.linspace(0, count - 1, min(count, MOST_MEASURED)).round().astype(int)).tolist()
    shapes = []
    for place in places:
        with suppress(ValueError):
            shapes.append(layout.load(layout.records[place]).image.shape[1:])
    small, large = min(shapes, key=min), max(shapes, key=min)
    return (
        f"of {len(shapes)} images the smallest has {small[0]} x {small[1]}, the largest {large[0]} x {large[1]} pixels"
    )
