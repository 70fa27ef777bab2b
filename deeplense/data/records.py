"""The content of a foreign data set: a record per image, and how to load it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

UNLABELLED = -1


@dataclass(frozen=True)
class Facts:
    """What a file says about its image.

    Args:
        bands: names of the bands; empty for unknown.
        unit: unit of the pixels; "" for unknown.
        pixel_scale_arcsec: side of a pixel; None for unknown.
        columns: numbers that are kept with the image: `ra`, `dec` (of its centre, in degrees), `zero_point`.
    """

    bands: tuple[str, ...] = ()
    unit: str = ""
    pixel_scale_arcsec: float | None = None
    columns: Mapping[str, float] = field(default_factory=dict)


NO_FACTS = Facts()


class Loaded(NamedTuple):
    """An image and what its file says.

    Args:
        image: (C, H, W).
        targets: those of its targets that are in its file.
        facts: what its file says about it.
    """

    image: np.ndarray
    targets: Mapping[str, float]
    facts: Facts = NO_FACTS


@dataclass(frozen=True, slots=True)
class Record:
    """One foreign sample.

    Args:
        path: its file.
        name: its name.
        label: number of its class; -1 for none.
        split: its split; "" if the layout has none.
        row: its row in the file.
        numbers: its targets from a catalogue.
        group: number of its group; -1 for none.
        kept: its kept values from a catalogue, numbers or texts.
        more: files of its other bands, after that of the first.
        hdu: name or number of the extension of a FITS file with the image; "" for the default.
    """

    path: Path
    name: str
    label: int
    split: str
    row: int = 0
    numbers: tuple[float, ...] = ()
    group: int = -1
    kept: tuple[float | str, ...] = ()
    more: tuple[Path, ...] = ()
    hdu: str = ""


@dataclass(frozen=True)
class Layout:
    """The content of a foreign data set.

    Args:
        source: file or folder of the data set.
        records: a record per image (N).
        load: returns the image of a record, and what its file says.
        classes: names of the classes.
        bands: names of the bands; empty if only the files say them.
        unit: unit of the pixels.
        pixel_scale_arcsec: side of a pixel; None for unknown.
        targets: units of the targets in the files, by name.
        numbers: units of the targets in `Record.numbers`, by name.
        kept: units of the columns in `Record.kept`, by name.
        headers: units of the columns in the files, by name.
        columns: texts (N,) beside the records, from the file or from `catalog`.
        units: units of some columns, by name.
        unfit: shapes of arrays that cannot be such columns.
        catalog: table with the columns.
        notes: how the data were interpreted, for the user.
        named: whether the names are those of the images, not made from their places.
    """

    source: Path
    records: Sequence[Record]
    load: Callable[[Record], Loaded]
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    unit: str = ""
    pixel_scale_arcsec: float | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    catalog: Path | None = None
    notes: Sequence[str] = ()
    named: bool = True

    def told(self, place: int) -> str:
        """Return how messages name an image."""
        record = self.records[place]
        of_many = len(self.records) > 1 and record.path == self.source
        return f"image {record.row}" + (f" ({record.name})" if self.named else "") if of_many else record.name


def few(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and the number of all if there are more.

    Args:
        names: names.
        most: number of names that are listed.

    Example:
        >>> few(["a", "b", "c", "d"], most=2)
        'a, b, ... (4 in all)'
    """
    given = list(names)
    return ", ".join(given[:most]) + (f", ... ({len(given)} in all)" if len(given) > most else "")


def number_kind(dtype: np.dtype) -> bool:
    """Whether an array has a numeric type that pixels can have: integer, real or bool."""
    return dtype.kind in "biuf"
