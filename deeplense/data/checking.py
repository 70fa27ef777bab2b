"""Whether a shard is what the format, the schema and the manifest say, before a byte of its images is used.

A shard may come from anyone: HDF5 can take images from other files, store them in any type and by any filter, and a
mapping sees none of that. So all that is read without HDF5's help is compared first.
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
"""To which sums in float64 agree wherever they are computed."""


class Wrong(Exception):
    """What is wrong with a shard, without its name."""


@dataclass(frozen=True)
class Header:
    """What a shard says of itself: the hash of its schema, how many samples it has, where in the file its images begin
    (bytes; None where they are compressed), and the moments of their values."""

    fingerprint: str
    num_samples: int
    image_offset: int | None
    moments: Moments


@dataclass(frozen=True)
class Sound:
    """A shard that is right in all but perhaps its pixels: its header, labels (n,), and its targets, (n,) each."""

    header: Header
    labels: np.ndarray


def check_shard(path: Path, line: Mapping[str, Any], schema: Schema) -> Sound:
    """What a shard says of itself and its labels. Raises ValueError, naming the file, unless it is the shard that its
    line in the manifest tells of, of the version and the schema of the manifest. Cheap: no image is read, so that
    damaged pixels are not seen."""
    refuse_other_size(path, line)
    found = check_contents(path, schema)
    for name in ("num_samples", "image_offset"):
        if (value := getattr(found.header, name)) != line[name]:
            raise ValueError(f"{path} has {name} {value} where the manifest says {line[name]}; {REMAKE}.")
    return found


def refuse_other_size(path: Path, line: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the file, unless a shard has as many bytes as its line in the manifest says."""
    if not path.is_file() or path.stat().st_size != line["bytes"]:
        raise ValueError(f"{path} is missing or of another size than the manifest says; `deeplense verify` tells more.")


def read_fingerprint(path: Path) -> str:
    """The hash of the schema that a shard was written with. Raises ValueError, naming the file, for a damaged one and
    for one of another version of the format."""
    with opened(path) as file:
        refuse_version(path, text(file.attrs.get("format")))
        return str(file.attrs["fingerprint"])


def check_contents(path: Path, schema: Schema) -> Sound:
    """The same of a shard that no manifest tells of. Raises ValueError, naming the file, unless all of it is as the
    format and this schema say."""
    with opened(path) as file:
        refuse_version(path, text(file.attrs.get("format")))
        refuse_other_schema(path, file, schema)
        return contents(file, schema, num_bytes=path.stat().st_size)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A shard; whatever goes wrong while it is read becomes a ValueError that names it."""
    try:
        with path.open("rb") as stream:
            if stream.read(len(SIGNATURE)) != SIGNATURE:
                raise Wrong("does not begin as an HDF5 file does")
        with h5py.File(path, locking=False) as file:
            yield file
    except Wrong as error:
        raise ValueError(f"{path} is damaged, or no shard of this format: it {error}; {REMAKE}.") from error
    except Unlike:
        raise
    except Exception as error:  # HDF5 raises anything for a torn or hostile file
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); {REMAKE}.") from error


def text(value: object) -> str | None:
    """A value that is text; None for any other."""
    return value if isinstance(value, str) else None


def refuse_other_schema(path: Path, file: h5py.File, schema: Schema) -> None:
    """Raise ValueError unless a shard was written with this schema."""
    told, fingerprint = text(file.attrs["schema"]), text(file.attrs["fingerprint"])
    if fingerprint != schema.fingerprint:
        raise Unlike(f"{path} is of another data set than the manifest beside it; {REMAKE}.")
    if told is None or hashlib.sha256(told.encode(errors="replace")).hexdigest() != fingerprint:
        raise Wrong("has a schema that does not match its own hash")


def contents(file: h5py.File, schema: Schema, *, num_bytes: int) -> Sound:
    """What a shard of this schema holds. Raises Wrong where it holds something else."""
    image = dataset(file, "image")
    num_samples = image.shape[0] if image.shape else 0
    expected = {"image": (np.dtype(schema.dtype), tuple(schema.shape)), "label": (np.dtype(np.int64), ())}
    expected |= {"source_index": (np.dtype(np.int64), ()), "id": (None, ())}
    expected |= {f"target/{name}": (np.dtype(np.float64), ()) for name in schema.targets}
    for name, (dtype, shape) in expected.items():
        found = dataset(file, name)
        refuse_other_type(name, found, dtype)
        if found.shape != (num_samples, *shape) or found.maxshape != found.shape or num_samples == 0:
            raise Wrong(f"has {name} of the shape {found.shape} where {(num_samples, *shape)} is expected")
        if name == "image" and schema.compression != "none":
            refuse_other_chunks(found, schema)
        else:
            refuse_not_in_one_piece(name, found, num_bytes)
    labels = np.asarray(file["label"])
    refuse_values(file, schema, labels)
    return Sound(
        Header(schema.fingerprint, num_samples, image.id.get_offset(), moments_in(image, schema, num_samples)), labels
    )


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A named array of a shard. Raises Wrong where it is reached by a link to elsewhere, or is none."""
    place: Any = file
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or part not in place:
            raise Wrong(f"has no {name}")
        if type(place.get(part, getlink=True)) is not h5py.HardLink:
            raise Wrong(f"has a link to elsewhere in the place of {name}")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.is_virtual or place.external:
        raise Wrong(f"keeps {name} outside of itself, or as no array")
    return place


def refuse_other_type(name: str, found: h5py.Dataset, dtype: np.dtype | None) -> None:
    """Raise Wrong unless an array is of this type in every bit, least significant byte first; or, for None, of text of
    one length."""
    if dtype is not None:
        kind, right = str(dtype), found.id.get_type().equal(h5py.h5t.py_create(dtype.newbyteorder("<")))
    else:
        kind, right = "text of one length", found.dtype.kind == "S" and 0 < found.dtype.itemsize <= MOST_ID_BYTES
    if not right:
        raise Wrong(f"has {name} of the type {found.dtype} ({found.dtype.byteorder}) where {kind} is expected")


def refuse_not_in_one_piece(name: str, found: h5py.Dataset, num_bytes: int) -> None:
    """Raise Wrong unless an array lies in one piece within the file; images, which are mapped, where words begin."""
    properties, offset = found.id.get_create_plist(), found.id.get_offset()
    needed = found.size * found.dtype.itemsize
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_nfilters() or offset is None:
        raise Wrong(f"keeps {name} in pieces, or not at all, where one piece is expected")
    if name == "image" and offset % found.dtype.itemsize:
        raise Wrong(f"has {name} at byte {offset}, where no number of its type can begin")
    if found.id.get_storage_size() != needed or offset + needed > num_bytes:
        raise Wrong(f"has {name} at byte {offset}, but {num_bytes} bytes are too few for its {needed}")


def refuse_other_chunks(found: h5py.Dataset, schema: Schema) -> None:
    """Raise Wrong unless each image is a compressed piece by itself, by the filter of the schema alone."""
    properties, expected = found.id.get_create_plist(), image_filters(schema)
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    if found.chunks != expected["chunks"] or filters != [expected["compression"]]:
        raise Wrong(f"has images in pieces of {found.chunks} by the filters {filters}, not by {schema.compression}")
    if found.id.get_num_chunks() != len(found):
        raise Wrong(f"has {found.id.get_num_chunks()} images where {len(found)} are expected")


def refuse_values(file: h5py.File, schema: Schema, labels: np.ndarray) -> None:
    """Raise Wrong where labels are of no class, or targets infinite."""
    if labels.min() < -1 or labels.max() >= max(len(schema.classes), 0):
        raise Wrong(f"has labels from {labels.min()} to {labels.max()} of {len(schema.classes)} classes")
    for name in schema.targets:
        values = np.asarray(file[f"target/{name}"])
        if np.isinf(values).any():
            raise Wrong(f"has an infinite {name}")
        if schema.grouped and name == GROUP and not ((values >= 0) & (values < 2**53) & (values % 1 == 0)).all():
            raise Wrong(f"has a {name} that is no whole number from 0 on")


def moments_in(image: h5py.Dataset, schema: Schema, num_samples: int) -> Moments:
    """The moments that a shard tells of its images. Raises Wrong where they, or scale and zero, cannot be right."""
    scale, zero, count = (number_in(image, name) for name in ("scale", "zero", "pixels_per_band"))
    if (scale, zero) != (schema.scale, schema.zero):
        raise Wrong(f"has scale {scale} and zero {zero} where its schema has {schema.scale} and {schema.zero}")
    channels, height, width = schema.shape
    total, squares = (np.asarray(image.attrs[name]) for name in ("sum", "sum_of_squares"))
    right = all(each.shape == (channels,) and each.dtype == np.float64 for each in (total, squares))
    if not right or count != num_samples * height * width or (squares < 0).any():
        raise Wrong("has moments that cannot be those of its images")
    return int(count), total, squares


def number_in(image: h5py.Dataset, name: str) -> float:
    """A number that is said of the images. Raises Wrong where it is none."""
    found = image.attrs[name]
    if not isinstance(found, (int, float, np.integer, np.floating)):
        raise Wrong(f"has a {name} that is no number")
    return found.item() if isinstance(found, np.generic) else found


def differ(found: Moments, told: Moments) -> bool:
    """Whether moments are of other images, not only of sums in another order."""
    norm = RELATIVE * np.sqrt(np.maximum(found[2], 0) * found[0])
    wrong = np.abs(found[1] - told[1]) > norm
    return found[0] != told[0] or bool((wrong | ~np.isclose(found[2], told[2], rtol=RELATIVE, atol=0)).any())


def miscounts(manifest: Manifest, found: Sequence[Sound]) -> Iterator[str]:
    """Where the statistics or the labels of all shards are others than the manifest says."""
    expected = statistics_of([sound.header.moments for sound in found])
    for name, told in manifest.statistics.items():
        near = np.isclose(expected[name], told, rtol=RELATIVE, atol=RELATIVE * max(expected["std"]), equal_nan=True)
        if not near.all():
            yield f"{manifest.folder}: the manifest says {name} {told}, but the shards {expected[name]}; {REMAKE}"
    classes, labels = manifest.schema.classes, np.concatenate([sound.labels for sound in found])
    numbers, counts = np.unique(labels, return_counts=True)
    held = {(classes[k] if k >= 0 else "-1"): int(count) for k, count in zip(numbers, counts, strict=True)}
    told_counts = {name: count for name, count in manifest.class_counts.items() if count}
    unlabelled = manifest.schema.num_samples - sum(told_counts.values())
    if held != told_counts | ({"-1": unlabelled} if unlabelled else {}):
        said = f"the manifest counts {manifest.class_counts} of {manifest.schema.num_samples} samples"
        yield f"{manifest.folder}: {said}, but the shards hold {held}; {REMAKE}"
