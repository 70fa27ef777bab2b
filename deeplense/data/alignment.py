"""The orientation and the shift that map one image to another. Shapes: n images, C bands, H x W pixels.

All shifts are tested at once by phase correlation (Kuglin and Hines 1975): copies agree at all frequencies.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import windows

Image = NDArray[np.floating]
EDGES = 0.25
"""Fraction of each side on which the window falls, both ends together."""
TURNS = (
    "",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "flipped left to right",
    "mirrored along one diagonal",
    "flipped top to bottom",
    "mirrored along the other diagonal",
)
"""Orientation k: k % 4 quarter turns (numpy.rot90), from 4 on followed by a left-right flip."""


class Aligned(NamedTuple):
    """For each pair (n,): the orientation and the shift (n, 2) that map the first image to the second, and the
    agreement of the phases then, at most 1."""

    turn: NDArray[np.integer]
    shift: NDArray[np.integer]
    peak: Image


def turned(images: Image, turn: int) -> Image:
    """Return images in another orientation.

    Args:
        images: (..., H, W).
        turn: number of the orientation, 0 to 7.

    Example:
        >>> turned(np.array([[1, 2], [3, 4]]), 1).tolist()
        [[2, 4], [1, 3]]
    """
    rotated = np.rot90(images, turn % 4, axes=(-2, -1))
    return rotated[..., ::-1] if turn >= 4 else rotated


def turns_of(shape: Sequence[int]) -> list[int]:
    """Return the orientations that keep the shape of an image."""
    return list(range(8)) if shape[-2] == shape[-1] else [0, 2, 4, 6]


def despiked(images: Image) -> Image:
    """Return images (..., H, W) whose pixels are clipped to the range of their eight neighbours, without the extreme
    one on each side, widened by its width: a strongly changed pixel no longer counts."""
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)], mode="reflect")
    high, wide = images.shape[-2:]
    around = [padded[..., y : y + high, x : x + wide] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    low, top = second_least(around, np.minimum, np.maximum), second_least(around, np.maximum, np.minimum)
    return np.clip(images, 2 * low - top, 2 * top - low)


def second_least(arrays: Sequence[Image], least: np.ufunc, most: np.ufunc) -> Image:
    """Return the second smallest of some arrays, element by element; the second largest if the functions are swapped.

    Args:
        arrays: at least two arrays of one shape.
        least: `np.minimum`.
        most: `np.maximum`.

    Example:
        >>> second_least([np.array([3]), np.array([1]), np.array([2])], np.minimum, np.maximum).tolist()
        [2]
    """
    first, second = least(arrays[0], arrays[1]), most(arrays[0], arrays[1])
    for array in arrays[2:]:
        second = least(second, most(first, array))
        first = least(first, array)
    return second


@cache
def taper(high: int, wide: int) -> Image:
    """Return a window (H, W) that is flat in the centre and falls at the edges.

    Args:
        high: H.
        wide: W.
    """
    return np.outer(*(windows.tukey(side + 2, EDGES)[1:-1] for side in (high, wide))).astype(np.float32)


def tapered(images: Image) -> Image:
    """Return images (..., H, W), float32, prepared for a Fourier transform: without spikes, mean and edges."""
    largest = np.abs(images).max(axis=(-2, -1), keepdims=True)
    clean = despiked((images / np.where(largest > 0, largest, 1)).astype(np.float32))
    clean -= clean.mean(axis=(-2, -1), keepdims=True)
    return clean * taper(*images.shape[-2:])


def phase_images(images: Image) -> Image:
    """Return images (..., H, W) with equal power at all frequencies that have any, then smoothed, so that a shift by
    fractions of a pixel has one peak."""
    spectrum = np.asarray(fft.rfft2(tapered(images)))
    power = np.abs(spectrum)
    spectrum /= power + 1e-6 * power.max(axis=(-2, -1), keepdims=True) + 1e-30
    return np.asarray(fft.irfft2(spectrum * smoothing(*images.shape[-2:]), s=images.shape[-2:]))


@cache
def smoothing(high: int, wide: int) -> Image:
    """Return weights (H, W // 2 + 1) of frequencies whose squares have a mean of 1.

    Args:
        high: H.
        wide: W.
    """
    y, x = np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None]
    weight = np.exp(-7.5 * (y**2 + x**2))
    return (weight / np.sqrt((weight**2).mean())).astype(np.float32)


def align(phases: Image, first: NDArray[np.integer], second: NDArray[np.integer]) -> Aligned:
    """Align pairs of images.

    Args:
        phases: result of `phase_images`, (m, C, H, W).
        first: numbers of the first images, (n,).
        second: numbers of the second images, (n,).

    Example:
        >>> image = np.random.default_rng(0).normal(size=(1, 32, 32))
        >>> found = align(phase_images(np.stack([image, np.roll(image, 3, axis=-1)])), np.array([0]), np.array([1]))
        >>> found.turn.tolist(), found.shift.tolist()
        ([0], [[0, 3]])
    """
    ones, of_pair = np.unique(first, return_inverse=True)
    wanted = np.asarray(fft.rfft2(phases))[second]
    count, (bands, high, wide) = len(first), phases.shape[1:]
    turn, place, peak = np.zeros(count, int), np.zeros(count, int), np.full(count, -np.inf)
    for each in turns_of(phases.shape):
        spectrum = np.asarray(fft.rfft2(np.ascontiguousarray(turned(phases[ones], each)))).conj()
        agreement = np.asarray(fft.irfft2((wanted * spectrum[of_pair]).sum(axis=1), s=(high, wide)))
        flat = agreement.reshape(count, -1) / bands
        highest = flat.argmax(axis=1)
        found = flat[np.arange(count), highest]
        better = found > peak
        turn[better], place[better], peak[better] = each, highest[better], found[better]
    return Aligned(turn, centred(place, high, wide), peak)


def centred(place: NDArray[np.integer], high: int, wide: int) -> NDArray[np.integer]:
    """Return shifts (n, 2), the shorter way round, from positions in a flat image.

    Args:
        place: positions, (n,).
        high: H.
        wide: W.

    Example:
        >>> centred(np.array([7]), 4, 8).tolist()
        [[0, -1]]
    """
    size = np.array([high, wide])
    return (np.stack(np.divmod(place, wide), axis=1) + size // 2) % size - size // 2
