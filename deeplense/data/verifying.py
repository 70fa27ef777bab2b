"""Verifying a data set: every byte is read, and what is damaged, wrong, there twice or in two splits is named.

Of each sample four numbers stay in memory, 32 bytes; its name is read again where it is to be told.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import xxhash

from deeplense.data.shards import (
    BLOCK_ROWS,
    MANIFEST,
    REMAKE,
    Manifest,
    Schema,
    check_shard,
    image_filters,
    read_columns,
)
from deeplense.files import checksum

MOST_TOLD = 10


@dataclass(frozen=True)
class Contents:
    """What is kept of a shard: for each sample a hash of its image, a hash of its id, its place in the source, and its
    label, (n,) each; and the names of the classes."""

    path: Path
    images: np.ndarray
    ids: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


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
        if problem := damage(path, line, manifest.schema):
            problems.append(problem)
        else:
            shards.append(read_contents(path, manifest.schema))
    problems += repeats(folder, shards)
    if len(shards) == len(manifest.shards):
        problems += miscounts(manifest, shards)
    return problems, shards


def damage(path: Path, line: Mapping[str, Any], schema: Schema) -> str | None:
    """What is wrong with a shard, given its line in the manifest, or None."""
    if not path.exists():
        return f"{path}: is missing; remove the manifest, and make the split again: only what is missing is made"
    if (found := path.stat().st_size) != line["bytes"]:
        return f"{path}: has {found} bytes where the manifest says {line['bytes']}; {REMAKE}"
    if checksum(path) != line["xxh3_128"]:
        return f"{path}: does not match its checksum: it is damaged; {REMAKE}"
    try:
        check_shard(path, line, schema)
    except ValueError as error:
        return str(error)
    return None


def read_contents(path: Path, schema: Schema) -> Contents:
    """Read a shard, some images at a time."""
    columns = read_columns(path, schema)
    return Contents(
        path,
        images=hashes(image.data for image in image_values(path, schema)),
        ids=hashes(columns["id"].tolist()),
        sources=columns["source_index"],
        labels=columns["label"],
        classes=schema.classes,
    )


def image_values(path: Path, schema: Schema) -> Iterator[np.ndarray]:
    """The images of a shard one by one, (C, H, W) float64, in the unit of the schema: whatever their type, equal images
    have equal values."""
    with h5py.File(path, locking=False) as file:
        stored = cast("h5py.Dataset", file["image"])
        for start in range(0, len(stored), BLOCK_ROWS):
            yield from stored[start : start + BLOCK_ROWS].astype(np.float64) * schema.scale + schema.zero


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
    with h5py.File(shards[shard].path, locking=False) as file:
        return cast("h5py.Dataset", file["id"])[number - starts[shard]].decode()


def shortened(lines: Iterable[str], count: int) -> Iterator[str]:
    """The first lines of `count`, and how many more there are."""
    yield from islice(lines, MOST_TOLD)
    if count > MOST_TOLD:
        yield f"... and {count - MOST_TOLD} more such"


def miscounts(manifest: Manifest, shards: Sequence[Contents]) -> Iterator[str]:
    """Where the labels of all shards are not as many as the manifest says."""
    found = Counter(label for part in shards for label in part.labels.tolist())
    expected = Counter({number: count for number, count in enumerate(manifest.class_counts.values())})
    unlabelled = Counter({-1: manifest.schema.num_samples - expected.total()})
    if found != expected + unlabelled:
        classes = manifest.schema.classes
        named = {classes[k] if 0 <= k < len(classes) else str(k): count for k, count in sorted(found.items())}
        told = f"the manifest counts {manifest.class_counts} of {manifest.schema.num_samples} samples"
        yield f"{manifest.folder}: {told}, but the shards hold {named}; {REMAKE}"
