"""Building a split: find the missing shards, write them in parallel processes, and write the manifest at the end.

One call may write everything, or separate jobs may write parts of the shards, on any nodes and at any time; the bytes
do not depend on it. A part writes shards and removes none. The manifests are written when no shard of the data set is
missing, by whichever job notices that. No lock is held here: each job lists the folders after its own last rename, so
that on a network file system, too, the last one sees all shards. If two notice it at the same time, they write the same
bytes, each by a rename. If none does (the last was killed just then), the same command without a part finds all shards
and writes the manifests.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.checking import check_contents, read_fingerprint
from deeplense.data.processes import done_by
from deeplense.data.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    Samples,
    Schema,
    canonical,
    counts_of,
    image_filters,
    shard_name,
    shard_ranges,
    statistics_of,
)
from deeplense.data.writing import write_shard
from deeplense.files import TEMPORARY, checksum, remove, remove_leftovers, write_json

Make = Callable[[range], Samples]


class Contested(ValueError):
    """Another process writes the same split; nothing there is touched."""


def build(folder: Path, schema: Schema, make: Make, *, num_workers: int = 1) -> Iterator[int]:
    """Write a split, yielding the number of samples done so far; existing shards are kept.

    Only the folder's single writer may call this: it removes unfinished files of killed writers.

    Args:
        folder: folder of the split; created if needed.
        schema: content of the split.
        make: returns the samples of a range; must be picklable if `num_workers` > 1.
        num_workers: number of processes, each of which holds one shard in memory.

    Raises:
        ValueError: the folder holds shards of another data set, or the samples are invalid. Shards that this call wrote
            are then removed.
    """
    if folder.is_dir():
        remove_leftovers(folder)
    todo = missing_shards(folder, schema)
    try:
        yield from write_missing(folder, schema, make, range(len(shard_ranges(schema))), num_workers)
    except Contested:
        raise
    except ValueError:
        for number in todo:
            remove(folder / shard_name(number))
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    complete({folder: schema})


def build_part(
    folder: Path, schema: Schema, make: Make, *, part: tuple[int, int], num_workers: int = 1
) -> Iterator[int]:
    """Write the shards of one part of a split, yielding the number of its samples done so far; no manifest is written.

    Args:
        folder: as in `build`; other parts may be written at the same time.
        schema: as in `build`.
        make: as in `build`.
        part: (k, n) for part k of n, from 1.
        num_workers: as in `build`.

    Raises:
        ValueError: as in `build`, but nothing is removed: the complete shards of this part are good, and the data set
            stays incomplete because of the one that failed.
    """
    numbers = shards_of(schema, part)
    ours = {f"{TEMPORARY}{shard_name(number)}" for number in numbers}
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.name.rpartition("-")[0] in ours:
            remove(leftover)
    yield from write_missing(folder, schema, make, numbers, num_workers)


def shards_of(schema: Schema, part: tuple[int, int]) -> range:
    """Return the numbers of the shards of a part; there may be none.

    Args:
        schema: content of the split.
        part: (k, n) for part k of n, from 1.
    """
    return range(part[0] - 1, len(shard_ranges(schema)), part[1])


def num_samples_of(schema: Schema, part: tuple[int, int]) -> int:
    """Return the number of samples in the shards of a part.

    Args:
        schema: content of the split.
        part: (k, n) for part k of n, from 1.
    """
    return sum(len(rows) for rows in shard_ranges(schema)[part[0] - 1 :: part[1]])


def missing_shards(folder: Path, schema: Schema) -> list[int]:
    """Return the numbers of the missing shards.

    Args:
        folder: folder of the split.
        schema: content of the split.
    """
    # Listed: whether a file exists may be answered from memory on NFS, of before another node made it.
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [number for number in range(len(shard_ranges(schema))) if shard_name(number) not in there]


def complete(splits: Mapping[Path, Schema]) -> int:
    """Write the manifest of each split if no shard of any is missing; returns the number of missing shards.

    Args:
        splits: schema of each split, by its folder.

    Raises:
        ValueError: a shard is damaged or belongs to another data set.
    """
    missing = sum(len(missing_shards(folder, schema)) for folder, schema in splits.items())
    for folder, schema in splits.items():
        if not missing and not (folder / MANIFEST).exists():
            write_json(folder / MANIFEST, manifest_of(folder, schema))
    return missing


def write_missing(folder: Path, schema: Schema, make: Make, numbers: Sequence[int], num_workers: int) -> Iterator[int]:
    """Write those of some shards that are missing, yielding the number of their samples done so far.

    Args:
        folder: folder of the split.
        schema: content of the split.
        make: returns the samples of a range.
        numbers: numbers of the shards.
        num_workers: number of processes.
    """
    image_filters(schema)  # Where the codec is missing, nothing need be made.
    ranges = shard_ranges(schema)
    done = sum(len(ranges[number]) for number in numbers)
    if (folder / MANIFEST).exists():
        require_same(folder, Manifest.read(folder).fingerprint, schema)
        yield done
        return
    todo = [number for number in numbers if not keeps(folder / shard_name(number), schema)]
    done -= sum(len(ranges[number]) for number in todo)
    yield done
    for number in write_all(folder, schema, make, todo, num_workers):
        done += len(ranges[number])
        yield done


def write_all(folder: Path, schema: Schema, make: Make, numbers: Sequence[int], num_workers: int) -> Iterator[int]:
    """Write these shards, yielding the number of each one when it is done.

    Args:
        folder: folder of the split.
        schema: content of the split.
        make: returns the samples of a range.
        numbers: numbers of the shards.
        num_workers: number of processes.
    """
    write_one = partial(make_and_write_shard, folder, schema, make)
    module = getattr(make, "func", make).__module__
    yield from done_by(write_one, numbers, num_workers=num_workers, preload=module)


def make_and_write_shard(folder: Path, schema: Schema, make: Make, number: int) -> None:
    """Write one shard.

    Args:
        folder: folder of the split.
        schema: content of the split.
        make: returns the samples of a range.
        number: number of the shard.
    """
    make_and_write(folder / shard_name(number), schema, make, shard_ranges(schema)[number])


def make_and_write(path: Path, schema: Schema, make: Make, rows: range) -> None:
    """Write one shard.

    Args:
        path: file of the shard.
        schema: content of the split.
        make: returns the samples of a range.
        rows: numbers of its samples.

    Raises:
        ValueError: the number of samples is wrong.
    """
    samples = make(rows)
    if len(samples.ids) != len(rows):
        raise ValueError(f"{path} must have {len(rows)} samples, but {len(samples.ids)} were made.")
    try:
        write_shard(path, schema, samples)
    except FileNotFoundError as error:
        raise Contested(
            f"{path} was removed while it was being written: another process writes into {path.parent}. Wait "
            "until that "
            "process has ended, then run this command again to resume."
        ) from error


def keeps(path: Path, schema: Schema) -> bool:
    """Whether a complete shard of this data set exists.

    Args:
        path: file of the shard.
        schema: content of the split.

    Raises:
        ValueError: the shard is damaged or belongs to another data set.
    """
    if not path.exists():
        return False
    require_same(path, read_fingerprint(path), schema)
    check_contents(path, schema)
    return True


def require_same(path: Path, fingerprint: str, schema: Schema) -> None:
    """Raise an error unless a file was made with the same parameters.

    Args:
        path: file or folder, for messages.
        fingerprint: fingerprint of the file.
        schema: content of the split.

    Raises:
        ValueError: the fingerprints differ.
    """
    if fingerprint != schema.fingerprint:
        raise ValueError(
            f"{path} was made with parameters that differ from the current ones. "
            "Give another output folder, or remove this folder if it is not needed."
        )


def manifest_of(folder: Path, schema: Schema) -> dict[str, Any]:
    """Return the manifest of a complete folder as JSON, read from the shards. Their images are read for the checksums
    only.

    Args:
        folder: folder of the split.
        schema: content of the split.
    """
    shards, moments, counts = [], [], np.zeros(len(schema.classes), dtype=np.int64)
    for number, rows in enumerate(shard_ranges(schema)):
        path = folder / shard_name(number)
        require_same(path, read_fingerprint(path), schema)
        found = check_contents(path, schema)
        moments.append(found.header.moments)
        counts += counts_of(found.labels, len(schema.classes))
        shards.append(
            {
                "file": path.name,
                "num_samples": len(rows),
                "bytes": path.stat().st_size,
                "xxh3_128": checksum(path),
                "image_offset": found.header.image_offset,
            }
        )
    content = {
        "format": FORMAT,
        "schema": json.loads(schema.text),
        "statistics": statistics_of(moments),
        "class_counts": dict(zip(schema.classes, counts.tolist(), strict=True)),
        "shards": shards,
    }
    return content | {"dataset_id": hashlib.sha256(canonical(content).encode()).hexdigest()}
