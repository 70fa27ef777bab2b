"""Images as bytes for a browser, which draws them with any contrast. N images of B bands, H x W pixels.

A byte stores asinh((x - sky) / noise) of a pixel, so that steps are small in faint arcs as well as in bright cores; the
browser computes x again. 0 is a pixel without a value.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

Planes = tuple[int, int, int]
STEPS = 254
"""Steps between the lowest and the highest code, 1 and 255."""
LEAST_SIGNAL = 8.0
"""Brightness that is drawn white at least, in units of the noise: an empty image stays dark."""
CLIPPING, CLIPPINGS = 3.0, 5
BRIGHT = 99.5
FULL = 255.0
ROWS = 256


@dataclass(frozen=True)
class Stamps:
    """Encoded images. Pixel x of band b of image n is `sky + noise * sinh(low + (code - 1) * (high - low) / 254)`, or
    without sinh if `is_linear`.

    Args:
        codes: (N, B, H, W) uint8.
        sky: background of each band, (N, B).
        noise: noise of each band, (N, B), above 0.
        low: lowest encoded value, (N, B).
        high: highest encoded value, (N, B).
        bright: brightness of the bright pixels above the background, (N, B).
        scale: brightness of each band that is drawn alike, so that a usual object is white, (B,).
        white: brightness that is drawn white, in units of `scale`, (N,).
        planes: numbers of the bands that are drawn red, green and blue.
        is_linear: whether values are encoded without asinh.
    """

    codes: np.ndarray
    sky: np.ndarray
    noise: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bright: np.ndarray
    scale: np.ndarray
    white: np.ndarray
    planes: Planes
    is_linear: bool


def encode(parts: Iterable[np.ndarray], *, planes: Planes, is_stretched: bool = False) -> Stamps:
    """Encode images.

    Args:
        parts: images (n, B, H, W), piece by piece; pixels that are not finite have no value.
        planes: numbers of the bands that are drawn red, green and blue.
        is_stretched: whether the images are ready to be shown: 0 is black and 255 white in each band.

    Example:
        >>> stamps = encode([np.full((1, 3, 4, 4), 255.0)], planes=(0, 1, 2), is_stretched=True)
        >>> int(stamps.codes[0, 0, 0, 0]), float(stamps.white[0])
        (255, 1.0)
    """
    encoded = joined([encode_part(part, planes, is_stretched) for part in parts])
    if is_stretched:
        return encoded
    usual = np.median(np.maximum(encoded.bright, LEAST_SIGNAL * encoded.noise), axis=0)
    scaled = replace(encoded, scale=np.where(usual > 0, usual, 1.0))
    whites = [white_level(part_of(scaled, start)) for start in range(0, len(scaled.codes), ROWS)]
    return replace(scaled, white=np.concatenate(whites))


PER_IMAGE = ("codes", "sky", "noise", "low", "high", "bright", "white")


def joined(parts: list[Stamps]) -> Stamps:
    """Return pieces as one."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_IMAGE}
    return replace(parts[0], **arrays)


def part_of(stamps: Stamps, start: int) -> Stamps:
    """Return the images from a number on, at most `ROWS`."""
    return replace(stamps, **{name: getattr(stamps, name)[start : start + ROWS] for name in PER_IMAGE})


def encode_part(images: np.ndarray, planes: Planes, is_stretched: bool) -> Stamps:
    """Encode images (n, B, H, W); `scale` and `white` are only right for images that are stretched already."""
    values = np.where(np.isfinite(images), images, np.nan).astype(np.float64)
    zero, count = np.zeros(values.shape[:2]), len(values)
    flat = {"scale": np.full(values.shape[1], FULL), "white": np.ones(count), "planes": planes}
    if is_stretched:
        codes = codes_of(values, zero, zero + FULL)
        return Stamps(codes, zero, zero + 1.0, zero, zero + FULL, zero + FULL, **flat, is_linear=True)
    sky, noise = background(values)
    above = values - sky[..., None, None]
    stretched = np.arcsinh(above / noise[..., None, None])
    low, high = extremes(stretched)
    bright = np.percentile(np.nan_to_num(above), BRIGHT, axis=(2, 3))
    return Stamps(codes_of(stretched, low, high), sky, noise, low, high, bright, **flat, is_linear=False)


def decode(stamps: Stamps) -> np.ndarray:
    """Return the images of codes, (N, B, H, W) float64, NaN for pixels without a value, as the browser computes
    them."""
    low, high = stamps.low[..., None, None], stamps.high[..., None, None]
    values = low + (stamps.codes - 1.0) * (high - low) / STEPS
    values = values if stamps.is_linear else np.sinh(values)
    return np.where(stamps.codes > 0, stamps.sky[..., None, None] + stamps.noise[..., None, None] * values, np.nan)


def codes_of(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the code of each pixel, (N, B, H, W) uint8.

    Args:
        values: (N, B, H, W), NaN without a value.
        low: value of code 1, (N, B).
        high: value of code 255, (N, B).
    """
    spread = np.where(high > low, high - low, 1.0)[..., None, None]
    steps = np.rint((values - low[..., None, None]) / spread * STEPS)
    return np.where(np.isnan(steps), 0, np.clip(steps, 0, STEPS) + 1).astype(np.uint8)


def extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each band, (N, B); 0 where no pixel has a value."""
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(axis=(2, 3))
    high = np.where(known, values, -np.inf).max(axis=(2, 3))
    empty = ~known.any(axis=(2, 3))
    return np.where(empty, 0.0, low), np.where(empty, 0.0, high)


def background(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the background and the noise of each band, (N, B): median and standard deviation without pixels far from
    the median.

    Args:
        images: (N, B, H, W), NaN without a value.
    """
    values = np.sort(images.reshape(*images.shape[:2], -1), axis=2)
    counts = np.isfinite(values).sum(axis=2)
    values = np.where(np.isfinite(values), values, np.inf)
    first, last = np.zeros_like(counts), counts
    centred = np.where(np.isfinite(values), values, 0.0) - median_of(values, first, last)[..., None]
    sums, squares = (np.concatenate([0 * x[..., :1], x.cumsum(axis=2)], axis=2) for x in (centred, centred**2))
    for _ in range(CLIPPINGS):
        sky, spread = median_of(values, first, last), deviation(sums, squares, first, last)
        low, high = (sky - CLIPPING * spread)[..., None], (sky + CLIPPING * spread)[..., None]
        first, last = np.maximum(first, (values < low).sum(axis=2)), np.minimum(last, (values <= high).sum(axis=2))
    sky, noise = median_of(values, first, last), deviation(sums, squares, first, last)
    usual = np.abs(np.where(np.isfinite(values), values, 0.0)).max(axis=2)
    return sky, np.maximum(noise, np.where(usual > 0, 1e-6 * usual, 1.0))


def median_of(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the median of a range of sorted values (N, B, P), (N, B); 0 for an empty one.

    Args:
        values: sorted values.
        first: first place of the range, (N, B).
        last: place after the range, (N, B).
    """
    largest = values.shape[2] - 1
    places = [np.clip(place, 0, largest)[..., None] for place in ((first + last - 1) // 2, (first + last) // 2)]
    lower, upper = (np.take_along_axis(values, place, axis=2)[..., 0] for place in places)
    return np.where(last > first, (lower + upper) / 2, 0.0)


def deviation(sums: np.ndarray, squares: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the standard deviation in a range, (N, B); 0 for an empty one.

    Args:
        sums: sum of all values before each place, (N, B, P + 1).
        squares: sum of their squares, (N, B, P + 1).
        first: first place of the range, (N, B).
        last: place after the range, (N, B).
    """
    count = np.maximum(last - first, 1)
    total, square = (
        np.take_along_axis(x, last[..., None], axis=2)[..., 0] - np.take_along_axis(x, first[..., None], axis=2)[..., 0]
        for x in (sums, squares)
    )
    return np.sqrt(np.maximum(square / count - (total / count) ** 2, 0.0))


def white_level(stamps: Stamps) -> np.ndarray:
    """Return the brightness that is drawn white in each image, (N,), in units of `scale`."""
    planes, scale = list(stamps.planes), stamps.scale
    levels = (decode(stamps) - stamps.sky[..., None, None]) / scale[:, None, None]
    brightness = np.nan_to_num(levels)[:, planes].mean(axis=1)
    grain = np.sqrt(((stamps.noise / scale)[:, planes] ** 2).sum(axis=1)) / 3
    return np.maximum(np.percentile(brightness, BRIGHT, axis=(1, 2)), LEAST_SIGNAL * grain)


def middle(images: np.ndarray, side: int) -> np.ndarray:
    """Return the central part of images (..., H, W), at most `side` pixels a side.

    Example:
        >>> middle(np.arange(25).reshape(5, 5), 3).tolist()
        [[6, 7, 8], [11, 12, 13], [16, 17, 18]]
    """
    height, width = images.shape[-2:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return images[..., top : top + side, left : left + side]


def shrunk(images: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Return images (..., H, W) with at most `most` pixels a side, and the number of pixels a side that were averaged
    for one.

    Example:
        >>> small, factor = shrunk(np.arange(16.0).reshape(4, 4), 2)
        >>> small.tolist(), factor
        ([[2.5, 4.5], [10.5, 12.5]], 2)
    """
    height, width = images.shape[-2:]
    factor = -(-max(height, width) // most)
    high, wide = height // factor, width // factor
    whole = images[..., : high * factor, : wide * factor]
    return whole.reshape(*images.shape[:-2], high, factor, wide, factor).mean(axis=(-3, -1)), factor


NAMED = (("i", "r", "g"), ("z", "r", "g"), ("z", "i", "r"))
"""Bands of colour images, reddest first, if a data set has them."""


def colour_bands(bands: tuple[str, ...], asked: tuple[str, ...] = ()) -> tuple[int, int, int]:
    """Return the numbers of the bands that are drawn red, green and blue.

    Without a wish these are i, r and g if there are such bands, otherwise the last, the middle and the first one. With
    two bands green is drawn with the second one, and an image of one band is grey.

    Args:
        bands: names of all bands, from blue to red.
        asked: names of one or three bands, reddest first.

    Raises:
        ValueError: there is no such band, or not one or three are named.

    Example:
        >>> colour_bands(("g", "r", "i", "z")), colour_bands(("VIS",)), colour_bands(("Y", "J", "H"), ("H", "J", "Y"))
        ((2, 1, 0), (0, 0, 0), (2, 1, 0))
    """
    plain = [name.casefold() for name in bands]
    if asked:
        wanted = [name.casefold() for name in asked]
        missing = [name for name, low in zip(asked, wanted, strict=True) if low not in plain]
        if missing:
            raise ValueError(f"rgb={','.join(asked)}: there is no band {missing[0]!r}; choose from {', '.join(bands)}.")
        if len(wanted) not in (1, 3):
            raise ValueError(f"rgb={','.join(asked)} must name three bands, reddest first, or one for grey images.")
        red, green, blue = (plain.index(name) for name in (wanted * 3)[:3])
        return red, green, blue
    for names in NAMED:
        if set(names) <= set(plain):
            red, green, blue = (plain.index(name) for name in names)
            return red, green, blue
    return len(bands) - 1, len(bands) // 2, 0
