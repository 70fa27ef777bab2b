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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from deeplense.files import read_json, replacing

FORMAT = "deeplense-shards/2"
MANIFEST = "manifest.json"
BLOCK_ROWS = 64
SHARD_BYTES = 256 * 2**20
FEWEST_SHARDS = 8
ALIGNMENT = 2**20
DTYPES = ("uint8", "int16", "uint16", "int32", "float16", "float32")
COMPRESSIONS = ("none", "lz4", "zstd")
GROUP, GROUP_UNIT = "group", "number of the group"
"""The target that says which samples belong together, and its unit."""
FLOAT16_LOSS = 2.0**-10
REMAKE = "remove it and the manifest, and make the split again: only what is missing is made"


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
        for name, known in (("dtype", DTYPES), ("compression", COMPRESSIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown to the format; it knows {', '.join(known)}.")
        if not (math.isfinite(self.scale) and math.isfinite(self.zero) and self.scale != 0):
            raise ValueError(f"scale={self.scale}, zero={self.zero}: both must be finite, and scale not 0.")

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
    row_bytes = math.prod(schema.shape) * np.dtype(schema.dtype).itemsize
    largest = max(SHARD_BYTES // row_bytes, BLOCK_ROWS)
    rows = min(largest, math.ceil(schema.num_samples / FEWEST_SHARDS))
    rows = max(math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, BLOCK_ROWS)
    return [range(k, min(k + rows, schema.num_samples)) for k in range(0, schema.num_samples, rows)]


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.h5"


def write_shard(path: Path, schema: Schema, samples: Samples) -> None:
    """Write one shard, whole or not at all. Raises ValueError, naming the sample, where samples break the schema."""
    stored = stored_images(schema, samples)
    check_labels(schema, samples)
    filters = image_filters(schema)
    # Chunks are not aligned: each would fill the interval.
    interval = 1 if filters else ALIGNMENT
    with (
        replacing(path) as temporary,
        # Files of this version open only when their writer closed them: a torn shard names itself. They are not locked,
        # which some file systems cannot do: the temporary name is this writer's alone.
        h5py.File(
            temporary,
            "w",
            libver=("v110", "v110"),
            locking=False,
            alignment_threshold=65536,
            alignment_interval=interval,
        ) as file,
    ):
        file.attrs.update(format=FORMAT, fingerprint=schema.fingerprint, schema=canonical(asdict(schema)))
        image = file.create_dataset("image", data=stored, **filters)
        image.attrs.update(axes="N,C,H,W", unit=schema.unit, bands=list(schema.bands))
        image.attrs.update(scale=schema.scale, zero=schema.zero)
        count, total, squares = moments_of(stored, scale=schema.scale, zero=schema.zero)
        image.attrs.update(pixels_per_band=count, sum=total, sum_of_squares=squares)
        if schema.pixel_scale_arcsec:
            image.attrs["pixel_scale_arcsec"] = schema.pixel_scale_arcsec
        file["label"] = samples.labels.astype(np.int64)
        file["source_index"] = samples.source_index.astype(np.int64)
        file["id"] = np.array([name.encode() for name in samples.ids])
        for name, unit in schema.targets.items():
            target = file.create_dataset(f"target/{name}", data=samples.targets[name].astype(np.float64))
            target.attrs["unit"] = unit


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


def stored_images(schema: Schema, samples: Samples) -> np.ndarray:
    """Images in the type of the split. Raises ValueError, naming the first sample, where it cannot hold them."""
    given = samples.images
    if given.shape != (len(samples.ids), *schema.shape):
        raise ValueError(f"images have the shape {given.shape[1:]} where {schema.shape} is expected.")
    if given.dtype.kind not in "biuf":
        raise ValueError(f"images are of the type {given.dtype} where numbers are expected.")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = given.astype(schema.dtype, copy=False)
    told = "has pixels that are not finite (NaN or infinite). Mend or leave out the image, or give --fill_nan VALUE"
    refuse(samples, ~np.isfinite(given), f"{told} to put a value in their place.")
    if stored.dtype.kind == "f":
        beyond, limits = ~np.isfinite(stored), f"up to {np.finfo(stored.dtype).max:.6g}"
    else:
        beyond, limits = stored != given, f"whole, {np.iinfo(stored.dtype).min} to {np.iinfo(stored.dtype).max}"
    refuse(samples, beyond, f"has values that {schema.dtype} cannot hold ({limits}); give another --dtype.")
    if schema.dtype == "float16":
        told = "is so faint that float16 loses more than 0.1 % of its brightest pixel; give --dtype float32."
        refuse(samples, np.array([is_lost(*pair) for pair in zip(stored, given, strict=True)]), told)
    return stored


def is_lost(stored: np.ndarray, given: np.ndarray) -> bool:
    """Whether an image changed by more than float16 changes numbers that are neither huge nor tiny."""
    wide = given.astype(np.float64)
    return bool(np.abs(stored - wide).max() > FLOAT16_LOSS * np.abs(wide).max())


def refuse(samples: Samples, bad: np.ndarray, message: str) -> None:
    """Raise ValueError with the name of the first sample with anything bad (n, ...), if there is one."""
    if bad.any():
        first = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
        raise ValueError(f"{samples.ids[first]}: {message}")


def check_labels(schema: Schema, samples: Samples) -> None:
    """Raise ValueError, naming the first bad sample, unless all labels are classes of the split."""
    unlabelled = 0 if schema.classes else -1
    wrong = (samples.labels < unlabelled) | (samples.labels >= max(len(schema.classes), 0))
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"{samples.ids[k]}: label {samples.labels[k]} is none of the classes {list(schema.classes)}.")


@dataclass(frozen=True)
class Header:
    """What a shard says of itself: the hash of its schema, how many samples it has, where in the file its images begin
    (bytes; None where they are compressed), and the moments of their values."""

    fingerprint: str
    num_samples: int
    image_offset: int | None
    moments: "Moments"


def read_header(path: Path) -> Header:
    """What a shard says of itself; no image is read. Raises ValueError, naming it, for a damaged one and for one of
    another version of the format."""
    try:
        with h5py.File(path, locking=False) as file:
            refuse_version(path, file.attrs.get("format"))
            image = cast("h5py.Dataset", file["image"])
            told: Any = image.attrs
            moments = (int(told["pixels_per_band"]), np.asarray(told["sum"]), np.asarray(told["sum_of_squares"]))
            return Header(str(file.attrs["fingerprint"]), len(image), image_offset(file), moments)
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {REMAKE}.") from error


def refuse_version(path: Path, found: object) -> None:
    """Raise ValueError unless a file is of this version of the format."""
    if found != FORMAT:
        told = f"{path} is of the format {found}, and this version of deeplense reads only {FORMAT}"
        raise ValueError(f"{told}; make the data set again, into another folder.")


def check_shard(path: Path, line: Mapping[str, Any], schema: Schema) -> None:
    """Raise ValueError, naming the file, unless it is the shard that its line in the manifest tells of, of the version
    and the schema of the manifest. Cheap: no image is read, so that damaged pixels are not seen."""
    if not path.exists() or path.stat().st_size != line["bytes"]:
        raise ValueError(f"{path} is missing or of another size than the manifest says; `deeplense verify` tells more.")
    header = read_header(path)
    if header.fingerprint != schema.fingerprint:
        raise ValueError(f"{path} is of another data set than the manifest beside it; {REMAKE}.")
    for name in ("num_samples", "image_offset"):
        if (found := getattr(header, name)) != line[name]:
            raise ValueError(f"{path} has {name} {found} where the manifest says {line[name]}; {REMAKE}.")


def read_columns(path: Path, schema: Schema) -> dict[str, np.ndarray]:
    """All of a shard but its images: `label`, `source_index`, `id` (bytes) and `target/NAME`, (n,) each."""
    names = ["label", "source_index", "id", *(f"target/{name}" for name in schema.targets)]
    with h5py.File(path, locking=False) as file:
        return {name: column(file, name) for name in names}


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
        if told != hashlib.sha256(canonical(content).encode()).hexdigest():
            raise ValueError(f"{path} does not match its own hash: it was damaged or edited. Make the split again.")
        raw = content["schema"]
        tuples = {name: tuple(raw[name]) for name in ("shape", "bands", "classes")}
        schema = Schema(**(raw | tuples))
        return cls(folder, schema, told, content["statistics"], content["class_counts"], content["shards"])


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


def column(file: h5py.File, name: str) -> np.ndarray:
    """A whole array of a shard."""
    return np.asarray(file[name])


def image_offset(file: h5py.File) -> int | None:
    """Where in the file the images begin, bytes; None where they are compressed."""
    return cast("h5py.Dataset", file["image"]).id.get_offset()
