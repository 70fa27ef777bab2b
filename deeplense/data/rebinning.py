"""Images rebinned to other pixels by the exact overlap of areas, so that no flux is lost.

Where the unit is one per area, such as MJy/sr, the value of a new pixel is the mean of what it covers; for all other
units, such as counts or nJy, it is the sum, and an old pixel that lies in several new ones is shared by area. Pixels
are parallel: an image that is rotated, or has other steps along its axes, is refused.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from deeplense.data.fits_headers import Header, is_sky, matrix_of, number_of, position_of, scale_of, text_of

TURN, SHIFT = 1e-3, 0.05
"""Largest difference of directions, in radians, and of distances, in pixels, that counts as none."""
COVERED = 1 - 1e-6
"""Part of a pixel that must be covered for it to have a value."""
ARCSEC = 3600.0


@dataclass(frozen=True)
class Grid:
    """Where the pixels of an image are on the sky.

    Args:
        shape: (H, W).
        scale: side of a pixel in arcsec.
        axes: directions of the axes of the image, as a matrix of unit vectors (east, north).
        centre: right ascension and declination of its centre in degrees.
    """

    shape: tuple[int, int]
    scale: float
    axes: tuple[float, float, float, float]
    centre: tuple[float, float]


def grid_of(header: Header, shape: tuple[int, ...]) -> Grid | None:
    """Return the grid of a header, None if it has no coordinates or no square pixels.

    Args:
        header: the cards.
        shape: shape of the image, (..., H, W).
    """
    matrix, scale = matrix_of(header), scale_of(header) if is_sky(header) else None
    if matrix is None or scale is None or text_of(header, "CTYPE1")[:2] != "RA" or number_of(header, "CRVAL1") is None:
        return None
    height, width = shape[-2:]
    centre = position_of(header, (1 + width) / 2, (1 + height) / 2)
    a, b, c, d = (value * ARCSEC / scale for value in matrix)
    return None if centre is None else Grid((height, width), scale, (a, b, c, d), centre)


def per_area(unit: str) -> bool:
    """Whether a unit is one of surface brightness.

    Example:
        >>> [per_area(unit) for unit in ("MJy/sr", "nJy arcsec-2", "nJy", "adu", "Jy/beam")]
        [True, True, False, False, False]
    """
    return bool(re.search(r"(/\s*\(?\s*|\b)(sr|arcsec|arcmin|deg)\d*\b", unit, re.I))


def rebinned(image: np.ndarray, old: Grid, new: Grid, *, unit: str) -> np.ndarray:
    """Return an image on other pixels, (H', W') float64; pixels that it does not cover completely are NaN.

    Args:
        image: (H, W).
        old: its pixels.
        new: the pixels of the result.
        unit: its unit: of surface brightness, or of flux.

    Raises:
        ValueError: the axes are not parallel.

    Example:
        >>> old, new = (Grid((n, n), 4 / n, (-1, 0, 0, 1), (0.0, 0.0)) for n in (4, 2))
        >>> rebinned(np.ones((4, 4)), old, new, unit="nJy").tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """
    if old == new:
        return image
    if max(abs(x - y) for x, y in zip(old.axes, new.axes, strict=True)) > TURN:
        raise ValueError(
            "its axes are not parallel to those of the band of --resample; reproject the image first, for example "
            "with SWarp or reproject"
        )
    down, across = offset_of(old, new)
    rows = overlaps(old.shape[0], old.scale, new.shape[0], new.scale, down)
    columns = overlaps(old.shape[1], old.scale, new.shape[1], new.scale, across)
    share = (old.scale / new.scale) ** 2 if per_area(unit) else 1.0
    covered = rows.sum(axis=1)[:, None] * columns.sum(axis=1)[None] * (old.scale / new.scale) ** 2
    pixels = image.astype(np.float64)
    # Some files mark missing pixels with the largest number of float32.
    unknown = ~(np.abs(pixels) < float(np.finfo(np.float32).max))
    found = rows @ np.where(unknown, 0, pixels) @ columns.T * share
    touched = rows @ unknown @ columns.T > 1 - COVERED
    return np.where((covered >= COVERED) & ~touched, found, np.nan)


def offset_of(old: Grid, new: Grid) -> tuple[float, float]:
    """Return how far the centre of one grid is from that of another, in arcsec along the rows' and the columns' axis;
    0 if it is less than a twentieth of a pixel.

    Args:
        old: the grid.
        new: the other.
    """
    turn = (old.centre[0] - new.centre[0] + 180) % 360 - 180
    east = turn * math.cos(math.radians(new.centre[1])) * ARCSEC
    north = (old.centre[1] - new.centre[1]) * ARCSEC
    a, b, c, d = new.axes
    across, down = a * east + c * north, b * east + d * north
    limit = SHIFT * min(old.scale, new.scale)
    return (0.0, 0.0) if math.hypot(across, down) < limit else (down, across)


def overlaps(count: int, width: float, new_count: int, new_width: float, offset: float) -> np.ndarray:
    """Return which part of each old pixel lies in each new one along an axis, (new_count, count).

    Args:
        count: number of old pixels.
        width: their width.
        new_count: number of new pixels.
        new_width: their width.
        offset: position of the old centre from the new one.

    Example:
        >>> overlaps(4, 1.0, 2, 2.0, 0.0).tolist()
        [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    edges = (np.arange(count + 1) - count / 2) * width + offset
    others = (np.arange(new_count + 1) - new_count / 2) * new_width
    low = np.maximum(edges[None, :-1], others[:-1, None])
    high = np.minimum(edges[None, 1:], others[1:, None])
    return np.clip(high - low, 0, None) / width
