"""The format: a data set is a folder of splits, a split a folder of HDF5 shards and a manifest, written last.

    DATASET/train/shard-00000.h5 ... manifest.json     DATASET/test/...

In a shard, `image` (n, C, H, W) holds the images as stored; their values, in the unit of the schema, are stored * scale
+ zero. Uncompressed they are one contiguous, aligned block, so that they can be mapped into memory; compressed, each
image is a chunk, so that one can be read without the others. `label` (n,) is the number of the class or -1;
`target/NAME` (n,) holds the truth that is a number; `id` (n,) names each sample, `source_index` (n,) its place in what
was converted or simulated. A manifest stands only beside shards that are all whole, and holds the checksum of each.
"""

import hashlib
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplense.files import inside, is_plain, read_json

FORMAT = "deeplense-shards/2"
MANIFEST = "manifest.json"
BLOCK_ROWS = 64
SHARD_BYTES = 256 * 2**20
FEWEST_SHARDS = 8
ALIGNMENT = 2**20
DIGEST = re.compile(r"[0-9a-f]{32}")
DTYPES = ("uint8", "int16", "uint16", "int32", "float16", "float32")
COMPRESSIONS = ("none", "lz4", "zstd")
GROUP, GROUP_UNIT = "group", "number of the group"
"""The target that says which samples belong together, and its unit."""
REMAKE = "remove it and the manifest, and make the split again: only what is missing is made"


def is_whole(value: Any) -> bool:
    """Whether this is a whole number above 0 that can be a number of samples or pixels."""
    return type(value) is int and 0 < value < 2**40


def is_number(value: Any) -> bool:
    """Whether this is a number, and finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def are_texts(values: Any) -> bool:
    """Whether these are different words."""
    return (
        isinstance(values, tuple)
        and all(isinstance(value, str) for value in values)
        and len(set(values)) == len(values)
    )


def are_units(values: Any) -> bool:
    """Whether this gives a unit for each name, under which it can be found in a shard."""
    return isinstance(values, Mapping) and all(
        is_plain(name) and isinstance(unit, str) for name, unit in values.items()
    )


RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "split": (is_plain, "the plain name of a folder"),
    "num_samples": (is_whole, "a whole number above 0"),
    "shape": (
        lambda value: isinstance(value, tuple) and len(value) == 3 and all(map(is_whole, value)),
        "three whole numbers above 0: bands, height and width",
    ),
    "dtype": (lambda value: value in DTYPES, f"known to the format: {', '.join(DTYPES)}"),
    "bands": (are_texts, "different names"),
    "unit": (lambda value: isinstance(value, str), "text"),
    "pixel_scale_arcsec": (lambda value: value is None or is_number(value), "a finite number, or None"),
    "classes": (are_texts, "different names"),
    "targets": (are_units, "a unit for each plain name"),
    "provenance": (lambda value: isinstance(value, Mapping), "names and values"),
    "scale": (lambda value: is_number(value) and value != 0, "a finite number that is not 0"),
    "zero": (is_number, "a finite number"),
    "compression": (lambda value: value in COMPRESSIONS, f"known to the format: {', '.join(COMPRESSIONS)}"),
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What all samples of a split share.

    `shape` is (C, H, W), `classes` may be empty for unlabelled images, `targets` maps a name to its unit,
    `provenance` holds every parameter that made the data. A value in `unit` is stored * `scale` + `zero`, as BSCALE
    and BZERO say it in FITS. `dtype` is of what is stored: float32, or half the bytes as float16, which keeps three
    decimal digits of numbers from 6e-5 to 65504, fewer of smaller ones, and none below 3e-8; or an integer type. Raises
    ValueError for what the format does not know.
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
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    zero: float = 0.0
    compression: str = "none"

    def __post_init__(self) -> None:
        for name, (is_right, said) in RULES.items():
            if not is_right(value := getattr(self, name)):
                raise ValueError(f"{name}={str(value)[:100]!r} must be {said}.")

    @property
    def grouped(self) -> bool:
        """Whether samples are in groups, which are together in one split, one fold and one part."""
        return self.targets.get(GROUP) == GROUP_UNIT

    @property
    def fingerprint(self) -> str:
        """A hash of all of the above, which ties a shard to its data set."""
        return hashlib.sha256(canonical(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Samples:
    """Some samples: images (n, C, H, W) as stored, before scale and zero; labels (n,), targets (n,) each, one id for
    each, and where they came from."""

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
    starts = shard_starts(schema)
    return [range(k, min(k + starts.step, schema.num_samples)) for k in starts]


def shard_starts(schema: Schema) -> range:
    """The first sample of each shard."""
    row_bytes = math.prod(schema.shape) * np.dtype(schema.dtype).itemsize
    largest = max(SHARD_BYTES // row_bytes, BLOCK_ROWS)
    rows = min(largest, math.ceil(schema.num_samples / FEWEST_SHARDS))
    rows = max(math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, BLOCK_ROWS)
    return range(0, schema.num_samples, rows)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.h5"


def image_filters(schema: Schema) -> dict[str, Any]:
    """HDF5's options for compressed images, empty for others. Whatever process reads compressed images calls it first:
    it makes the codec known to HDF5. Raises ValueError, naming the remedy, where the codec is not installed.

    zstd is what was smallest of simulated lenses: for floats (of which noise leaves 86 %) after Blosc's shuffle of
    bytes, for integers after bitshuffle. lz4 is after bitshuffle, larger by some percent, and read three times as fast.
    """
    if schema.compression == "none":
        return {}
    try:
        codecs: Any = importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise ValueError(
            f"compression={schema.compression} needs a package that is not installed: pip install hdf5plugin"
        ) from error
    by_blosc = schema.compression == "zstd" and np.dtype(schema.dtype).kind == "f"
    codec = codecs.Blosc2(cname="zstd") if by_blosc else codecs.Bitshuffle(cname=schema.compression)
    return {"chunks": (1, *schema.shape), **codec}


class Unlike(ValueError):
    """A file of another version of the format, or of another data set."""


def refuse_version(path: Path, found: object) -> None:
    """Raise Unlike unless a file is of this version of the format."""
    if found != FORMAT:
        told = f"{path} is of the format {found}, and this version of deeplense reads only {FORMAT}"
        raise Unlike(f"{told}; make the data set again, into another folder.")


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
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no manifest of a data set; make the split again.")
        refuse_version(path, content.get("format"))
        told = content.pop("dataset_id", None)
        try:
            if told != hashlib.sha256(canonical(content).encode()).hexdigest():
                raise ValueError("does not match its own hash: it was damaged or edited")
            schema = schema_in(content.get("schema"))
            statistics, counts = statistics_in(content, schema), counts_in(content, schema)
            lines = [checked_line(*pair) for pair in zip(*lines_in(content, schema), strict=True)]
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} {error}. Make the split again, or copy it again.") from error
        for line in lines:
            inside(folder, line["file"], record=path)
        return cls(folder, schema, told, statistics, counts, lines)


def schema_in(raw: Any) -> Schema:
    """The schema of a manifest. Raises ValueError where it is none."""
    if not isinstance(raw, dict) or not {each.name for each in fields(Schema)}.issuperset(raw):
        raise ValueError("has no schema, or one of another version of deeplense")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    try:
        return Schema(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has a schema that is none: {error}") from error


def statistics_in(content: Mapping[str, Any], schema: Schema) -> dict[str, list[float]]:
    """Mean and standard deviation of each band. Raises ValueError where a manifest does not say them."""
    told = content.get("statistics")
    if not isinstance(told, dict) or set(told) != {"mean", "std"}:
        raise ValueError("has no statistics of mean and std")
    for values in told.values():
        right = isinstance(values, list) and len(values) == schema.shape[0]
        if not right or not all(isinstance(value, float) for value in values):
            raise ValueError(f"has no mean and std of each of {schema.shape[0]} bands")
    return told


def counts_in(content: Mapping[str, Any], schema: Schema) -> dict[str, int]:
    """How many samples of each class there are. Raises ValueError where a manifest does not say it."""
    told = content.get("class_counts")
    if not isinstance(told, dict) or set(told) != set(schema.classes):
        raise ValueError(f"does not count each of the classes {list(schema.classes)}")
    if not all(type(count) is int and 0 <= count <= schema.num_samples for count in told.values()):
        raise ValueError(f"has class_counts that are no numbers of samples out of {schema.num_samples}")
    return {name: told[name] for name in schema.classes}


def lines_in(content: Mapping[str, Any], schema: Schema) -> tuple[list[Any], list[dict[str, Any]]]:
    """What a manifest says of each shard, and what follows from the schema. Raises ValueError where it has not as many
    shards."""
    told, count = content.get("shards"), len(shard_starts(schema))
    if not isinstance(told, list) or len(told) != count:
        found = len(told) if isinstance(told, list) else "no"
        raise ValueError(f"has {found} shards where {schema.num_samples} samples are in {count}")
    ranges = enumerate(shard_ranges(schema))
    return told, [{"file": shard_name(number), "num_samples": len(rows)} for number, rows in ranges]


def checked_line(told: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a manifest. Raises ValueError unless it is of the expected shard, by its plain name, and says what must
    be known of one."""
    name = expected["file"]
    if not isinstance(told, dict) or told.get("file") != name:
        found = told.get("file") if isinstance(told, dict) else told
        raise ValueError(f"names the shard {str(found)[:100]!r} where {name} is expected; do not use it")
    if told.get("num_samples") != expected["num_samples"]:
        raise ValueError(
            f"is wrong on {name}: of {expected['num_samples']} samples it says {str(told.get('num_samples'))[:100]}"
        )
    size, offset, digest = (told.get(key) for key in ("bytes", "image_offset", "xxh3_128"))
    right = is_whole(size) and (offset is None or (type(offset) is int and 0 <= offset < 2**62))
    if not right or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"does not say the size, the place of the images and the checksum of {name}")
    return told


Moments = tuple[int, np.ndarray, np.ndarray]


def moments_of(images: np.ndarray, *, scale: float = 1.0, zero: float = 0.0) -> Moments:
    """Number of pixels a band, their sum and their sum of squares (C,), of images (n, C, H, W), in float64; of the
    values stored * scale + zero."""
    total, squares = np.zeros((2, images.shape[1]))
    for start in range(0, len(images), BLOCK_ROWS):
        values = images[start : start + BLOCK_ROWS].astype(np.float64) * scale + zero
        total += values.sum(axis=(0, 2, 3))
        squares += (values**2).sum(axis=(0, 2, 3))
    return images.size // images.shape[1], total, squares


def statistics_of(moments: Sequence[Moments]) -> dict[str, list[float]]:
    """Mean and standard deviation of each band, from the moments of its parts, in the order given."""
    count = sum(part[0] for part in moments)
    mean = np.sum([part[1] for part in moments], axis=0) / count
    square = np.sum([part[2] for part in moments], axis=0) / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}


def counts_of(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many samples of each class there are, (num_classes,); a label of -1 is of none."""
    return np.bincount(labels[labels >= 0], minlength=num_classes)


def read_columns(path: Path, schema: Schema) -> dict[str, np.ndarray]:
    """All of a shard but its images: `label`, `source_index`, `id` (bytes) and `target/NAME`, (n,) each."""
    names = ["label", "source_index", "id", *(f"target/{name}" for name in schema.targets)]
    with h5py.File(path, locking=False) as file:
        return {name: column(file, name) for name in names}


def column(file: h5py.File, name: str) -> np.ndarray:
    """A whole array of a shard."""
    return np.asarray(file[name])
