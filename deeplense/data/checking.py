"""Whether a shard agrees with the format, the schema and the manifest, before a byte of its images is used.

A shard may come from anyone: HDF5 can take images from other files, store them in any type and by any filter, and a
memory mapping does not notice. So everything that is read without HDF5 is checked first.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplense.data.shards import (
    GROUP,
    REMAKE,
    Manifest,
    Moments,
    Schema,
    Unlike,
    image_filters,
    refuse_version,
    statistics_of,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_ID_BYTES = 4096
RELATIVE = 1e-6
"""Relative tolerance of sums in float64 that are computed on different machines."""


class Wrong(Exception):
    """What is wrong with a shard, without its name."""


@dataclass(frozen=True)
class Header:
    """The header of a shard.

    Args:
        fingerprint: hash of its schema.
        num_samples: number of its samples.
        image_offset: position of its images in bytes; None if they are compressed.
        moments: moments of their values.
    """

    fingerprint: str
    num_samples: int
    image_offset: int | None
    moments: Moments


@dataclass(frozen=True)
class Sound:
    """A shard that is right except perhaps its pixels.

    Args:
        header: its header.
        labels: (n,).
        texts: names of the columns that hold texts.
    """

    header: Header
    labels: np.ndarray
    texts: tuple[str, ...] = ()


def check_shard(path: Path, line: Mapping[str, Any], schema: Schema) -> Sound:
    """Return header and labels of a shard. No image is read, so damaged pixels are not noticed.

    Args:
        path: file of the shard.
        line: its entry in the manifest.
        schema: content of the split.

    Raises:
        ValueError: the shard does not agree with its entry and the schema; the message names it.
    """
    refuse_other_size(path, line)
    found = check_contents(path, schema)
    for name in ("num_samples", "image_offset"):
        if (value := getattr(found.header, name)) != line[name]:
            raise ValueError(f"{path} has {name} {value}, but its manifest has {line[name]}; {REMAKE}.")
    return found


def refuse_other_size(path: Path, line: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the file, unless the size of a shard agrees with the manifest.

    Args:
        path: file of the shard.
        line: its entry in the manifest.
    """
    if not path.is_file() or path.stat().st_size != line["bytes"]:
        raise ValueError(
            f"{path} is missing or its size differs from the manifest; run `deeplense verify` for details."
        )


def read_fingerprint(path: Path) -> str:
    """Return the hash of the schema of a shard. Raises ValueError, naming the file, if it is damaged or of another
    version of the format."""
    with opened(path) as file:
        refuse_version(path, text(file.attrs.get("format")))
        return str(file.attrs["fingerprint"])


def check_contents(path: Path, schema: Schema) -> Sound:
    """Return header and labels of a shard without a manifest.

    Args:
        path: file of the shard.
        schema: content of the split.

    Raises:
        ValueError: the shard does not agree with the format and the schema; the message names it.
    """
    with opened(path) as file:
        refuse_version(path, text(file.attrs.get("format")))
        refuse_other_schema(path, file, schema)
        return contents(file, schema, num_bytes=path.stat().st_size)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a shard; any error during its reading becomes a ValueError that names it."""
    try:
        with path.open("rb") as stream:
            if stream.read(len(SIGNATURE)) != SIGNATURE:
                raise Wrong("does not start with the HDF5 signature")
        with h5py.File(path, locking=False) as file:
            yield file
    except Wrong as error:
        raise ValueError(f"{path} is damaged or not a shard of this format: it {error}; {REMAKE}.") from error
    except Unlike:
        raise
    except Exception as error:  # HDF5 raises anything for a torn or hostile file
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); {REMAKE}.") from error


def text(value: object) -> str | None:
    """Return a value if it is a string, otherwise None."""
    return value if isinstance(value, str) else None


def refuse_other_schema(path: Path, file: h5py.File, schema: Schema) -> None:
    """Raise an error unless a shard was written with this schema.

    Args:
        path: file of the shard.
        file: the open shard.
        schema: content of the split.

    Raises:
        Unlike: it belongs to another data set.
        Wrong: its schema is damaged.
    """
    told, fingerprint = text(file.attrs["schema"]), text(file.attrs["fingerprint"])
    if fingerprint != schema.fingerprint:
        raise Unlike(f"{path} belongs to another data set than the manifest in its folder; {REMAKE}.")
    if told is None or hashlib.sha256(told.encode(errors="replace")).hexdigest() != fingerprint:
        raise Wrong("has a schema that does not match its own hash")


def contents(file: h5py.File, schema: Schema, *, num_bytes: int) -> Sound:
    """Return header and labels of a shard.

    Args:
        file: the open shard.
        schema: content of the split.
        num_bytes: size of the file in bytes.

    Raises:
        Wrong: it does not agree with the schema.
    """
    image = dataset(file, "image")
    num_samples = image.shape[0] if image.shape else 0
    expected = {"image": (np.dtype(schema.dtype), tuple(schema.shape)), "label": (np.dtype(np.int64), ())}
    expected |= {"source_index": (np.dtype(np.int64), ()), "id": (None, ())}
    expected |= {f"target/{name}": (np.dtype(np.float64), ()) for name in schema.targets}
    texts = tuple(name for name in schema.columns if dataset(file, f"column/{name}").dtype.kind == "S")
    kinds = {name: None if name in texts else np.dtype(np.float64) for name in schema.columns}
    expected |= {f"column/{name}": (kind, ()) for name, kind in kinds.items()}
    for name, (dtype, shape) in expected.items():
        found = dataset(file, name)
        refuse_other_type(name, found, dtype)
        if found.shape != (num_samples, *shape) or found.maxshape != found.shape or num_samples == 0:
            raise Wrong(f"has {name} of shape {found.shape} instead of {(num_samples, *shape)}")
        if name == "image" and schema.compression != "none":
            refuse_other_chunks(found, schema)
        else:
            refuse_not_in_one_piece(name, found, num_bytes)
    labels = np.asarray(file["label"])
    refuse_values(file, schema, labels, texts)
    header = Header(schema.fingerprint, num_samples, image.id.get_offset(), moments_in(image, schema, num_samples))
    return Sound(header, labels, texts)


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return an array of a shard.

    Args:
        file: the open shard.
        name: name of the array.

    Raises:
        Wrong: it is missing, or linked to elsewhere.
    """
    place: Any = file
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or part not in place:
            raise Wrong(f"has no {name}")
        if type(place.get(part, getlink=True)) is not h5py.HardLink:
            raise Wrong(f"has a link instead of the array {name}")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.is_virtual or place.external:
        raise Wrong(f"stores {name} in another file, or not as an array")
    return place


def refuse_other_type(name: str, found: h5py.Dataset, dtype: np.dtype | None) -> None:
    """Raise Wrong unless an array has exactly this type, in little-endian order.

    Args:
        name: name of the array.
        found: the array.
        dtype: expected type; None for text of one length.
    """
    if dtype is not None:
        kind, right = str(dtype), found.id.get_type().equal(h5py.h5t.py_create(dtype.newbyteorder("<")))
    else:
        kind, right = "text of fixed length", found.dtype.kind == "S" and 0 < found.dtype.itemsize <= MOST_ID_BYTES
    if not right:
        raise Wrong(f"has {name} of type {found.dtype} ({found.dtype.byteorder}) instead of {kind}")


def refuse_not_in_one_piece(name: str, found: h5py.Dataset, num_bytes: int) -> None:
    """Raise Wrong unless an array is contiguous within the file, and images, which are mapped, are aligned.

    Args:
        name: name of the array.
        found: the array.
        num_bytes: size of the file in bytes.
    """
    properties, offset = found.id.get_create_plist(), found.id.get_offset()
    needed = found.size * found.dtype.itemsize
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_nfilters() or offset is None:
        raise Wrong(f"does not store {name} contiguously")
    if name == "image" and offset % found.dtype.itemsize:
        raise Wrong(f"has {name} at byte {offset}, which is not aligned to its type")
    if found.id.get_storage_size() != needed or offset + needed > num_bytes:
        raise Wrong(f"has {name} at byte {offset} with {needed} bytes, more than the {num_bytes} bytes of the file")


def refuse_other_chunks(found: h5py.Dataset, schema: Schema) -> None:
    """Raise Wrong unless each image is a compressed chunk by itself, with the filter of the schema only.

    Args:
        found: the images.
        schema: content of the split.
    """
    properties, expected = found.id.get_create_plist(), image_filters(schema)
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    if found.chunks != expected["chunks"] or filters != [expected["compression"]]:
        raise Wrong(
            f"has images in chunks of {found.chunks} with the filters {filters} instead of {schema.compression}"
        )
    if found.id.get_num_chunks() != len(found):
        raise Wrong(f"has {found.id.get_num_chunks()} images instead of {len(found)}")


def refuse_values(file: h5py.File, schema: Schema, labels: np.ndarray, texts: Sequence[str]) -> None:
    """Raise Wrong if a label is not a class, or a target or a number in a column is infinite.

    Args:
        file: the open shard.
        schema: content of the split.
        labels: (n,).
        texts: names of the columns that hold texts.
    """
    if labels.min() < -1 or labels.max() >= max(len(schema.classes), 0):
        raise Wrong(f"has labels from {labels.min()} to {labels.max()}, but {len(schema.classes)} classes")
    for name in schema.targets:
        values = np.asarray(file[f"target/{name}"])
        if np.isinf(values).any():
            raise Wrong(f"has an infinite value of {name}")
        if schema.grouped and name == GROUP and not ((values >= 0) & (values < 2**53) & (values % 1 == 0)).all():
            raise Wrong(f"has a {name} that is not an integer of 0 or more")
    for name in schema.columns:
        if name not in texts and np.isinf(np.asarray(file[f"column/{name}"])).any():
            raise Wrong(f"has an infinite value of {name}")


def moments_in(image: h5py.Dataset, schema: Schema, num_samples: int) -> Moments:
    """Return the moments of the images, from the header of a shard.

    Args:
        image: the images.
        schema: content of the split.
        num_samples: number of images.

    Raises:
        Wrong: the moments, or scale and zero, are impossible.
    """
    scale, zero, count = (number_in(image, name) for name in ("scale", "zero", "pixels_per_band"))
    if (scale, zero) != (schema.scale, schema.zero):
        raise Wrong(f"has scale {scale} and zero {zero}, but its schema has {schema.scale} and {schema.zero}")
    channels, height, width = schema.shape
    total, squares = (np.asarray(image.attrs[name]) for name in ("sum", "sum_of_squares"))
    right = all(each.shape == (channels,) and each.dtype == np.float64 for each in (total, squares))
    if not right or count != num_samples * height * width or (squares < 0).any():
        raise Wrong("has pixel sums that are impossible for its images")
    return int(count), total, squares


def number_in(image: h5py.Dataset, name: str) -> float:
    """Return a number from the attributes of the images.

    Args:
        image: the images.
        name: name of the attribute.

    Raises:
        Wrong: it is not a number.
    """
    found = image.attrs[name]
    if not isinstance(found, (int, float, np.integer, np.floating)):
        raise Wrong(f"has a {name} that is not a number")
    return found.item() if isinstance(found, np.generic) else found


def differ(found: Moments, told: Moments) -> bool:
    """Whether two moments belong to different images, rather than to sums in another order.

    Args:
        found: computed moments.
        told: moments from the header.
    """
    norm = RELATIVE * np.sqrt(np.maximum(found[2], 0) * found[0])
    wrong = np.abs(found[1] - told[1]) > norm
    return found[0] != told[0] or bool((wrong | ~np.isclose(found[2], told[2], rtol=RELATIVE, atol=0)).any())


def miscounts(manifest: Manifest, found: Sequence[Sound]) -> Iterator[str]:
    """Yield a line if the statistics or the labels of all shards disagree with the manifest, or the shards differ in
    the types of their columns.

    Args:
        manifest: manifest of the split.
        found: header and labels of each shard.
    """
    expected = statistics_of([sound.header.moments for sound in found])
    for name, told in manifest.statistics.items():
        near = np.isclose(expected[name], told, rtol=RELATIVE, atol=RELATIVE * max(expected["std"]), equal_nan=True)
        if not near.all():
            yield f"{manifest.folder}: the manifest has {name} {told}, but the shards have {expected[name]}; {REMAKE}"
    classes, labels = manifest.schema.classes, np.concatenate([sound.labels for sound in found])
    numbers, counts = np.unique(labels, return_counts=True)
    held = {(classes[k] if k >= 0 else "-1"): int(count) for k, count in zip(numbers, counts, strict=True)}
    told_counts = {name: count for name, count in manifest.class_counts.items() if count}
    unlabelled = manifest.schema.num_samples - sum(told_counts.values())
    if held != told_counts | ({"-1": unlabelled} if unlabelled else {}):
        said = f"the manifest has class counts {manifest.class_counts} for {manifest.schema.num_samples} samples"
        yield f"{manifest.folder}: {said}, but the shards have {held}; {REMAKE}"
    if len({sound.texts for sound in found}) > 1:
        yield f"{manifest.folder}: a column holds numbers in some shards and texts in others; {REMAKE}"
