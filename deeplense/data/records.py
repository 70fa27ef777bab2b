"""What a foreign data set holds: a record for each image, and how to load one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Loaded = tuple[np.ndarray, Mapping[str, float]]
UNLABELLED = -1


@dataclass(frozen=True)
class Record:
    """One foreign sample: its file, name, the number of its class (-1 for none), its split ("" where the layout has
    none), its row in the file, the numbers that a catalogue gives it, and the number of its group (-1 for none)."""

    path: Path
    name: str
    label: int
    split: str
    row: int = 0
    numbers: tuple[float, ...] = ()
    group: int = -1


@dataclass(frozen=True)
class Layout:
    """What a foreign data set holds.

    `load` gives the image (C, H, W) of a record and those of its targets that are in its file. `columns` are texts (N,)
    beside the records, from the file or from `catalog`; `unfit` are the shapes of arrays that cannot be such columns.
    `numbers` are the targets, with units, of `Record.numbers`; `notes` is what a user should know of how the data were
    understood. `named`: the names are of the images themselves, not made from their places.
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
        """One of the images, as a message calls it."""
        record = self.records[place]
        of_many = len(self.records) > 1 and record.path == self.source
        return f"image {record.row}" + (f" ({record.name})" if self.named else "") if of_many else record.name


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names, and that there are more."""
    given = list(names)
    return ", ".join(given[:most]) + (f", ... ({len(given)} in all)" if len(given) > most else "")


def number_kind(dtype: np.dtype) -> bool:
    """Whether an array holds numbers that pixels can be: whole, real, or bits."""
    return dtype.kind in "biuf"
