"""Images in an order that never changes: of a data set, or of files that are not packed.

N images, C bands, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from deeplense.data.dataset import Split, column_of
from deeplense.data.records import Layout, Record
from deeplense.data.writing import LARGEST
from jobs.data.folders import splits_of
from jobs.data.source import load, open_source
from jobs.data.source_settings import SourceSettings, given
from jobs.settings import plain_values, require

POSITION = ("ra", "dec")
MOST_UNREADABLE = 100
"""If so many images at the start cannot be read, none is predicted."""


@dataclass(frozen=True)
class Loaded:
    """Some images (n, C, H, W) float32; why those that could not be read are zero, by their place; and what is known of
    them, (n,) each: id, source, and ra and dec in degrees."""

    images: np.ndarray
    problems: Mapping[int, str]
    known: Mapping[str, np.ndarray]


class Images(Protocol):
    """Interface of images in an order."""

    def __len__(self) -> int: ...

    @property
    def name(self) -> str:
        """Where they are, for messages."""
        ...

    @property
    def where(self) -> Mapping[str, object]:
        """Where they are, for the table: `dataset`, and `splits` of a data set or `source`, the settings of files."""
        ...

    @property
    def identity(self) -> str:
        """A hash that identifies exactly these images."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands; empty if the files do not name them."""
        ...

    @property
    def pixels(self) -> tuple[str, float | None]:
        """Unit of the pixels, "" if unknown, and their side in arcsec, None if unknown."""
        ...

    def read(self, rows: range) -> Loaded:
        """Return the images with these numbers."""
        ...

    def some(self, numbers: Sequence[int]) -> np.ndarray:
        """Return images in any order, (n, C, H, W) float32."""
        ...


@dataclass(frozen=True)
class ShardImages:
    """The images of some splits of a data set, one after the other."""

    dataset: Path
    splits: tuple[str, ...]
    split: Split

    def __len__(self) -> int:
        return len(self.split)

    @property
    def name(self) -> str:
        """The folders of the splits."""
        return self.split.name

    @property
    def where(self) -> Mapping[str, object]:
        """The data set and its splits."""
        return {"dataset": str(self.dataset.resolve()), "splits": list(self.splits)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.split.schema.shape

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(self.split.schema.bands)

    @property
    def pixels(self) -> tuple[str, float | None]:
        """Unit of the pixels, and their side in arcsec."""
        return self.split.schema.unit, self.split.schema.pixel_scale_arcsec

    @property
    def identity(self) -> str:
        """A hash that identifies exactly these images."""
        return self.split.dataset_id

    @cached_property
    def position(self) -> tuple[str, ...]:
        """The arrays with the right ascension and declination in degrees; none if they are unknown."""
        schemas = [manifest.schema for manifest in self.split.manifests]
        for kind in ("column", "target"):
            if all(name in getattr(each, f"{kind}s") for each in schemas for name in POSITION):
                return tuple(f"{kind}/{name}" for name in POSITION)
        return ()

    def read(self, rows: range) -> Loaded:
        """Return the images with these numbers."""
        images = self.split.images(np.arange(rows.start, rows.stop))
        ids = [name.decode(errors="replace") for name in self.column("id", rows)]
        known = {"id": np.array(ids, dtype=object), "source": self.sources(rows)}
        known |= {name.rpartition("/")[2]: as_numbers(self.column(name, rows)) for name in self.position}
        return Loaded(images, {}, known)

    def some(self, numbers: Sequence[int]) -> np.ndarray:
        """Return images in any order, (n, C, H, W) float32."""
        return self.split.images(np.asarray(numbers, dtype=np.int64))

    def sources(self, rows: range) -> np.ndarray:
        """Return the split of each image, as text (n,)."""
        # Without the folders above: the data set may be found elsewhere by another job or person.
        names = np.array([f"{self.dataset.resolve().name}/{split}" for split in self.splits], dtype=object)
        return names[self.split.sources[rows.start : rows.stop]]

    def column(self, name: str, rows: range) -> np.ndarray:
        """Return an array of the shards for the images with these numbers, (n,); no other rows are read."""
        parts, start = [], 0
        for manifest in self.split.manifests:
            stop = start + manifest.schema.num_samples
            own = range(max(rows.start, start) - start, min(rows.stop, stop) - start)
            if own:
                parts.append(column_of(manifest, name, own))
            start = stop
        return np.concatenate(parts)


@dataclass(frozen=True)
class FileImages:
    """The images of files, as `deeplense pack` would read them. `first` is the first that can be read,
    `has_position` whether positions on the sky are known."""

    settings: SourceSettings
    layout: Layout
    first: np.ndarray
    has_position: bool

    def __len__(self) -> int:
        return len(self.layout.records)

    @property
    def name(self) -> str:
        """The folder or file."""
        return str(self.settings.origin)

    @property
    def where(self) -> Mapping[str, object]:
        """The folder or file, and how it is read."""
        changed = {name: getattr(self.settings, name) for name in given(self.settings)}
        return {"dataset": str(self.settings.origin.resolve()), "source": plain_values(changed)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.first.shape)  # type: ignore[return-value]

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands; empty if they are only numbered."""
        numbered = all(name.removeprefix("band").isdecimal() for name in self.layout.bands)
        return () if numbered else tuple(self.layout.bands)

    @property
    def pixels(self) -> tuple[str, float | None]:
        """Unit of the pixels, and their side in arcsec, as given or in the headers."""
        return self.settings.unit or self.layout.unit, self.settings.pixel_scale or self.layout.pixel_scale_arcsec

    @property
    def identity(self) -> str:
        """A hash of the names of the images and the sizes and times of their files."""
        records = self.layout.records
        stats = {path: path.stat() for path in {each for record in records for each in (record.path, *record.more)}}
        digest = xxhash.xxh3_128()
        for record in records:
            digest.update(f"{record.name} {record.row} {record.hdu}".encode())
            for path in (record.path, *record.more):
                digest.update(f" {path.name} {stats[path].st_size} {stats[path].st_mtime_ns}".encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def read(self, rows: range) -> Loaded:
        """Return the images with these numbers. One that cannot be read, or does not fit, is zero and has a problem."""
        records = self.layout.records[rows.start : rows.stop]
        images, problems = np.zeros((len(records), *self.shape), dtype=np.float32), {}
        facts: list[Mapping[str, float | str]] = []
        for k, record in enumerate(records):
            try:
                image, _, found = load(self.settings, self.layout, record, sizes=False)
                images[k] = self.values(record, image)
            except (ValueError, OSError) as error:
                problems[k], found = " ".join(str(error).split()), {}
            facts.append(found)
        ids = np.array([record.name for record in records], dtype=object)
        sources = np.array([self.source_of(record) for record in records], dtype=object)
        return Loaded(images, problems, {"id": ids, "source": sources, **self.positions(rows, facts)})

    def source_of(self, record: Record) -> str:
        """Return the path of the file of an image, below the folder that is read if it is there."""
        origin = self.settings.origin
        if record.path == origin:
            return origin.name
        return str(record.path.relative_to(origin) if record.path.is_relative_to(origin) else record.path)

    def some(self, numbers: Sequence[int]) -> np.ndarray:
        """Return images in any order, (n, C, H, W) float32; zero if they cannot be read."""
        return np.concatenate([self.read(range(number, number + 1)).images for number in numbers])

    def values(self, record: Record, image: np.ndarray) -> np.ndarray:
        """Return the values of an image in float32. Raises ValueError if the shape is another, or a pixel is not
        finite."""
        require(image.shape == self.shape, f"{record.path}: has the shape {image.shape}, but others have {self.shape}.")
        with np.errstate(over="ignore"):
            found = image.astype(np.float32) * np.float32(self.settings.scale) + np.float32(self.settings.zero)
        bad = int((~(np.abs(found) <= LARGEST)).sum())
        told = f"{record.path}: {bad} pixels are NaN, infinite or above {LARGEST:g}"
        require(not bad, f"{told}; give --fill_nan VALUE to replace missing ones.")
        return found

    def positions(self, rows: range, facts: Sequence[Mapping[str, float | str]]) -> dict[str, np.ndarray]:
        """Return ra and dec of these images in degrees, NaN where unknown: from their files, or from columns of these
        names; nothing if none is known of the first image."""
        columns = {name.lower(): cells for name, cells in self.layout.columns.items()}
        found = {}
        for name in POSITION if self.has_position else ():
            own = as_numbers(np.array([each.get(name, np.nan) for each in facts], dtype=object))
            told = columns.get(name)
            told = np.full(len(own), np.nan) if told is None else as_numbers(told[rows.start : rows.stop])
            found[name] = np.where(np.isfinite(told), told, own)
        return found


def as_numbers(cells: np.ndarray) -> np.ndarray:
    """Return texts (n,) as float64, NaN for those that are no numbers."""

    def number(cell: object) -> float:
        try:
            return float(str(cell))
        except ValueError:
            return float("nan")

    return np.array([number(cell) for cell in cells], dtype=np.float64)


def open_files(settings: SourceSettings) -> FileImages:
    """Open images in files. Raises ValueError if there are none, or none can be read."""
    how: dict[str, Any] = {each.name: getattr(settings, each.name) for each in fields(SourceSettings)}
    how |= {"source": settings.origin.resolve(), "catalog": settings.catalog and settings.catalog.resolve()}
    settings = SourceSettings(**how)
    layout = open_source(settings)
    require(len(layout.records) > 0, f"{settings.origin} has no images.")
    problems = []
    columns = {name.lower() for name in layout.columns}
    for record in layout.records[:MOST_UNREADABLE]:
        try:
            first, _, facts = load(settings, layout, record, sizes=False)
            return FileImages(settings, layout, first, set(POSITION) <= columns | set(facts))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    raise ValueError(f"the first {len(problems)} images of {settings.origin} cannot be read; the first: {problems[0]}")


def open_shards(dataset: Path, splits: Sequence[str]) -> ShardImages:
    """Open some splits of a data set.

    Raises ValueError if there is no such split, or the splits differ in shape."""
    known = splits_of(dataset)
    missing = [split for split in splits if split not in known]
    told = f"{dataset} has no split {missing[0] if missing else ''!r}; it has {', '.join(known)}. Or give --split all."
    require(not missing, told)
    return ShardImages(dataset, tuple(splits), Split(*(dataset / split for split in splits), labelled=False))
