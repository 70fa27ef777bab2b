"""The images to predict, in an order that never changes. N images, C bands, H x W pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from deeplense.data.dataset import Split, column_of
from deeplense.data.shards import Schema
from jobs.data.folders import find_dataset, splits_of
from jobs.predict.settings import Settings
from jobs.settings import require

ALL = "all"
POSITION = ("ra", "dec")


@dataclass(frozen=True)
class ShardImages:
    """The images of some splits of a data set, one after the other."""

    dataset: Path
    splits: tuple[str, ...]
    split: Split

    def __len__(self) -> int:
        return len(self.split)

    @property
    def schema(self) -> Schema:
        """The properties of all images."""
        return self.split.schema

    @property
    def identity(self) -> str:
        """A hash that identifies exactly these images."""
        return self.split.dataset_id

    @cached_property
    def position(self) -> tuple[str, ...]:
        """The arrays with the right ascension and declination in degrees; none if they are unknown."""
        schemas = [manifest.schema for manifest in self.split.manifests]
        found = tuple(f"target/{name}" for name in POSITION)
        return found if all(name in each.targets for each in schemas for name in POSITION) else ()

    def images(self, rows: range) -> np.ndarray:
        """Return the images with these numbers, (n, C, H, W) float32."""
        return self.split.images(np.arange(rows.start, rows.stop))

    def columns(self, rows: range) -> Mapping[str, np.ndarray]:
        """Return what is known about the images with these numbers, (n,) each: id, source, and ra and dec."""
        ids = [name.decode(errors="replace") for name in self.column("id", rows)]
        found = {"id": np.array(ids, dtype=object), "source": self.sources(rows)}
        return found | {name.rpartition("/")[2]: self.column(name, rows).astype(np.float64) for name in self.position}

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


def open_images(settings: Settings) -> ShardImages:
    """Open the images to predict. Raises ValueError if there is no such data set or split."""
    dataset = find_dataset(settings.dataset, settings.data_root)
    known = splits_of(dataset)
    splits = tuple(known) if settings.split == ALL else (settings.split,)
    missing = [split for split in splits if split not in known]
    require(not missing, f"{dataset} has no split {settings.split!r}; it has {', '.join(known)}. Or give --split all.")
    return ShardImages(dataset, splits, Split(*(dataset / split for split in splits), labelled=False))
