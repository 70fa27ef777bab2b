"""Which orientation and which shift bring one image to another. n images, C bands, H x W pixels.

All shifts are tried at once by correlating phases (Kuglin and Hines 1975): of copies they agree at all frequencies.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]
TURNS = (
    "",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "flipped left to right",
    "mirrored on a diagonal",
    "flipped top to bottom",
    "mirrored on the other diagonal",
)
"""Orientation k: k % 4 quarter turns (numpy.rot90), from 4 on flipped left to right afterwards."""


class Aligned(NamedTuple):
    """Of each pair (n,): the orientation and the shift (n, 2) that bring the first image to the second, and how well
    the phases agree then, 1 at most."""

    turn: NDArray[np.integer]
    shift: NDArray[np.integer]
    peak: Image


def turned(images: Image, turn: int) -> Image:
    """Images (..., H, W) in another orientation."""
    rotated = np.rot90(images, turn % 4, axes=(-2, -1))
    return rotated[..., ::-1] if turn >= 4 else rotated


def turns_of(shape: Sequence[int]) -> list[int]:
    """The orientations that keep an image's shape."""
    return list(range(8)) if shape[-2] == shape[-1] else [0, 2, 4, 6]


def despiked(images: Image) -> Image:
    """Images (..., H, W) whose pixels are no further beyond their eight neighbours than these are apart, the outermost
    neighbour on either side left out: a pixel that was changed by much no longer counts."""
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)], mode="reflect")
    high, wide = images.shape[-2:]
    places = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    around = np.partition(np.stack([padded[..., y : y + high, x : x + wide] for y, x in places]), (1, 6), axis=0)
    low, top = around[1], around[6]
    return np.clip(images, 2 * low - top, 2 * top - low)


@cache
def taper(high: int, wide: int) -> Image:
    """A window (H, W) that falls towards the edges, so that what is pushed over an edge changes little."""
    return np.sqrt(np.outer(np.hanning(high + 2)[1:-1], np.hanning(wide + 2)[1:-1])).astype(np.float32)


def tapered(images: Image) -> Image:
    """Images (..., H, W), float32, ready for a Fourier transform: without spikes, mean and edges."""
    largest = np.abs(images).max(axis=(-2, -1), keepdims=True)
    clean = despiked((images / np.where(largest > 0, largest, 1)).astype(np.float32))
    clean -= clean.mean(axis=(-2, -1), keepdims=True)
    return clean * taper(*images.shape[-2:])


def phase_images(images: Image) -> Image:
    """Images (..., H, W) with equal power at all frequencies, but for those that have none; then smoothed, so that a
    shift by parts of a pixel has one peak."""
    spectrum = np.fft.rfft2(tapered(images))
    power = np.abs(spectrum)
    spectrum /= power + 1e-6 * power.max(axis=(-2, -1), keepdims=True) + 1e-30
    return np.fft.irfft2(spectrum * smoothing(*images.shape[-2:]), s=images.shape[-2:])


@cache
def smoothing(high: int, wide: int) -> Image:
    """Weights (H, W // 2 + 1) of frequencies whose squares have a mean of 1."""
    y, x = np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None]
    weight = np.exp(-7.5 * (y**2 + x**2))
    return (weight / np.sqrt((weight**2).mean())).astype(np.float32)


def align(first: Image, second: Image) -> Aligned:
    """Align pairs of images, given by `phase_images` (n, C, H, W) each."""
    count, bands, high, wide = second.shape
    wanted = np.fft.rfft2(second)
    turn, place, peak = np.zeros(count, int), np.zeros(count, int), np.full(count, -np.inf)
    for each in turns_of(second.shape):
        flat = agreement(turned(first, each), wanted).reshape(count, -1) / bands
        highest = flat.argmax(axis=1)
        found = flat[np.arange(count), highest]
        better = found > peak
        turn[better], place[better], peak[better] = each, highest[better], found[better]
    return Aligned(turn, centred(place, high, wide), peak)


def agreement(first: Image, second: NDArray[np.complexfloating]) -> Image:
    """The correlation (n, H, W) at all shifts of images (n, C, H, W) with others, given by their Fourier transforms."""
    spectrum = np.fft.rfft2(np.ascontiguousarray(first))
    return np.fft.irfft2((second * spectrum.conj()).sum(axis=1), s=first.shape[-2:])


def centred(place: NDArray[np.integer], high: int, wide: int) -> NDArray[np.integer]:
    """Shifts (n, 2), the shorter way round, from places in a flat image."""
    size = np.array([high, wide])
    return (np.stack(np.divmod(place, wide), axis=1) + size // 2) % size - size // 2
