"""Verification of a data set: all bytes are read, and damaged, wrong, repeated or leaked samples are reported.

Four numbers per sample stay in memory, 32 bytes; its name is read again if it is reported.
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
    """What is kept of a shard.

    Args:
        path: file of the shard.
        images: hash of each image, (n,).
        ids: hash of each name, (n,).
        sources: place of each sample in its source, (n,).
        labels: (n,).
        classes: names of the classes.
        sound: its header and labels.
    """

    path: Path
    images: np.ndarray
    ids: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    sound: Sound


def verify(dataset: Path) -> list[str]:
    """Read every byte of a data set and return what is wrong, a line per problem: shards that are damaged, missing, or
    of another data set; wrong counts; repeated samples; images in two splits; equal images with different labels."""
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
    """Return the split folders of a data set, finished or not. Raises ValueError if there is none."""
    if not dataset.is_dir():
        raise ValueError(f"{dataset} is not a folder; give the folder of a data set.")
    splits = sorted({path.parent for pattern in (MANIFEST, "shard-*.h5") for path in dataset.rglob(pattern)})
    if not splits:
        raise ValueError(f"{dataset} contains no shards; make them with `deeplense simulate` or `deeplense pack`.")
    return splits


def verify_split(folder: Path) -> tuple[list[str], list[Contents]]:
    """Read a whole split. Returns what is wrong (a line per problem, naming the shard), and the contents of its good
    shards."""
    try:
        manifest = Manifest.read(folder)
        image_filters(manifest.schema)
    except ValueError as error:
        return [str(error)], []
    listed = {line["file"] for line in manifest.shards}
    stray = [path for path in sorted(folder.glob("shard-*.h5")) if path.name not in listed]
    problems, shards = [f"{path}: not in the manifest; remove it" for path in stray], []
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
    """Return the contents of a shard, which is read completely.

    Args:
        path: file of the shard.
        line: its entry in the manifest.
        schema: content of the split.

    Raises:
        ValueError: the shard is missing, damaged, or another one; the message names it.
    """
    if not path.exists():
        raise ValueError(
            f"{path}: missing; remove the manifest, and make the split again: only missing shards are made"
        )
    if (found := path.stat().st_size) != line["bytes"]:
        raise ValueError(f"{path}: {found} bytes, but the manifest has {line['bytes']}; {REMAKE}")
    if checksum(path) != line["xxh3_128"]:
        raise ValueError(f"{path}: does not match its checksum: it is damaged; {REMAKE}")
    return read_contents(path, schema, check_shard(path, line, schema))


def read_contents(path: Path, schema: Schema, sound: Sound) -> Contents:
    """Read a shard, some images at a time.

    Args:
        path: file of the shard.
        schema: content of the split.
        sound: its header and labels.

    Raises:
        ValueError: its images do not agree with its header; the message names it.
    """
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
        raise ValueError(f"{path}: the pixel sums in its header differ from those of its images; {REMAKE}")
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
        """Add these images (n, C, H, W), as stored."""
        pairs = zip(self.moments, moments_of(block, scale=self.schema.scale, zero=self.schema.zero), strict=True)
        self.moments = tuple(one + other for one, other in pairs)  # type: ignore[assignment]


def hashes(items: Iterable[bytes | memoryview]) -> np.ndarray:
    """Return a 64-bit hash of each item, (n,)."""
    return np.fromiter((xxhash.xxh3_64_intdigest(item) for item in items), dtype=np.uint64)


def repeats(folder: Path, shards: Sequence[Contents]) -> Iterator[str]:
    """Yield a line for samples of a split with the same name, or the same place in the source.

    Args:
        folder: folder of the split.
        shards: contents of its shards.
    """
    for what, parts in (("id", [part.ids for part in shards]), ("source_index", [part.sources for part in shards])):
        pairs = equal_pairs(np.concatenate(parts)) if parts else []
        lines = (f"{folder}: {name(shards, a)} and {name(shards, b)} have the same {what}" for a, b in pairs)
        yield from shortened(lines, len(pairs))


def equal_pairs(values: np.ndarray) -> np.ndarray:
    """Return the positions of equal values, in pairs, (k, 2).

    Example:
        >>> equal_pairs(np.array([5, 7, 5])).tolist()
        [[0, 2]]
    """
    order = np.argsort(values, kind="stable")
    return np.stack([order[:-1], order[1:]], axis=1)[values[order[:-1]] == values[order[1:]]]


def leaks(folder: Path, shards: Sequence[Contents], other: Path, theirs: Sequence[Contents]) -> Iterator[str]:
    """Yield a line for each image that is in two splits.

    Args:
        folder: folder of the first split.
        shards: contents of its shards.
        other: folder of the second split.
        theirs: contents of its shards.
    """
    if not shards or not theirs:
        return
    ours, others = (np.concatenate([part.images for part in parts]) for parts in (shards, theirs))
    _, here, there = np.intersect1d(ours, others, return_indices=True)
    told = "{}: {} is the same image as {} of {}; a leak between splits"
    pairs = zip(here, there, strict=True)
    lines = (told.format(folder, name(shards, a), name(theirs, b), other) for a, b in pairs)
    yield from shortened(lines, len(here))


def contradictions(shards: Sequence[Contents]) -> Iterator[str]:
    """Yield a line for equal images with different labels; splits may number their classes differently."""
    if not shards:
        return
    classes = sorted({name for part in shards for name in part.classes})
    labels = np.concatenate([numbers_of(part, classes) for part in shards])
    labelled = np.flatnonzero(labels >= 0)
    images = np.concatenate([part.images for part in shards])[labelled]
    pairs = labelled[equal_pairs(images)]
    pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    told = "{} ({}) is the same image as {} ({}) with a different label; correct one or remove both"
    lines = (
        told.format(*(part for k in pair for part in (place(shards, k), classes[labels[k]]))) for pair in pairs.tolist()
    )
    yield from shortened(lines, len(pairs))


def numbers_of(part: Contents, classes: Sequence[str]) -> np.ndarray:
    """Return the labels of a shard as numbers among all classes, (n,); -1 for none.

    Args:
        part: contents of the shard.
        classes: names of all classes.
    """
    known = np.array([classes.index(name) for name in part.classes] + [-1])
    return known[np.where((part.labels >= 0) & (part.labels < len(part.classes)), part.labels, -1)]


def place(shards: Sequence[Contents], number: int) -> str:
    """Return split and name of a sample.

    Args:
        shards: contents of some shards.
        number: number of the sample among those of these shards.
    """
    starts = np.cumsum([0] + [len(part.ids) for part in shards])
    shard = int(np.searchsorted(starts, number, side="right")) - 1
    return f"{shards[shard].path.parent}: {name(shards, number)}"


def name(shards: Sequence[Contents], number: int) -> str:
    """Return the name of a sample, read from its shard.

    Args:
        shards: contents of some shards.
        number: number of the sample among those of these shards.
    """
    starts = np.cumsum([0] + [len(part.ids) for part in shards])
    shard = int(np.searchsorted(starts, number, side="right")) - 1
    with opened(shards[shard].path) as file:
        return cast("h5py.Dataset", file["id"])[number - starts[shard]].decode(errors="replace")


def shortened(lines: Iterable[str], count: int) -> Iterator[str]:
    """Yield the first lines, and how many more there are.

    Args:
        lines: the lines.
        count: their number.

    Example:
        >>> list(shortened(["a", "b"], 2))
        ['a', 'b']
    """
    yield from islice(lines, MOST_TOLD)
    if count > MOST_TOLD:
        yield f"... and {count - MOST_TOLD} more of this kind"
