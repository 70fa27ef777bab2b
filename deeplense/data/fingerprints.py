"""Fingerprints of images that do not change when an image is rotated, flipped, shifted, or changes its flux or
background; and which images have similar ones. Shapes: n images, C bands, H x W pixels, D and E numbers of an image.

Both kinds come from the power spectrum, averaged over orientations. The detail is its logarithm minus the mean of the
neighbouring frequencies: the speckle of noise and structure, which survives smoothing. The outline is the amplitudes at
low frequencies: it survives added noise.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from scipy import fft

from deeplense.data.alignment import tapered

Array = NDArray[np.floating]
MOST_DETAIL = 0.375
"""Highest frequency of the detail in cycles per pixel: interpolation between pixels changes higher ones."""
MOST_NUMBERS = 300
OUTLINE = 10
NEIGHBOURHOOD = 5
ROWS_AT_A_TIME = 512


class Fingerprints(NamedTuple):
    """Detail (n, D) and outline (n, E) of images, float32."""

    detail: Array
    outline: Array


def fingerprints(images: Array) -> Fingerprints:
    """Return the fingerprints of images (n, C, H, W); bands are concatenated.

    Example:
        >>> found = fingerprints(np.random.default_rng(0).normal(size=(2, 1, 32, 32)))
        >>> len(found.detail), len(found.outline)
        (2, 2)
    """
    logarithm = np.log(symmetric_power(images))
    speckle = logarithm - scipy.ndimage.uniform_filter(logarithm, NEIGHBOURHOOD, axes=(2, 3), mode="nearest")
    rows, columns = detail_frequencies(images.shape)
    detail = speckle[:, :, rows, columns].reshape(len(images), -1)
    rows, columns = outline_frequencies(images.shape)
    # The fourth root of the power keeps the strongest frequencies from being all that counts.
    outline = np.exp(logarithm[:, :, rows, columns] / 4).reshape(len(images), -1)
    outline /= np.linalg.norm(outline, axis=1, keepdims=True)
    return Fingerprints(detail.astype(np.float32), outline.astype(np.float32))


def symmetric_power(images: Array) -> Array:
    """Return the power (n, C, H // 2, W // 2) at frequencies of 0 and above, averaged over the orientations that keep
    the shape."""
    high, wide = images.shape[-2:]
    power = np.abs(np.asarray(fft.fft2(tapered(images)))) ** 2
    power += np.roll(power[..., ::-1, :], 1, axis=-2)
    power = power[..., : high // 2, : wide // 2]
    if high == wide:
        power = power + power.swapaxes(-2, -1)
    return power + 1e-12 * power.max(axis=(-2, -1), keepdims=True) + 1e-30


def detail_frequencies(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequencies (k,), (k,) of the detail: all, or a fixed random subset."""
    bands, high, wide = shape[-3:]
    rows, columns = frequencies(int(MOST_DETAIL * high), int(MOST_DETAIL * wide), lowest=2, square=high == wide)
    most = max(MOST_NUMBERS // bands, 60)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:most])
    return rows[chosen], columns[chosen]


def outline_frequencies(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequencies (k,), (k,) of the outline."""
    high, wide = shape[-2:]
    return frequencies(min(OUTLINE, high // 2), min(OUTLINE, wide // 2), lowest=1, square=high == wide)


def frequencies(high: int, wide: int, *, lowest: float, square: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a set of frequencies (k,), (k,); if rows and columns are equivalent, each pair once.

    Args:
        high: upper limit of the row frequency, exclusive.
        wide: upper limit of the column frequency, exclusive.
        lowest: lower limit of the frequency.
        square: whether rows and columns are equivalent.
    """
    rows, columns = np.indices((high, wide)).reshape(2, -1)
    kept = rows**2 + columns**2 >= lowest**2
    if square:
        kept &= rows <= columns
    return rows[kept], columns[kept]


def likely_pairs(found: Fingerprints, *, neighbours: tuple[int, int]) -> np.ndarray:
    """Return pairs of images (k, 2), the lower number first, of which one is among the nearest neighbours of the other
    by detail or by outline.

    Args:
        found: fingerprints of n images.
        neighbours: number of neighbours by detail, and by outline.
    """
    # In units of its spread, each number of the detail counts the same.
    detail = found.detail / np.maximum(found.detail.std(axis=0), 1e-6)
    pairs = [
        pair
        for numbers, count in zip((detail, found.outline), neighbours, strict=True)
        for pair in nearest(numbers - numbers.mean(axis=0), count)
    ]
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0) if pairs else np.empty((0, 2), int)


def nearest(numbers: Array, count: int) -> Iterator[np.ndarray]:
    """Yield each image with each of its nearest neighbours by Euclidean distance, (n * count, 2) in all, in blocks of
    images.

    Args:
        numbers: features of the images, (n, D).
        count: number of neighbours.

    Example:
        >>> next(nearest(np.array([[0.0], [1.0], [9.0]], dtype=np.float32), 1)).tolist()
        [[0, 1], [1, 0], [2, 1]]
    """
    count = min(count, len(numbers) - 1)
    if count < 1:
        return
    all_of_them = torch.from_numpy(numbers)
    squares = (all_of_them**2).sum(dim=1)
    for start in range(0, len(numbers), ROWS_AT_A_TIME):
        some = all_of_them[start : start + ROWS_AT_A_TIME]
        # Less the square of the image's own numbers, which changes no order.
        distance = torch.addmm(squares[None], some, all_of_them.T, alpha=-2)
        own = torch.arange(start, start + len(some))
        distance[own - start, own] = torch.inf
        found = distance.topk(count, dim=1, largest=False, sorted=False).indices
        yield torch.stack([own.repeat_interleave(count), found.flatten()], dim=1).numpy()
