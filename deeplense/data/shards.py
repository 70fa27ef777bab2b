"""The format: a data set is a folder of splits, a split a folder of HDF5 shards and a manifest, written last.

    DATASET/train/shard-00000.h5 ... manifest.json     DATASET/test/...

In a shard, `image` (n, C, H, W) is one contiguous, uncompressed, aligned block, so that it can be mapped into memory;
`label` (n,) is the
number of the class or -1; `target/NAME` (n,) holds the truth that is a number; `id` (n,) names each sample,
`source_index` (n,) its place in
what was converted or simulated. A manifest stands only beside shards that are all whole, and holds the checksum of
each.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from deeplense.files import read_json, replacing

FORMAT = "deeplense-shards/1"
MANIFEST = "manifest.json"
BLOCK_ROWS = 64
SHARD_BYTES = 256 * 2**20
FEWEST_SHARDS = 8
ALIGNMENT = 2**20


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What all samples of a split share.

    `shape` is (C, H, W), `classes` may be empty for unlabelled images, `targets` maps a name to its unit,
    `provenance` holds every parameter that made the data.
    """

    split: str
    num_samples: int
    shape: tuple[int, int, int]
    dtype: str
    bands: tuple[str, ...]
    unit: str
    pixel_scale_arcsec: float | None
    classes: tuple[str, ...]
    targets: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    zero: float = 0.0
    compression: str = "none"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of all of the above, which ties a shard to its data set."""
        return hashlib.sha256(canonical(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Samples:
    """Some samples: images (n, C, H, W), labels (n,), targets (n,) each, one id for each, and where they came from."""

    images: np.ndarray
    labels: np.ndarray
    targets: Mapping[str, np.ndarray]
    ids: Sequence[str]
    source_index: np.ndarray


def canonical(value: Any) -> str:
    """JSON with one spelling only, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def shard_ranges(schema: Schema) -> list[range]:
    """Which samples each shard holds: whole blocks of 64, at most 256 MiB a shard, at least 8 shards where there are
    enough.

    A function of the schema alone, so that the bytes do not depend on how many processes write.
    """
    row_bytes = math.prod(schema.shape) * np.dtype(schema.dtype).itemsize
    largest = max(SHARD_BYTES // row_bytes, BLOCK_ROWS)
    rows = min(largest, math.ceil(schema.num_samples / FEWEST_SHARDS))
    rows = max(math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, BLOCK_ROWS)
    return [range(k, min(k + rows, schema.num_samples)) for k in range(0, schema.num_samples, rows)]


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.h5"


def require_same(path: Path, fingerprint: str, schema: Schema) -> None:
    """Raise ValueError unless what stands at `path` was made with the same parameters."""
    if fingerprint != schema.fingerprint:
        raise ValueError(
            f"{path} was made with other parameters than those asked for now. "
            "Give another folder, or remove that one first if it is not needed."
        )


def write_shard(path: Path, schema: Schema, samples: Samples) -> None:
    """Write one shard, whole or not at all. Raises ValueError, naming the sample, where samples break the schema."""
    check_samples(schema, samples)
    with (
        replacing(path) as temporary,
        # Files of this version open only when their writer closed them: a torn shard names itself.
        h5py.File(
            temporary, "w", libver=("v110", "v110"), alignment_threshold=65536, alignment_interval=ALIGNMENT
        ) as file,
    ):
        file.attrs.update(format=FORMAT, fingerprint=schema.fingerprint, schema=canonical(asdict(schema)))
        image = file.create_dataset("image", data=samples.images.astype(schema.dtype, copy=False))
        image.attrs.update(axes="N,C,H,W", unit=schema.unit, bands=list(schema.bands))
        if schema.pixel_scale_arcsec:
            image.attrs["pixel_scale_arcsec"] = schema.pixel_scale_arcsec
        file["label"] = samples.labels.astype(np.int64)
        file["source_index"] = samples.source_index.astype(np.int64)
        file["id"] = np.array(samples.ids, dtype="S")
        for name, unit in schema.targets.items():
            target = file.create_dataset(f"target/{name}", data=samples.targets[name].astype(np.float64))
            target.attrs["unit"] = unit


def check_samples(schema: Schema, samples: Samples) -> None:
    """Raise ValueError, naming the first bad sample, unless shapes, values and labels fit the schema."""
    if samples.images.shape != (len(samples.ids), *schema.shape):
        raise ValueError(f"images have the shape {samples.images.shape[1:]} where {schema.shape} is expected.")
    stored = samples.images.astype(schema.dtype, copy=False)
    if stored.dtype.kind != "f" and (changed := (stored != samples.images).any(axis=(1, 2, 3))).any():
        raise ValueError(f"{samples.ids[int(changed.argmax())]}: has values that {schema.dtype} cannot hold.")
    bad = ~np.isfinite(stored).all(axis=(1, 2, 3))
    if bad.any():
        raise ValueError(
            f"{samples.ids[int(bad.argmax())]}: has pixels that are not finite (NaN or infinite). "
            "Mend or leave out the image, or give --fill_nan VALUE to put a value in their place."
        )
    unlabelled = 0 if schema.classes else -1
    wrong = (samples.labels < unlabelled) | (samples.labels >= max(len(schema.classes), 0))
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"{samples.ids[k]}: label {samples.labels[k]} is none of the classes {list(schema.classes)}.")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says: the schema, and the shards with the checksum of each."""

    folder: Path
    schema: Schema
    dataset_id: str
    statistics: dict[str, list[float]]
    class_counts: dict[str, int]
    shards: list[dict[str, Any]]

    @property
    def fingerprint(self) -> str:
        """The hash of the schema."""
        return self.schema.fingerprint

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check the manifest of a split. Raises ValueError where there is none, or a damaged or newer one."""
        path = folder / MANIFEST
        if not path.exists():
            raise ValueError(
                f"{folder} has no {MANIFEST}: it is no finished split of a data set. "
                "Run the `deeplense simulate` or `deeplense pack` that made it again: it continues."
            )
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} is not of the format {FORMAT}; make the data set again with this version.")
        told = content.pop("dataset_id", None)
        if told != hashlib.sha256(canonical(content).encode()).hexdigest():
            raise ValueError(f"{path} does not match its own hash: it was damaged or edited. Make the split again.")
        raw = content["schema"]
        tuples = {name: tuple(raw[name]) for name in ("shape", "bands", "classes")}
        schema = Schema(**(raw | tuples))
        return cls(folder, schema, told, content["statistics"], content["class_counts"], content["shards"])


Moments = tuple[int, np.ndarray, np.ndarray]


def moments_of(images: np.ndarray) -> Moments:
    """Number of pixels a band, their sum and their sum of squares (C,), of images (n, C, H, W), in float64."""
    wide = images.astype(np.float64)
    return images.size // images.shape[1], wide.sum(axis=(0, 2, 3)), (wide**2).sum(axis=(0, 2, 3))


def statistics_of(moments: Sequence[Moments]) -> dict[str, list[float]]:
    """Mean and standard deviation of each band, from the moments of its parts, in the order given."""
    count = sum(part[0] for part in moments)
    mean = np.sum([part[1] for part in moments], axis=0) / count
    square = np.sum([part[2] for part in moments], axis=0) / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}


def column(file: h5py.File, name: str) -> np.ndarray:
    """A whole array of a shard."""
    return np.asarray(file[name])


def image_offset(file: h5py.File) -> int:
    """Where in the file the images begin, bytes."""
    return cast("h5py.Dataset", file["image"]).id.get_offset()
