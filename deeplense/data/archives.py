"""Images in one .npz file: its arrays, the axis of the bands, and texts from the arrays with a value per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.records import number_kind

Axes = Literal["auto", "NCHW", "NHWC"]
AXES = get_args(Axes)
MOST_BANDS = 5
"""Largest number of bands of an image whose axes all differ; with more, the axis of the bands must be given."""


def band_axis(path: Path, shape: tuple[int, ...], axes: Axes = "auto") -> int:
    """Return which axis of an image is its bands, 0 or 2.

    The other two axes are equal and differ from it; or, if no axes are equal, there are fewer bands than pixels on
    either side, and at most five.

    Args:
        path: file of the image, for messages.
        shape: shape of one image, three numbers.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.

    Raises:
        ValueError: the shape does not decide, or `axes` is unknown.

    Example:
        >>> band_axis(Path("a.npy"), (3, 64, 64)), band_axis(Path("a.npy"), (64, 64, 3))
        (0, 2)
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
            f"{path}: it is ambiguous which axis of an image of shape {shape} is the bands. Give --axes NCHW if "
            "the bands "
            "come first, or --axes NHWC if they come last."
        )
    return (square or few)[0]


def channels_first(path: Path, images: np.ndarray, axes: Axes = "auto") -> tuple[np.ndarray, str]:
    """Return images as (N, C, H, W), and a note on how their axes were interpreted.

    Args:
        path: file of the images, for messages.
        images: (N, C, H, W), (N, H, W, C) or (N, H, W).
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.

    Raises:
        ValueError: the array does not hold images of numbers, or the axis of the bands is unknown; the message names
            the file.

    Example:
        >>> images, note = channels_first(Path("a.npz"), np.zeros((2, 8, 8)))
        >>> images.shape, note
        ((2, 1, 8, 8), 'images (2, 8, 8) were read as (N, H, W), one band')
    """
    require_choice("axes", axes, AXES)
    if not number_kind(images.dtype):
        raise ValueError(f"{path}: images have the type {images.dtype}; convert them to real numbers.")
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{path}: images have the shape {images.shape}; (N, C, H, W), (N, H, W, C) or (N, H, W) is expected."
        )
    if 0 in images.shape:
        raise ValueError(
            f"{path}: images have the shape {images.shape}, which has no pixels; every axis must be at least 1 long."
        )
    if images.ndim == 3:
        return images[:, None], f"images {images.shape} were read as (N, H, W), one band"
    last = band_axis(path, images.shape[1:], axes) == 2
    read = "(N, H, W, C)" if last else "(N, C, H, W)"
    found = np.moveaxis(images, -1, 1) if last else images
    return found, f"images {images.shape} were read as {read}, {found.shape[1]} bands"


def text_columns(
    source: Path, arrays: Mapping[str, np.ndarray], num_images: int
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """Return the arrays with a value per image, or one-hot rows, as texts (N,); and the shapes of the others.

    Args:
        source: file of the arrays, for messages.
        arrays: arrays by name.
        num_images: N.
    """
    found, unfit = {}, {}
    for name, array in arrays.items():
        column = one_each(array)
        if column is None or len(column) != num_images:
            unfit[name] = array.shape
        else:
            found[name] = as_text(source, name, column)
    return found, unfit


def one_each(array: np.ndarray) -> np.ndarray | None:
    """Return an array (N,), (N, 1), or of one-hot rows (N, K), as (N,); None for others.

    Example:
        >>> one_each(np.array([[0, 1], [1, 0]])).tolist()
        [1, 0]
    """
    if array.ndim == 1:
        return array
    if array.ndim != 2:
        return None
    if array.shape[1] == 1:
        return array[:, 0]
    one_hot = number_kind(array.dtype) and bool(((array == 1).sum(axis=1) == 1).all() and np.isin(array, (0, 1)).all())
    return array.argmax(axis=1) if one_hot else None


def as_text(source: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of numbers or texts as texts, without surrounding spaces.

    Args:
        source: file of the array, for messages.
        name: name of the array.
        array: (N,).

    Raises:
        ValueError: the array holds something else, or bytes that are not UTF-8.
    """
    try:
        text = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(str)
    except (UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: the array {name!r} does not hold text or numbers ({error}).") from error
    return np.char.strip(text).astype(object)


def band_names(source: Path, count: int, given: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the bands.

    Args:
        source: file or folder, for messages.
        count: number of bands.
        given: their names; empty to number them.

    Raises:
        ValueError: the number of names is wrong, or a name comes twice.

    Example:
        >>> band_names(Path("data"), 2, [])
        ('band0', 'band1')
    """
    names = tuple(given) or tuple(f"band{k}" for k in range(count))
    if len(names) != count:
        raise ValueError(
            f"{source}: the images have {count} bands, but --bands names {list(names)}; give one name per band."
        )
    if len(set(names)) != count:
        raise ValueError(f"--bands names {list(names)}; give each band a unique name.")
    return names
