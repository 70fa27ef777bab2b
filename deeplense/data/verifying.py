"""Verifying a data set: every byte is read, and what is damaged, missing or in two splits is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import xxhash

from deeplense.data.shards import MANIFEST, Manifest, column
from deeplense.files import checksum

REMAKE = "remove it and the manifest, and make the split again: only what is missing is made"


def verify(dataset: Path) -> list[str]:
    """Read every byte of a data set and say what is wrong, a line each: damaged or missing shards, images in two
    splits."""
    problems, seen = [], {}
    for folder in find_splits(dataset):
        wrong, hashes = verify_split(folder)
        problems += wrong
        for value in hashes.keys() & seen.keys():
            problems.append(f"{folder}: {hashes[value]} is the same image as {seen[value]}; a leak between splits")
        seen |= {value: f"{name} of {folder}" for value, name in hashes.items()}
    return problems


def verify_split(folder: Path) -> tuple[list[str], dict[int, str]]:
    """Read a whole split. Returns what is wrong (a line each, naming the shard), and image hashes with their sample's
    id."""
    try:
        manifest = Manifest.read(folder)
    except ValueError as error:
        return [str(error)], {}
    listed = {shard["file"] for shard in manifest.shards}
    problems = [
        f"{path}: is not in the manifest; remove it" for path in folder.glob("shard-*.h5") if path.name not in listed
    ]
    hashes: dict[int, str] = {}
    for shard in manifest.shards:
        path = folder / shard["file"]
        problem = damage(path, shard)
        if problem:
            problems.append(f"{path}: {problem}")
        else:
            hashes.update(image_hashes(path))
    return problems, hashes


def damage(path: Path, shard: Mapping[str, Any]) -> str | None:
    """What is wrong with a shard file, given its line in the manifest, or None."""
    if not path.exists():
        return "is missing; remove the manifest, and make the split again: only what is missing is made"
    if path.stat().st_size != shard["bytes"]:
        found, expected = path.stat().st_size, shard["bytes"]
        return f"has {found} bytes where the manifest says {expected}; {REMAKE}"
    if checksum(path) != shard["xxh3_128"]:
        return f"does not match its checksum: it is damaged; {REMAKE}"
    return None


def image_hashes(path: Path) -> dict[int, str]:
    """A hash of each image of a shard, with the sample's id."""
    with h5py.File(path) as file:
        images, ids = column(file, "image"), column(file, "id")
    return {xxhash.xxh3_64_intdigest(image.tobytes()): name.decode() for image, name in zip(images, ids, strict=True)}


def find_splits(dataset: Path) -> list[Path]:
    """The split folders of a data set, finished or not. Raises ValueError where there is none."""
    if not dataset.is_dir():
        raise ValueError(f"{dataset} is no folder; give the folder of a data set.")
    splits = sorted({path.parent for pattern in (MANIFEST, "shard-*.h5") for path in dataset.rglob(pattern)})
    if not splits:
        raise ValueError(f"{dataset} holds no shards; make some with `deeplense simulate` or `deeplense pack`.")
    return splits
