"""Building a split: which shards are missing, the processes that write them, and the manifest in the end."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplense.data.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    Samples,
    Schema,
    canonical,
    column,
    image_offset,
    moments_of,
    require_same,
    shard_name,
    shard_ranges,
    statistics_of,
    write_shard,
)
from deeplense.files import checksum, remove, remove_leftovers, write_json

Make = Callable[[range], Samples]


def build(folder: Path, schema: Schema, make: Make, *, num_workers: int = 1) -> Iterator[int]:
    """Write a split, yielding the number of samples done so far; shards that are there already are kept.

    Args:
        folder: where the split goes; made if need be.
        schema: what it will hold.
        make: gives the samples of a range; must be picklable if `num_workers` > 1.
        num_workers: processes.

    Raises:
        ValueError: the folder holds shards of something else, or the samples are bad. Shards that this call wrote are
            then removed.
    """
    ranges = shard_ranges(schema)
    if (folder / MANIFEST).exists():
        require_same(folder, Manifest.read(folder).fingerprint, schema)
        yield schema.num_samples
        return
    if folder.is_dir():
        remove_leftovers(folder)
    todo = [number for number in range(len(ranges)) if not keeps(folder / shard_name(number), schema)]
    done = schema.num_samples - sum(len(ranges[number]) for number in todo)
    yield done
    try:
        for number in write_all(folder, schema, make, todo, num_workers):
            done += len(ranges[number])
            yield done
    except ValueError:
        for number in todo:
            remove(folder / shard_name(number))
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    write_json(folder / MANIFEST, manifest_of(folder, schema))


def write_all(folder: Path, schema: Schema, make: Make, numbers: Sequence[int], num_workers: int) -> Iterator[int]:
    """Write these shards, yielding each number as it is done."""
    ranges = shard_ranges(schema)
    if num_workers == 1 or len(numbers) < 2:
        for number in numbers:
            write_shard(folder / shard_name(number), schema, make(ranges[number]))
            yield number
        return
    context = get_context("forkserver")
    # Imported once, before the writers are forked: on a shared file system many imports at a time are slow.
    context.set_forkserver_preload(["torch", getattr(make, "func", make).__module__])
    with ProcessPoolExecutor(min(num_workers, len(numbers)), mp_context=context) as pool:
        jobs = {
            pool.submit(make_and_write, folder / shard_name(number), schema, make, ranges[number]): number
            for number in numbers
        }
        try:
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        finally:
            pool.shutdown(cancel_futures=True)


def make_and_write(path: Path, schema: Schema, make: Make, rows: range) -> None:
    """One shard, in a worker process."""
    write_shard(path, schema, make(rows))


def keeps(path: Path, schema: Schema) -> bool:
    """Whether a whole shard of this data set stands there. Raises ValueError where it is of another."""
    if not path.exists():
        return False
    with h5py.File(path) as file:
        require_same(path, str(file.attrs["fingerprint"]), schema)
    return True


def manifest_of(folder: Path, schema: Schema) -> dict[str, Any]:
    """The manifest of a folder whose shards are all there, as JSON, read off the shards themselves."""
    shards, moments, labels = [], [], []
    for number, rows in enumerate(shard_ranges(schema)):
        path = folder / shard_name(number)
        with h5py.File(path) as file:
            moments.append(moments_of(column(file, "image")))
            labels.append(column(file, "label"))
            offset = image_offset(file)
        shards.append(
            {
                "file": path.name,
                "num_samples": len(rows),
                "bytes": path.stat().st_size,
                "xxh3_128": checksum(path),
                "image_offset": offset,
            }
        )
    label = np.concatenate(labels)
    content = {
        "format": FORMAT,
        "schema": json.loads(canonical(asdict(schema))),
        "statistics": statistics_of(moments),
        "class_counts": {name: int((label == k).sum()) for k, name in enumerate(schema.classes)},
        "shards": shards,
    }
    return content | {"dataset_id": hashlib.sha256(canonical(content).encode()).hexdigest()}
