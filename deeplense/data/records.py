"""The content of a foreign data set: a record per image, and how to load it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Loaded = tuple[np.ndarray, Mapping[str, float]]
UNLABELLED = -1


@dataclass(frozen=True)
class Record:
    """One foreign sample.

    Args:
        path: its file.
        name: its name.
        label: number of its class; -1 for none.
        split: its split; "" if the layout has none.
        row: its row in the file.
        numbers: its values from a catalogue.
        group: number of its group; -1 for none.
    """

    path: Path
    name: str
    label: int
    split: str
    row: int = 0
    numbers: tuple[float, ...] = ()
    group: int = -1


@dataclass(frozen=True)
class Layout:
    """The content of a foreign data set.

    Args:
        source: file or folder of the data set.
        records: a record per image (N).
        load: returns the image (C, H, W) of a record and those of its targets that are in its file.
        classes: names of the classes.
        bands: names of the bands.
        unit: unit of the pixels.
        targets: units of the targets in the files, by name.
        numbers: units of the targets in `Record.numbers`, by name.
        columns: texts (N,) beside the records, from the file or from `catalog`.
        unfit: shapes of arrays that cannot be such columns.
        catalog: CSV file with the columns.
        notes: how the data were interpreted, for the user.
        named: whether the names are those of the images, not made from their places.
    """

    source: Path
    records: Sequence[Record]
    load: Callable[[Record], Loaded]
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    unit: str = ""
    targets: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
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
