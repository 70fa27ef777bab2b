"""What the files of a layout say about their images, compared over all of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deeplense.data.archives import band_names
from deeplense.data.image_files import said, same_scale
from deeplense.data.records import Facts, Layout, Loaded, Record

MOST_UNREADABLE = 100
"""Images at the start that are tried until one can be read."""
MOST_LOOKED_AT = 32
"""Number of images whose files say which columns there are."""
MANY_BANDS = 12
"""Number of bands above which images may be cubes of many objects."""
UNITS = {"ra": "deg", "dec": "deg"}
MAGNITUDE = "mag"


def with_facts(
    layout: Layout, *, bands: Sequence[str] = (), unit: str = "", pixel_scale_arcsec: float | None = None
) -> Layout:
    """Return a layout with what its files say: bands, unit, pixel scale, and which columns they have.

    Bands, unit and pixel scale are those of the first image, and each image that is loaded must agree.

    Args:
        layout: content of the data set.
        bands: names of the bands; empty for those of the files.
        unit: unit of the pixels; "" for that of the files.
        pixel_scale_arcsec: side of a pixel; None for that of the files.

    Raises:
        ValueError: an image is unreadable, or two differ; the message names the files.
    """
    first, (image, _, told) = first_readable(layout)
    names = band_names(layout.source, len(image), bands or told.bands)

    def load(record: Record) -> Loaded:
        """Return an image that agrees with the first."""
        loaded = layout.load(record)
        facts = loaded.facts
        if facts.bands != told.bands and not bands:
            refuse(first, record, "the bands", ",".join(told.bands), ",".join(facts.bands), "--bands")
        if facts.unit != told.unit and not unit:
            refuse(first, record, "the unit", told.unit, facts.unit, "--unit")
        if pixel_scale_arcsec is None and not same_scale(told.pixel_scale_arcsec, facts.pixel_scale_arcsec):
            here, there = (said(each.pixel_scale_arcsec) for each in (told, facts))
            refuse(first, record, "pixels of", here, there, "--pixel_scale")
        return loaded

    headers = dict.fromkeys(name for facts in looked_at(layout) for name in facts.columns)
    note = f"images were read as {len(image)} bands of {image.shape[1]} x {image.shape[2]} pixels"
    if len(image) > MANY_BANDS:
        note += "; if these are images of many objects, give --layout cubes"
    return replace(
        layout,
        load=load,
        bands=names,
        unit=unit or told.unit or layout.unit,
        pixel_scale_arcsec=pixel_scale_arcsec or told.pixel_scale_arcsec or layout.pixel_scale_arcsec,
        headers={name: UNITS.get(name, MAGNITUDE) for name in headers if name not in layout.kept},
        notes=[*layout.notes, note],
    )


def first_readable(layout: Layout) -> tuple[Record, Loaded]:
    """Return the first image that can be read. Raises the error of the very first if none of the first 100 can.

    Args:
        layout: content of the data set.
    """
    wrong: list[ValueError] = []
    for record in layout.records[:MOST_UNREADABLE]:
        try:
            return record, layout.load(record)
        except ValueError as error:  # pack reports it when it reaches the image.
            wrong.append(error)
    raise wrong[0]


def looked_at(layout: Layout) -> list[Facts]:
    """Return what the files of some images say, spread evenly over all.

    Args:
        layout: content of the data set.
    """
    count = len(layout.records)
    places = np.unique(np.linspace(0, count - 1, min(count, MOST_LOOKED_AT)).round().astype(int))
    found = []
    for place in places.tolist():
        try:
            found.append(layout.load(layout.records[place]).facts)
        except ValueError:  # pack reports a bad file when it reaches it.
            continue
    return found


def refuse(first: Record, other: Record, what: str, here: str, there: str, setting: str) -> None:
    """Raise an error that two images differ in what a data set has once.

    Args:
        first: the first image.
        other: the one that differs.
        what: in what they differ.
        here: value of the first.
        there: value of the other.
        setting: setting that states one value for all.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{first.path} ({first.name}) has {what} {here or 'unknown'}, but {other.path} ({other.name}) has "
        f"{there or 'unknown'}. Pack them as two data sets, convert them, or give {setting} if they are equal."
    )
