"""Verifying a data set: every byte is read, and what is damaged, wrong, there twice or in two splits is named.

Of each sample four numbers stay in memory, 32 bytes; its name is read again where it is to be told.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import xxhash

from deeplense.data.checking import Sound, check_shard, differ, miscounts, opened
from deeplense.data.shards import (
    BLOCK_ROWS,
    MANIFEST,
    REMAKE,
    Manifest,
    Moments,
    Schema,
    image_filters,
    moments_of,
    read_columns,
)
from deeplense.files import checksum

MOST_TOLD = 10


@dataclass(frozen=True)
class Contents:
    """What is kept of a shard: for each sample a hash of its image, a hash of its id, its place in the source, and its
    label, (n,) each; the names of the classes, and what it says of itself."""

    path: Path
    images: np.ndarray
    ids: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    sound: Sound


def verify(dataset: Path) -> list[str]:
    """Read every byte of a data set and say what is wrong, a line each: shards that are damaged, missing, or of
    something else; counts that do not fit; samples that are there twice; images in two splits; equal images with
    different labels."""
    problems: list[str] = []
    earlier: list[tuple[Path, list[Contents]]] = []
    for folder in find_splits(dataset):
        wrong, shards = verify_split(folder)
        problems += wrong
        for other, theirs in earlier:
            problems += leaks(folder, shards, other, theirs)
        earlier.append((folder, shards))
    return [*problems, *contradictions([shard for _, shards in earlier for shard in shards])]


def find_splits(dataset: Path) -> list[Path]:
    """The split folders of a data set, finished or not. Raises ValueError where there is none."""
    if not dataset.is_dir():
        raise ValueError(f"{dataset} is no folder; give the folder of a data set.")
    splits = sorted({path.parent for pattern in (MANIFEST, "shard-*.h5") for path in dataset.rglob(pattern)})
    if not splits:
        raise ValueError(f"{dataset} holds no shards; make some with `deeplense simulate` or `deeplense pack`.")
    return splits


def verify_split(folder: Path) -> tuple[list[str], list[Contents]]:
    """Read a whole split. Returns what is wrong (a line each, naming the shard), and what its sound shards hold."""
    try:
        manifest = Manifest.read(folder)
        image_filters(manifest.schema)
    except ValueError as error:
        return [str(error)], []
    listed = {line["file"] for line in manifest.shards}
    stray = [path for path in sorted(folder.glob("shard-*.h5")) if path.name not in listed]
    problems, shards = [f"{path}: is not in the manifest; remove it" for path in stray], []
    for line in manifest.shards:
        path = folder / line["file"]
        try:
            shards.append(verified(path, line, manifest.schema))
        except ValueError as error:
            problems.append(str(error))
    problems += repeats(folder, shards)
    if len(shards) == len(manifest.shards):
        problems += miscounts(manifest, [shard.sound for shard in shards])
    return problems, shards


def verified(path: Path, line: Mapping[str, Any], schema: Schema) -> Contents:
    """What a shard holds, all of it read. Raises ValueError, naming it, where it is not the one of its line in the
    manifest, or damaged."""
    if not path.exists():
        raise ValueError(
            f"{path}: is missing; remove the manifest, and make the split again: only what is missing is made"
        )
    if (found := path.stat().st_size) != line["bytes"]:
        raise ValueError(f"{path}: has {found} bytes where the manifest says {line['bytes']}; {REMAKE}")
    if checksum(path) != line["xxh3_128"]:
        raise ValueError(f"{path}: does not match its checksum: it is damaged; {REMAKE}")
    return read_contents(path, schema, check_shard(path, line, schema))


def read_contents(path: Path, schema: Schema, sound: Sound) -> Contents:
    """Read a shard, some images at a time. Raises ValueError, naming it, where it says of its images what they are
    not."""
    columns, images, total = read_columns(path, schema), [], Total(schema)
    with opened(path) as file:
        stored = cast("h5py.Dataset", file["image"])
        for start in range(0, len(stored), BLOCK_ROWS):
            block = stored[start : start + BLOCK_ROWS]
            total.add(block)
            images.append(hashes(image.data for image in block.astype(np.float64) * schema.scale + schema.zero))
    if not all(np.isfinite(total.moments[1])):
        raise ValueError(f"{path}: has pixels that are not finite; {REMAKE}")
    if differ(total.moments, sound.header.moments):
        raise ValueError(f"{path}: says other sums of its pixels than they have; {REMAKE}")
    return Contents(
        path,
        images=np.concatenate(images),
        ids=hashes(columns["id"].tolist()),
        sources=columns["source_index"],
        labels=sound.labels,
        classes=schema.classes,
        sound=sound,
    )


class Total:
    """The moments of images that come block by block."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.moments: Moments = (0, np.zeros(schema.shape[0]), np.zeros(schema.shape[0]))

    def add(self, block: np.ndarray) -> None:
        """Count these images (n, C, H, W), as stored, too."""
        pairs = zip(self.moments, moments_of(block, scale=self.schema.scale, zero=self.schema.zero), strict=True)
        self.moments = tuple(one + other for one, other in pairs)  # type: ignore[assignment]


def hashes(items: Iterable[bytes | memoryview]) -> np.ndarray:
    """A 64-bit hash of each, (n,)."""
    return np.fromiter((xxhash.xxh3_64_intdigest(item) for item in items), dtype=np.uint64)


def repeats(folder: Path, shards: Sequence[Contents]) -> Iterator[str]:
    """Samples of a split with the same id, or from the same place in the source, a line each."""
    for what, parts in (("id", [part.ids for part in shards]), ("source_index", [part.sources for part in shards])):
        pairs = equal_pairs(np.concatenate(parts)) if parts else []
        lines = (f"{folder}: {name(shards, a)} and {name(shards, b)} have the same {what}" for a, b in pairs)
        yield from shortened(lines, len(pairs))


def equal_pairs(values: np.ndarray) -> np.ndarray:
    """Places of values that are equal, two by two, (k, 2)."""
    order = np.argsort(values, kind="stable")
    return np.stack([order[:-1], order[1:]], axis=1)[values[order[:-1]] == values[order[1:]]]


def leaks(folder: Path, shards: Sequence[Contents], other: Path, theirs: Sequence[Contents]) -> Iterator[str]:
    """Images that are in both of two splits, a line each."""
    if not shards or not theirs:
        return
    ours, others = (np.concatenate([part.images for part in parts]) for parts in (shards, theirs))
    _, here, there = np.intersect1d(ours, others, return_indices=True)
    told = "{}: {} is the same image as {} of {}; a leak between splits"
    pairs = zip(here, there, strict=True)
    lines = (told.format(folder, name(shards, a), name(theirs, b), other) for a, b in pairs)
    yield from shortened(lines, len(here))


def contradictions(shards: Sequence[Contents]) -> Iterator[str]:
    """Equal images with different labels, a line each; splits may number their classes differently."""
    if not shards:
        return
    classes = sorted({name for part in shards for name in part.classes})
    labels = np.concatenate([numbers_of(part, classes) for part in shards])
    labelled = np.flatnonzero(labels >= 0)
    images = np.concatenate([part.images for part in shards])[labelled]
    pairs = labelled[equal_pairs(images)]
    pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    told = "{} ({}) is the same image as {} ({}), with another label; correct one or leave both out"
    lines = (
        told.format(*(part for k in pair for part in (place(shards, k), classes[labels[k]]))) for pair in pairs.tolist()
    )
    yield from shortened(lines, len(pairs))


def numbers_of(part: Contents, classes: Sequence[str]) -> np.ndarray:
    """The labels of a shard as numbers among all classes, (n,); -1 where there is none."""
    known = np.array([classes.index(name) for name in part.classes] + [-1])
    return known[np.where((part.labels >= 0) & (part.labels < len(part.classes)), part.labels, -1)]


def place(shards: Sequence[Contents], number: int) -> str:
    """The split and the id of a sample by its number among those of some shards."""
    starts = np.cumsum([0] + [len(part.ids) for part in shards])
    shard = int(np.searchsorted(starts, number, side="right")) - 1
    return f"{shards[shard].path.parent}: {name(shards, number)}"


def name(shards: Sequence[Contents], number: int) -> str:
    """The id of a sample by its number among those of some shards, read from its shard."""
    starts = np.cumsum([0] + [len(part.ids) for part in shards])
    shard = int(np.searchsorted(starts, number, side="right")) - 1
    with opened(shards[shard].path) as file:
        return cast("h5py.Dataset", file["id"])[number - starts[shard]].decode(errors="replace")


def shortened(lines: Iterable[str], count: int) -> Iterator[str]:
    """The first lines of `count`, and how many more there are."""
    yield from islice(lines, MOST_TOLD)
    if count > MOST_TOLD:
        yield f"... and {count - MOST_TOLD} more such"
