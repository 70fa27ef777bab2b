"""Layout of one HDF5 file of another program: an array of images, read one at a time, and columns beside it.

The file may come from anyone: arrays that HDF5 would take from other files are refused.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from deeplense.choices import require_choice
from deeplense.data.archives import AXES, Axes, band_axis, band_names, text_columns
from deeplense.data.checking import Wrong, dataset
from deeplense.data.foreign import one_line
from deeplense.data.layouts import image_names
from deeplense.data.records import UNLABELLED, Layout, Loaded, Record, few, number_kind

IMAGE_KEYS = ("images", "image", "img", "imgs", "x", "data", "cutouts", "stamps", "flux")
"""Usual names of arrays with images, the most likely first."""
MOST_ARRAYS = 10_000
HOLLOW = 10_000
"""An array with so many times the bytes that are stored was never written."""
MOST_BYTES = 2**30
"""Largest size of one image."""


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; any error while it is read becomes a ValueError that names it."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give one HDF5 file as --source.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ValueError:
        raise
    except Wrong as error:
        raise ValueError(f"{path} {error}; copy the arrays into one file.") from error
    except Exception as error:  # HDF5 raises anything for a torn or hostile file
        raise ValueError(f"{path}: not a readable HDF5 file ({one_line(error)}).") from error


def arrays_in(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the arrays of a file by their path within it; links that lead elsewhere are refused.

    Args:
        path: the file, for messages.
        file: the open file.

    Raises:
        ValueError: there are too many arrays, or one is stored elsewhere.
    """
    found: dict[str, h5py.Dataset] = {}
    groups: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    seen: set[h5py.Group] = set()
    while groups:
        before, group, depth = groups.pop()
        # A group may contain itself.
        if group in seen:
            continue
        seen.add(group)
        for name in group:
            here = f"{before}{name}"
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise ValueError(f"{path}: {here} is a link; copy the arrays into one file.")
            item = group[name]
            if isinstance(item, h5py.Group) and depth < 20:
                groups.append((f"{here}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                found[here] = dataset(file, here)
        if len(found) > MOST_ARRAYS or len(groups) > MOST_ARRAYS:
            raise ValueError(f"{path}: has more than {MOST_ARRAYS} arrays.")
    return found


def image_array(path: Path, arrays: Mapping[str, h5py.Dataset], key: str) -> str:
    """Return the name of the array with the images.

    Args:
        path: the file, for messages.
        arrays: arrays by name.
        key: name that the user gives, or the default, `images`.

    Raises:
        ValueError: there is no such array, or it has another form.
    """
    name = key.strip("/")
    if name not in arrays and key == IMAGE_KEYS[0]:
        ends = [(usual, [other for other in arrays if last(other).lower() == usual]) for usual in IMAGE_KEYS]
        found = next((others for _, others in ends if others), [name])
        if len(found) > 1:
            raise ValueError(f"{path}: several arrays may be the images: {few(sorted(found))}. Give --image_key ARRAY.")
        name = found[0]
    if name not in arrays:
        told = few((f"{name} {array.shape}" for name, array in arrays.items()), most=12) or "none"
        raise ValueError(f"{path}: no array {key!r}; the arrays are: {told}. Give --image_key ARRAY.")
    images = arrays[name]
    if images.ndim not in (3, 4) or 0 in images.shape or not number_kind(images.dtype):
        raise ValueError(
            f"{path}: {name} holds {images.dtype} of shape {images.shape}; images (N, C, H, W), (N, H, W, C) or "
            "(N, H, W) of numbers are expected. Give --image_key ARRAY."
        )
    if math.prod(images.shape[1:]) * images.dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{path}: an image of {name} has more than {MOST_BYTES} bytes; cut it into stamps.")
    if math.prod(images.shape) * images.dtype.itemsize > HOLLOW * max(images.id.get_storage_size(), 1):
        raise ValueError(
            f"{path}: {name} has the shape {images.shape}, but hardly any of it is stored; write it again."
        )
    return name


def hdf5(
    source: Path, *, image_key: str = IMAGE_KEYS[0], name_key: str = "", axes: Axes = "auto", bands: Sequence[str] = ()
) -> Layout:
    """Return the layout of one HDF5 file with an array of images, in any group, and columns beside them.

    Args:
        source: the file.
        image_key: name of the array of images, such as `group/images`; if there is no `images`, the most likely one.
        name_key: name of the array of image names; "" for the first with a usual name.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        bands: names of the bands; empty to number them.

    Raises:
        ValueError: an array is missing, has another form, or is stored in another file.
    """
    require_choice("axes", axes, AXES)
    with reading(source) as file:
        arrays = arrays_in(source, file)
        key = image_array(source, arrays, image_key)
        shape = arrays.pop(key).shape
        small = {name: plain(array) for name, array in arrays.items() if is_column(array, shape[0])}
        unfit = {name: array.shape for name, array in arrays.items() if name not in small}
    axis = band_axis(source, shape[1:], axes) if len(shape) == 4 else None

    def load(record: Record) -> Loaded:
        """Return an image (C, H, W)."""
        with reading(source) as opened:
            image = np.asarray(dataset(opened, key)[record.row])
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        return Loaded(image[None] if axis is None else np.moveaxis(image, axis, 0), {})

    columns, others = text_columns(source, small, shape[0])
    columns = with_short_names(columns)
    names, notes = image_names(source, columns, shape[0], name_key)
    records = [Record(source, name, UNLABELLED, "", row) for row, name in enumerate(names)]
    read = {None: "(N, H, W)", 0: "(N, C, H, W)", 2: "(N, H, W, C)"}[axis]
    return Layout(
        source,
        records,
        load,
        (),
        band_names(source, 1 if axis is None else shape[1 + axis], bands) if bands else (),
        columns=columns,
        unfit={**unfit, **others},
        notes=[f"images {shape} of {key} were read as {read}", *notes],
        named=not notes,
    )


def last(name: str) -> str:
    """Return the last part of the path of an array."""
    return name.rpartition("/")[2]


def with_short_names(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return columns also by the last part of their path, if no other array has the same.

    Args:
        columns: columns by path.
    """
    counts = Counter(map(last, columns))
    return {last(name): cells for name, cells in columns.items() if counts[last(name)] == 1} | dict(columns)


def is_column(array: h5py.Dataset, count: int) -> bool:
    """Whether an array has a number or text per image, or one-hot rows.

    Args:
        array: the array.
        count: number of images.
    """
    few_values = array.ndim == 1 or (array.ndim == 2 and array.shape[1] <= 1000)
    texts = h5py.check_string_dtype(array.dtype) is not None
    return few_values and array.shape[0] == count and (texts or array.dtype.kind in "biufS")


def plain(array: h5py.Dataset) -> np.ndarray:
    """Return a column; texts as strings, without the blanks and zeros that fill them up."""
    if h5py.check_string_dtype(array.dtype) is None:
        values = array[:]
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    texts = [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in array[:].ravel()]
    return np.array(texts, dtype=str).reshape(array.shape)
