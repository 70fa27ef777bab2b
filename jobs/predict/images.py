"""The images to predict, in an order that never changes: of a data set, or of files.

N images, C bands, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from deeplense.data.dataset import Split, column_of
from deeplense.data.records import Layout, Record
from jobs.console import say
from jobs.data.folders import find_dataset, splits_of
from jobs.data.source import load, open_source
from jobs.predict.settings import ALL, Settings
from jobs.settings import require

POSITION = ("ra", "dec")
LAYOUTS_OF_FILES = {
    **{".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5", ".parquet": "parquet"},
    **dict.fromkeys((".csv", ".ecsv"), "catalogue"),
}
IMAGES = (".npy", ".fits", ".fit", ".fts", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
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
        """Where they are, for the table: `dataset`, and `splits` of a data set or `layout` of files."""
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
        known |= {name.rpartition("/")[2]: self.column(name, rows).astype(np.float64) for name in self.position}
        return Loaded(images, {}, known)

    def sources(self, rows: range) -> np.ndarray:
        """Return the split of each image, as text (n,)."""
        names = np.array([str(self.dataset.resolve() / split) for split in self.splits], dtype=object)
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

    settings: Settings
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
        """The folder or file, and its layout."""
        return {"dataset": str(self.settings.origin.resolve()), "layout": self.settings.layout}

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
        stats = {path: path.stat() for path in {record.path for record in self.layout.records}}
        digest = xxhash.xxh3_128()
        for record in self.layout.records:
            found = stats[record.path]
            digest.update(f"{record.name} {record.row} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def read(self, rows: range) -> Loaded:
        """Return the images with these numbers. One that cannot be read, or does not fit, is zero and has a problem."""
        records = self.layout.records[rows.start : rows.stop]
        images, problems = np.zeros((len(records), *self.shape), dtype=np.float32), {}
        facts: list[Mapping[str, float | str]] = []
        for k, record in enumerate(records):
            try:
                image, _, found = load(self.settings, self.layout, record)
                images[k] = self.values(record, image)
            except (ValueError, OSError) as error:
                problems[k], found = " ".join(str(error).split()), {}
            facts.append(found)
        ids = np.array([record.name for record in records], dtype=object)
        sources = np.array([str(record.path) for record in records], dtype=object)
        return Loaded(images, problems, {"id": ids, "source": sources, **self.positions(rows, facts)})

    def values(self, record: Record, image: np.ndarray) -> np.ndarray:
        """Return the values of an image in float32. Raises ValueError if the shape is another, or a pixel is not
        finite."""
        require(image.shape == self.shape, f"{record.path}: has the shape {image.shape}, but others have {self.shape}.")
        with np.errstate(over="ignore"):
            found = image.astype(np.float32) * np.float32(self.settings.scale) + np.float32(self.settings.zero)
        bad = int((~np.isfinite(found)).sum())
        require(not bad, f"{record.path}: {bad} pixels are NaN or infinite; give --fill_nan VALUE to replace them.")
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


def with_layout(settings: Settings) -> Settings:
    """Return settings with the layout of what `dataset` names, if that is no data set but a folder of images, a file of
    images, or a catalogue."""
    path = Path(settings.dataset)
    if settings.layout != "dataset" or not path.exists() or splits_of(path) or splits_of(settings.data_root / path):
        return settings
    if path.is_file():
        layout = LAYOUTS_OF_FILES.get(path.suffix.lower())
    else:
        layout = "files" if any(each.suffix.lower() in IMAGES for each in path.iterdir()) else None
    if layout is None or settings.split != ALL:
        return settings
    say(f"{path} is not a data set of deeplense; it is read with --layout {layout}")
    if layout == "catalogue":
        return replace(settings, layout=layout, catalog=path, dataset="")
    return replace(settings, layout=layout)


def open_images(settings: Settings) -> Images:
    """Open the images to predict. Raises ValueError if there is no such data set, split, folder or file."""
    return open_shards(settings) if settings.layout == "dataset" else open_files(settings)


def open_files(settings: Settings) -> FileImages:
    """Open images in files. Raises ValueError if there are none, or none can be read."""
    layout = open_source(settings)
    require(len(layout.records) > 0, f"{settings.origin} has no images.")
    problems = []
    columns = {name.lower() for name in layout.columns}
    for record in layout.records[:MOST_UNREADABLE]:
        try:
            first, _, own = load(settings, layout, record)
            return FileImages(settings, layout, first, set(POSITION) <= columns | set(own))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    raise ValueError(f"the first {len(problems)} images of {settings.origin} cannot be read; the first: {problems[0]}")


def open_shards(settings: Settings) -> ShardImages:
    """Open some splits of a data set. Raises ValueError if there is no such data set or split."""
    dataset = find_dataset(settings.dataset, settings.data_root)
    known = splits_of(dataset)
    splits = tuple(known) if settings.split == ALL else (settings.split,)
    missing = [split for split in splits if split not in known]
    require(not missing, f"{dataset} has no split {settings.split!r}; it has {', '.join(known)}. Or give --split all.")
    return ShardImages(dataset, splits, Split(*(dataset / split for split in splits), labelled=False))
