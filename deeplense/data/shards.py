"""The format: a data set is a folder of splits, a split a folder of HDF5 shards and a manifest, written last.

    DATASET/train/shard-00000.h5 ... manifest.json     DATASET/test/...

In a shard, `image` (n, C, H, W) holds the images as stored; their values, in the unit of the schema, are stored * scale
+ zero. Uncompressed they are one contiguous, aligned block, so that they can be mapped into memory; compressed, each
image is a chunk, so that one can be read without the others. `label` (n,) is the number of the class or -1;
`target/NAME` (n,) holds the truth that is a number; `column/NAME` (n,) holds numbers or texts that are kept beside;
`id` (n,) names each sample, `source_index` (n,) its place in what was converted or simulated. A manifest stands only
beside shards that are all whole, and holds the checksum of each.
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
REMAKE = "remove it and the manifest, and make the split again: only missing shards are made"


def is_whole(value: Any) -> bool:
    """Whether a value is a positive integer that can be a number of samples or pixels."""
    return type(value) is int and 0 < value < 2**40


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def are_texts(values: Any) -> bool:
    """Whether values are different strings."""
    return (
        isinstance(values, tuple)
        and all(isinstance(value, str) for value in values)
        and len(set(values)) == len(values)
    )


def are_units(values: Any) -> bool:
    """Whether a value is a unit per name, where each name can be that of an array in a shard."""
    return isinstance(values, Mapping) and all(
        is_plain(name) and isinstance(unit, str) for name, unit in values.items()
    )


RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "split": (is_plain, "the plain name of a folder"),
    "num_samples": (is_whole, "an integer above 0"),
    "shape": (
        lambda value: isinstance(value, tuple) and len(value) == 3 and all(map(is_whole, value)),
        "three integers above 0: bands, height and width",
    ),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "bands": (are_texts, "unique names"),
    "unit": (lambda value: isinstance(value, str), "text"),
    "pixel_scale_arcsec": (lambda value: value is None or is_number(value), "a finite number, or None"),
    "classes": (are_texts, "unique names"),
    "targets": (are_units, "plain names with a unit each"),
    "columns": (are_units, "plain names with a unit each"),
    "provenance": (lambda value: isinstance(value, Mapping), "a mapping from names to values"),
    "scale": (lambda value: is_number(value) and value != 0, "a finite number other than 0"),
    "zero": (is_number, "a finite number"),
    "compression": (lambda value: value in COMPRESSIONS, f"one of {', '.join(COMPRESSIONS)}"),
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The properties that all samples of a split share.

    A value in `unit` is stored * `scale` + `zero`, as with BSCALE and BZERO in FITS. float16 needs half the bytes of
    float32 and keeps three decimal digits of numbers from 6e-5 to 65504, fewer of smaller ones, and none below 3e-8.

    Args:
        split: name of the split, a plain folder name.
        num_samples: number of samples, above 0.
        shape: (C, H, W).
        dtype: stored type: float32, float16, or an integer type.
        bands: names of the bands.
        unit: unit of the pixels.
        pixel_scale_arcsec: side of a pixel in arcsec; None for unknown.
        classes: names of the classes; empty for unlabelled images.
        targets: unit of each target by name.
        provenance: all parameters that made the data.
        scale: factor of stored values, not 0.
        zero: summand of stored values.
        compression: `none`, `lz4` or `zstd`.
        columns: unit of each column by name: numbers or texts that are kept with the samples, such as `ra` and `dec`,
            the position on the sky in degrees.

    Raises:
        ValueError: the format does not support a value.
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
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (is_right, said) in RULES.items():
            if not is_right(value := getattr(self, name)):
                raise ValueError(f"{name}={str(value)[:100]!r} must be {said}.")

    @property
    def grouped(self) -> bool:
        """Whether samples have groups, which stay together in one split, one fold and one part."""
        return self.targets.get(GROUP) == GROUP_UNIT

    @property
    def quantities(self) -> list[str]:
        """The targets that describe an image, without the number of its group."""
        return sorted(name for name in self.targets if not (self.grouped and name == GROUP))

    @property
    def fingerprint(self) -> str:
        """A hash of all of the above, which ties a shard to its data set."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """The schema as JSON in a unique form; without `columns` if there are none, as in earlier versions."""
        content = asdict(self)
        return canonical(content if self.columns else {name: content[name] for name in content if name != "columns"})


@dataclass(frozen=True)
class Samples:
    """Some samples.

    Args:
        images: (n, C, H, W), as stored, before scale and zero.
        labels: number of the class, (n,); -1 for none.
        targets: values by name, (n,) each; NaN for unknown.
        ids: a name per sample.
        source_index: place of each sample in its source, (n,).
        columns: numbers, NaN for unknown, or texts by name, (n,) each.
    """

    images: np.ndarray
    labels: np.ndarray
    targets: Mapping[str, np.ndarray]
    ids: Sequence[str]
    source_index: np.ndarray
    columns: Mapping[str, np.ndarray | Sequence[float | str]] = field(default_factory=dict)


def canonical(value: Any) -> str:
    """Return JSON in a unique form, for hashing.

    Example:
        >>> canonical({"b": 1, "a": [1.5]})
        '{"a":[1.5],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def shard_ranges(schema: Schema) -> list[range]:
    """Return the samples of each shard: whole blocks of 64, at most 256 MiB per shard, at least 8 shards if there are
    enough samples.

    This depends on the schema only, so that the bytes do not depend on the number of processes that write.
    """
    starts = shard_starts(schema)
    return [range(k, min(k + starts.step, schema.num_samples)) for k in starts]


def shard_starts(schema: Schema) -> range:
    """Return the first sample of each shard."""
    row_bytes = math.prod(schema.shape) * np.dtype(schema.dtype).itemsize
    largest = max(SHARD_BYTES // row_bytes, BLOCK_ROWS)
    rows = min(largest, math.ceil(schema.num_samples / FEWEST_SHARDS))
    rows = max(math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, BLOCK_ROWS)
    return range(0, schema.num_samples, rows)


def shard_name(number: int) -> str:
    """Return the file name of a shard.

    Example:
        >>> shard_name(3)
        'shard-00003.h5'
    """
    return f"shard-{number:05d}.h5"


def image_filters(schema: Schema) -> dict[str, Any]:
    """Return HDF5's options for compressed images, empty for others.

    Every process that reads compressed images calls this first: it registers the codec with HDF5.

    zstd is the smallest for simulated lenses: for floats (of which noise leaves 86 %) after Blosc's byte shuffle, for
    integers after bitshuffle. lz4 is after bitshuffle, larger by a few per cent, and read three times as fast.

    Raises:
        ValueError: the codec is not installed.
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
    """Raise an error unless a file has this version of the format.

    Args:
        path: the file.
        found: version in the file.

    Raises:
        Unlike: another version.
    """
    if found != FORMAT:
        told = f"{path} has the format {found}, but this version of deeplense reads only {FORMAT}"
        raise Unlike(f"{told}; make the data set again in another folder.")


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Args:
        folder: folder of the split.
        schema: content of the split.
        dataset_id: hash of the manifest.
        statistics: `mean` and `std` of the pixels, a number per band.
        class_counts: number of samples of each class.
        shards: file name, number of samples, size, checksum and image offset of each shard.
    """

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
        """Read and check the manifest of a split. Raises ValueError if it is missing, damaged, or of
        another version."""
        path = folder / MANIFEST
        if not path.exists():
            raise ValueError(
                f"{folder} has no {MANIFEST}: it is not a finished split of a data set. "
                "Run the same `deeplense simulate` or `deeplense pack` command again to resume."
            )
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a manifest of a data set; make the split again.")
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
    """Return the schema of a manifest. Raises ValueError if it is invalid."""
    if not isinstance(raw, dict) or not {each.name for each in fields(Schema)}.issuperset(raw):
        raise ValueError("has no schema, or a schema of another version of deeplense")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    try:
        return Schema(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has an invalid schema: {error}") from error


def statistics_in(content: Mapping[str, Any], schema: Schema) -> dict[str, list[float]]:
    """Return mean and standard deviation of each band.

    Args:
        content: content of the manifest.
        schema: content of the split.

    Raises:
        ValueError: they are missing.
    """
    told = content.get("statistics")
    if not isinstance(told, dict) or set(told) != {"mean", "std"}:
        raise ValueError("has no statistics with mean and std")
    for values in told.values():
        right = isinstance(values, list) and len(values) == schema.shape[0]
        if not right or not all(isinstance(value, float) for value in values):
            raise ValueError(f"does not have mean and std for each of {schema.shape[0]} bands")
    return told


def counts_in(content: Mapping[str, Any], schema: Schema) -> dict[str, int]:
    """Return the number of samples of each class.

    Args:
        content: content of the manifest.
        schema: content of the split.

    Raises:
        ValueError: they are missing or impossible.
    """
    told = content.get("class_counts")
    if not isinstance(told, dict) or set(told) != set(schema.classes):
        raise ValueError(f"does not have class_counts for each of the classes {list(schema.classes)}")
    if not all(type(count) is int and 0 <= count <= schema.num_samples for count in told.values()):
        raise ValueError(f"has class_counts that are not integers from 0 to {schema.num_samples}")
    return {name: told[name] for name in schema.classes}


def lines_in(content: Mapping[str, Any], schema: Schema) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the entries of a manifest for the shards, and what is expected of each.

    Args:
        content: content of the manifest.
        schema: content of the split.

    Raises:
        ValueError: the number of shards is wrong.
    """
    told, count = content.get("shards"), len(shard_starts(schema))
    if not isinstance(told, list) or len(told) != count:
        found = len(told) if isinstance(told, list) else "no"
        raise ValueError(f"lists {found} shards, but {schema.num_samples} samples need {count}")
    ranges = enumerate(shard_ranges(schema))
    return told, [{"file": shard_name(number), "num_samples": len(rows)} for number, rows in ranges]


def checked_line(told: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a shard in a manifest.

    Args:
        told: the entry.
        expected: file name and number of samples that are expected.

    Raises:
        ValueError: the entry belongs to another shard, or is incomplete.
    """
    name = expected["file"]
    if not isinstance(told, dict) or told.get("file") != name:
        found = told.get("file") if isinstance(told, dict) else told
        raise ValueError(f"lists the shard {str(found)[:100]!r} instead of {name}; do not use it")
    if told.get("num_samples") != expected["num_samples"]:
        raise ValueError(
            f"lists {name} with {str(told.get('num_samples'))[:100]} samples instead of {expected['num_samples']}"
        )
    size, offset, digest = (told.get(key) for key in ("bytes", "image_offset", "xxh3_128"))
    right = is_whole(size) and (offset is None or (type(offset) is int and 0 <= offset < 2**62))
    if not right or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"does not have the size, image offset and checksum of {name}")
    return told


Moments = tuple[int, np.ndarray, np.ndarray]


def moments_of(images: np.ndarray, *, scale: float = 1.0, zero: float = 0.0) -> Moments:
    """Return number of pixels per band, their sum and their sum of squares, (C,) each, in float64.

    Args:
        images: stored images, (n, C, H, W).
        scale: factor of stored values.
        zero: summand of stored values.

    Example:
        >>> count, total, squares = moments_of(np.full((2, 1, 4, 4), 3.0))
        >>> count, total.tolist(), squares.tolist()
        (32, [96.0], [288.0])
    """
    total, squares = np.zeros((2, images.shape[1]))
    for start in range(0, len(images), BLOCK_ROWS):
        values = images[start : start + BLOCK_ROWS].astype(np.float64) * scale + zero
        total += values.sum(axis=(0, 2, 3))
        squares += (values**2).sum(axis=(0, 2, 3))
    return images.size // images.shape[1], total, squares


def statistics_of(moments: Sequence[Moments]) -> dict[str, list[float]]:
    """Return mean and standard deviation of each band, from the moments of its parts.

    Example:
        >>> statistics_of([moments_of(np.array([[[[1.0, 3.0]]]]))])
        {'mean': [2.0], 'std': [1.0]}
    """
    count = sum(part[0] for part in moments)
    mean = np.sum([part[1] for part in moments], axis=0) / count
    square = np.sum([part[2] for part in moments], axis=0) / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}


def counts_of(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the number of samples of each class, (num_classes,); a label of -1 is ignored.

    Args:
        labels: (n,).
        num_classes: number of classes.

    Example:
        >>> counts_of(np.array([0, 0, 2, -1]), 3).tolist()
        [2, 0, 1]
    """
    return np.bincount(labels[labels >= 0], minlength=num_classes)


def read_columns(path: Path, schema: Schema) -> dict[str, np.ndarray]:
    """Return everything of a shard except its images: `label`, `source_index`, `id` (bytes), `target/NAME` and
    `column/NAME`, (n,) each.

    Args:
        path: file of the shard.
        schema: content of the split.
    """
    names = ["label", "source_index", "id", *(f"target/{name}" for name in schema.targets)]
    names += [f"column/{name}" for name in schema.columns]
    with h5py.File(path, locking=False) as file:
        return {name: column(file, name) for name in names}


def column(file: h5py.File, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Return an array of a shard, or some of its rows.

    Args:
        file: the open shard.
        name: name of the array.
        rows: which rows.
    """
    return np.asarray(file[name][rows])  # type: ignore[index]
