"""Samples that are made up, each a function of its number, and data sets of them."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplense.data.building import Make, build
from deeplense.data.shards import MANIFEST, Manifest, Samples, Schema, canonical, column, image_filters
from deeplense.files import read_json, write_json

NUM_SAMPLES = 200
SCHEMA = Schema(
    split="train",
    num_samples=NUM_SAMPLES,
    shape=(2, 4, 5),
    dtype="float32",
    bands=("g", "r"),
    unit="counts",
    pixel_scale_arcsec=0.1,
    classes=("yes", "no"),
    targets={"mass": "kg"},
    provenance={"made_by": "a test", "seed": 3},
)


def samples(rows: range, seed: int = 3) -> Samples:
    """Some of an endless row of samples."""
    images = np.stack([np.random.default_rng((seed, i)).normal(size=SCHEMA.shape) for i in rows])
    numbers = np.arange(rows.start, rows.stop)
    return Samples(images.astype(np.float32), numbers % 2, {"mass": numbers / 2}, [f"id{i}" for i in rows], numbers)


def counts(rows: range) -> Samples:
    """The same with images of whole numbers from 0 to 255."""
    good = samples(rows)
    return replace(good, images=np.clip(np.round(good.images * 40 + 100), 0, 255).astype(np.int64))


def made(folder: Path, schema: Schema = SCHEMA, make: Make = samples, **settings: int) -> list[int]:
    """Build a split; gives what is yielded."""
    return list(build(folder, schema, make, **settings))


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def columns(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a split, read by h5py alone."""
    manifest = Manifest.read(folder)
    image_filters(manifest.schema)
    parts: dict[str, list[np.ndarray]] = {}
    for shard in manifest.shards:
        with h5py.File(folder / shard["file"]) as file:
            for name in ("image", "label", "id", "source_index", "target/mass"):
                parts.setdefault(name, []).append(column(file, name))
    return {name: np.concatenate(found) for name, found in parts.items()}


def spoilt(k: int, spoil: Callable[[Samples], Any]) -> Make:
    """`samples`, with the range that holds sample k spoilt."""
    return lambda rows: spoil(samples(rows)) if k in rows else samples(rows)


def forge(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a manifest and give it the hash that fits."""
    told = read_json(folder / MANIFEST)
    del told["dataset_id"]
    edit(told)
    write_json(folder / MANIFEST, told | {"dataset_id": hashlib.sha256(canonical(told).encode()).hexdigest()})


def never(rows: range) -> Samples:
    """Samples that are never made; a file is named after the process that begins with them."""
    Path(f"{os.environ['NOTES']}/{os.getpid()}").touch()
    time.sleep(1000)
    return samples(rows)
