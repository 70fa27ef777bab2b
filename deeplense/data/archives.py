"""Images in one .npz file: its arrays, which axis is the bands, and texts from the arrays that have a value for each
image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.records import number_kind

Axes = Literal["auto", "NCHW", "NHWC"]
AXES = get_args(Axes)
MOST_BANDS = 5
"""Most bands of an image whose axes all differ; with more, the axis of the bands must be given."""


def band_axis(path: Path, shape: tuple[int, ...], axes: Axes = "auto") -> int:
    """Which axis of an image (3 numbers) is its bands, 0 or 2. Raises ValueError where that cannot be told.

    The other two axes are equal and differ from it; or, where no axes are equal, the bands are fewer than the pixels of
    either side, and at most five.
    """
    require_choice("axes", axes, AXES)
    if axes != "auto":
        return 0 if axes == "NCHW" else 2
    first, middle, last = shape
    square = [axis for axis, equal in ((0, middle == last), (2, first == middle)) if equal and first != last]
    sides = ((0, first, last), (2, last, first))
    few = [axis for axis, bands, side in sides if bands <= MOST_BANDS and bands < min(side, middle)]
    if not square and not few:
        raise ValueError(
            f"{path}: which axis of an image of shape {shape} is its bands cannot be told. Give --axes NCHW where they "
            "come before the pixels, --axes NHWC where they come last."
        )
    return (square or few)[0]


def channels_first(path: Path, images: np.ndarray, axes: Axes = "auto") -> tuple[np.ndarray, str]:
    """Images as (N, C, H, W), and a note on what the axes were taken for. Raises ValueError, naming the file, where
    they are no images of numbers, or where the bands cannot be told."""
    require_choice("axes", axes, AXES)
    if not number_kind(images.dtype):
        raise ValueError(f"{path}: images are of the type {images.dtype}; real numbers are expected.")
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{path}: images have the shape {images.shape}; (N, C, H, W), (N, H, W, C) or (N, H, W) is expected."
        )
    if 0 in images.shape:
        raise ValueError(f"{path}: images have the shape {images.shape}, which holds no pixels.")
    if images.ndim == 3:
        return images[:, None], f"images {images.shape} were read as (N, H, W), one band"
    last = band_axis(path, images.shape[1:], axes) == 2
    read = "(N, H, W, C)" if last else "(N, C, H, W)"
    found = np.moveaxis(images, -1, 1) if last else images
    return found, f"images {images.shape} were read as {read}, {found.shape[1]} bands"


def text_columns(
    source: Path, arrays: Mapping[str, np.ndarray], num_images: int
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """Those arrays that have one value for each image, or one-hot rows, as texts (N,); and the shapes of the others."""
    found, unfit = {}, {}
    for name, array in arrays.items():
        column = one_each(array)
        if column is None or len(column) != num_images:
            unfit[name] = array.shape
        else:
            found[name] = as_text(source, name, column)
    return found, unfit


def one_each(array: np.ndarray) -> np.ndarray | None:
    """An array (N,), (N, 1) or of one-hot rows (N, K) as (N,), None for others."""
    if array.ndim == 1:
        return array
    if array.ndim != 2:
        return None
    if array.shape[1] == 1:
        return array[:, 0]
    one_hot = number_kind(array.dtype) and bool(((array == 1).sum(axis=1) == 1).all() and np.isin(array, (0, 1)).all())
    return array.argmax(axis=1) if one_hot else None


def as_text(source: Path, name: str, array: np.ndarray) -> np.ndarray:
    """An array of numbers or texts as texts, without blanks around them. Raises ValueError for bytes in no UTF-8."""
    try:
        text = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(str)
    except (UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: the array {name!r} holds no texts or numbers ({error}).") from error
    return np.char.strip(text).astype(object)
