"""Whether one image is a copy of another that was turned, flipped, shifted, rescaled, or changed a little. n images, C
bands, H x W pixels.

Once aligned, the second image is predicted from the first by a factor and a constant, or by a small kernel and a
constant, which also undoes a shift by parts of a pixel. What the prediction leaves decides. A copy leaves rounding,
white noise or a few pixels; another lens leaves a pattern that is smooth over several pixels. Two exposures of one lens
leave white noise too, but the noise of the first is not found again in the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplense.data.alignment import TURNS, Aligned, Image, turned

ROUNDING = 1e-6
"""A remainder below this part of the image's spread is rounding."""
MOST_CHANGED = 0.03
"""The part of the pixels that may be changed by any amount."""
REDDEST = 6.0
"""Of white noise the means of 4 x 4 pixels have a sixteenth of the variance of the pixels; the most that may be found,
in this unit."""
LEAST_SHARED = 0.5
CERTAIN = 4.0
CLEANER = 8.0
"""The part of the first image's noise that must be found again in the second, by how many standard errors it must
differ from zero; not asked for where the second has so many times the noise of the first and yet is explained, if
the first has none."""
EXPLAINED = 0.5
"""A remainder below this part of the image's spread leaves no doubt that both show one thing."""
LARGEST, PROMISING = 0.7, 0.3
"""Of what a factor leaves: the most with which a kernel is tried, and the part that the kernel may leave of it."""
FURTHEST = 0.25
"""The furthest shift, as part of the side."""
BORDER = 2
NOISELESS = 3e-4
"""Noise below this part of an image's spread is none: simulated without noise. (Of real stars a faint one looks like a
bright one with more noise, and is no copy of it.)"""
EMPTY = 1e-24
"""Fine structure of this part of the largest, as a variance, is rounding."""
SMALLEST = 1e-12
"""Of the singular values that a kernel may rest on, in units of the largest."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """How a second image was made from the first: orientation, shift (rows, columns) in pixels, factor of the flux,
    correlation of the two after that, and whether they are equal, pixel by pixel and without any of this."""

    turn: int
    shift: tuple[float, float]
    factor: float
    correlation: float
    equal: bool = False

    def __str__(self) -> str:
        moved = any(abs(part) >= 0.05 for part in self.shift)
        parts = [
            "equal" if self.equal else "",
            TURNS[self.turn],
            "shifted by ({:.4g}, {:.4g})".format(*(round(part, 1) + 0.0 for part in self.shift)) if moved else "",
            f"times {self.factor:.4g}" if abs(self.factor - 1) > 0.002 else "",
        ]
        return ", ".join(filter(None, parts)) or "changed a little"


def worth_a_look(first: Image, second: Image, aligned: Aligned) -> NDArray[np.bool_]:
    """Which pairs (n,) of images (n, C, H, W) may be copies: what a factor leaves is not far too smooth, or a small
    kernel leaves far less. All pairs at once: it spares most of them `find_copy`."""
    moved = np.stack(
        [
            np.roll(turned(image, int(turn)), tuple(shift), axis=(-2, -1))
            for image, turn, shift in zip(first, aligned.turn, aligned.shift, strict=True)
        ]
    ).astype(np.float64)
    seen = covered(aligned.shift, second.shape)
    kept = seen & small(remainder(moved, second, seen)[1])
    two, left = remainder(moved, second, kept)
    kept = seen & small(left)
    two, left = remainder(moved, second, kept)
    left = np.where(kept, left, 0.0)
    spread = np.sqrt((two**2 * kept).sum(axis=(2, 3)) / kept.sum(axis=(2, 3)))
    size = np.sqrt((left**2).sum(axis=(2, 3)) / kept.sum(axis=(2, 3)))
    finer = (fine(left) ** 2).sum(axis=(2, 3)) < 0.9 * (fine(two * kept) ** 2).sum(axis=(2, 3))
    alike = (size <= 10 * ROUNDING * spread) | ((redness(left) < 2 * REDDEST) & (finer | (size < EXPLAINED * spread)))
    return (alike | (kernel_leaves(moved, second, seen) < PROMISING * size + ROUNDING * spread)).all(axis=1)


def covered(shifts: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Where (n, 1, H, W) both images of each pair have pixels, less a border."""
    seen = np.ones((len(shifts), 1, *shape[-2:]), bool)
    for axis, side in enumerate(shape[-2:]):
        low = np.maximum(shifts[:, axis], 0)[:, None] + BORDER
        high = side + np.minimum(shifts[:, axis], 0)[:, None] - BORDER
        inside = (np.arange(side) >= low) & (np.arange(side) < high)
        seen &= inside[:, None, :, None] if axis == 0 else inside[:, None, None, :]
    return seen


def centre(images: Image, kept: NDArray[np.bool_]) -> Image:
    """Images less the mean of the pixels that are kept."""
    return images - (images * kept).sum(axis=(2, 3), keepdims=True) / np.maximum(
        kept.sum(axis=(2, 3), keepdims=True), 1
    )


def remainder(moved: Image, second: Image, kept: NDArray[np.bool_]) -> tuple[Image, Image]:
    """The second images (n, C, H, W), centred, and what a factor of the first leaves of them; both rest on the pixels
    that are kept."""
    one, two = centre(moved, kept), centre(second.astype(np.float64), kept)
    power = np.maximum((one**2 * kept).sum(axis=(2, 3), keepdims=True), 1e-300)
    return two, two - (one * two * kept).sum(axis=(2, 3), keepdims=True) / power * one


def kernel_leaves(moved: Image, second: Image, seen: NDArray[np.bool_]) -> Image:
    """The spread (n, C) of what a kernel of 3 x 3 pixels and a constant leave, tried on a ninth of the pixels."""
    places = [np.roll(moved, (y, x), axis=(-2, -1))[..., ::3, ::3] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    known = np.stack([*places, np.ones_like(places[0])], axis=2) * seen[:, :, None, ::3, ::3]
    known = known.reshape(*known.shape[:3], -1)
    wanted = (second * seen)[..., ::3, ::3].reshape(*known.shape[:2], -1).astype(np.float64)
    normal = np.einsum("ncap,ncbp->ncab", known, known, optimize=True)
    scale = np.sqrt(np.maximum(np.einsum("ncaa->nca", normal), 1e-300))
    normal /= scale[..., :, None] * scale[..., None, :]
    normal += SMALLEST * np.eye(normal.shape[-1])
    right = np.einsum("ncap,ncp->nca", known, wanted) / scale
    weights = np.linalg.solve(normal, right[..., None])[..., 0] / scale
    left = wanted - np.einsum("ncap,nca->ncp", known, weights)
    return np.sqrt((left**2).sum(axis=-1) / np.maximum(seen[:, :, ::3, ::3].sum(axis=(2, 3)), 1))


def find_copy(first: Image, second: Image, turn: int, shift: tuple[int, int]) -> Copy | None:
    """How the second image (C, H, W) was made from the first, in this orientation and near this shift; None where it is
    no copy."""
    if turn == 0 and np.array_equal(first, second):
        return Copy(turn=0, shift=(0.0, 0.0), factor=1.0, correlation=1.0, equal=True)
    limit = [FURTHEST * side for side in second.shape[-2:]]
    if any(abs(part) > most for part, most in zip(shift, limit, strict=True)):
        return None
    one, two = turned(first, turn).astype(np.float64), second.astype(np.float64)
    bands = [band for band in range(len(two)) if one[band].std() > 0 and two[band].std() > 0]
    if not bands:
        return None
    # What was smoothed is predicted from what was not, and what is noisy from what is clean.
    back = (-shift[0], -shift[1])
    for here, there, way, inverse in ((one, two, shift, False), (two, one, back, True)):
        fits = [predict(here[band], there[band], way, reach=0) for band in bands]
        if not all(fit.is_copy for fit in fits) and all(
            is_promising(here[band], there[band], way, fit) for band, fit in zip(bands, fits, strict=True)
        ):
            fits = [predict(here[band], there[band], way, reach=BORDER) for band in bands]
        if all(fit.is_copy for fit in fits):
            return summary(fits, turn=turn, inverse=inverse)
    return None


def is_promising(one: Image, two: Image, shift: tuple[int, int], fit: "Fit") -> bool:
    """Whether a kernel predicts a band (H, W) far better than a factor did, tried on a ninth of the pixels."""
    if fit.remainder > LARGEST:
        return False
    sources, target = overlapping(one, two, shift, BORDER)
    sources, target = sources[:, ::3, ::3], target[::3, ::3]
    kept = small(target - fitted(sources, target, np.ones(target.shape, bool))[1])
    predicted = fitted(sources, target, kept)[1]
    return float((target - predicted)[kept].std()) < PROMISING * fit.remainder * float(target[kept].std())


def summary(fits: Sequence["Fit"], *, turn: int, inverse: bool) -> Copy:
    """The means over the bands."""
    sign = -1 if inverse else 1
    shift = np.mean([fit.shift for fit in fits], axis=0) * sign
    factor = float(np.mean([fit.factor for fit in fits]))
    correlation = float(np.mean([fit.correlation for fit in fits]))
    factor = 1 / factor if inverse and factor else factor
    return Copy(turn=turn, shift=(float(shift[0]), float(shift[1])), factor=factor, correlation=correlation)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a prediction of one band by another leaves.

    `remainder` is its spread in units of the band's; `redness` the variance of its means over 4 x 4 pixels in units of
    what white noise has; `shared` which part of the fine structure of the quieter half of the first is found in the
    second, `certainty` that in standard errors; `noisier` how much more fine structure the second has there; `noise`
    that of the first there, in units of its spread.
    """

    shift: tuple[float, float]
    factor: float
    correlation: float
    remainder: float
    redness: float
    shared: float
    certainty: float
    noisier: float
    noise: float

    @property
    def is_copy(self) -> bool:
        """Whether nothing but rounding, white noise and a few pixels is left, and the noise of the first is there."""
        if self.remainder < ROUNDING:
            return True
        same_noise = self.shared > LEAST_SHARED and self.certainty > CERTAIN
        one_thing = self.noise < NOISELESS and self.noisier > CLEANER and self.remainder < EXPLAINED
        return self.redness < REDDEST and (same_noise or one_thing)


def predict(one: Image, two: Image, shift: tuple[int, int], *, reach: int) -> Fit:
    """Predict a band (H, W) from another after a shift, by the pixels up to `reach` rows and columns away."""
    sources, target = overlapping(one, two, shift, reach)
    kept = small(target - fitted(sources, target, np.ones(target.shape, bool))[1])
    kernel, predicted = fitted(sources, target, kept)
    kept = small(target - predicted)
    left = np.where(kept, target - predicted, 0.0)
    spread = target[kept].std() or 1.0
    steps = np.arange(-reach, reach + 1)
    weights = kernel.reshape(len(steps), len(steps))
    total = weights.sum() or 1.0
    # Source k is the first image moved by -steps: a weight there moves it back.
    moved = (shift[0] - weights.sum(axis=1) @ steps / total, shift[1] - weights.sum(axis=0) @ steps / total)
    ratio = float(left.std() / spread)
    return Fit(
        shift=moved,
        factor=float(total),
        correlation=max(1 - ratio**2, 0.0) ** 0.5,
        remainder=ratio,
        redness=float(redness(left)),
        **noise_in_common(predicted, np.where(kept, target, predicted)),
    )


def overlapping(one: Image, two: Image, shift: tuple[int, int], reach: int) -> tuple[Image, Image]:
    """The pixels of the second image that the first covers, (h, w), and those of the first at all places up to `reach`
    away, (K, h, w)."""
    rows, columns = (
        slice(max(part, 0) + BORDER, side + min(part, 0) - BORDER) for part, side in zip(shift, two.shape, strict=True)
    )
    steps = range(-reach, reach + 1)
    sources = [
        one[
            rows.start - shift[0] + y : rows.stop - shift[0] + y,
            columns.start - shift[1] + x : columns.stop - shift[1] + x,
        ]
        for y in steps
        for x in steps
    ]
    return np.stack(sources), two[rows, columns]


def fitted(sources: Image, target: Image, kept: NDArray[np.bool_]) -> tuple[Image, Image]:
    """Weights (K,) of the sources (K, h, w) by least squares over the pixels kept, a constant beside them; and the
    prediction (h, w)."""
    known, wanted = sources[:, kept], target[kept]
    centre, mean = known.mean(axis=1), wanted.mean()
    known = known - centre[:, None]
    spread = known.std(axis=1)
    spread[spread == 0] = 1.0
    known /= spread[:, None]
    weights = np.linalg.lstsq(known @ known.T, known @ (wanted - mean), rcond=SMALLEST)[0] / spread
    return weights, np.tensordot(weights, sources, axes=1) + mean - weights @ centre


def small(left: Image) -> NDArray[np.bool_]:
    """Where remainders (..., h, w) are not far beyond their usual size; true of nearly all pixels."""
    size = np.abs(left)
    flat = size.reshape(*size.shape[:-2], -1)
    middle, high = flat.shape[-1] // 2, int((1 - MOST_CHANGED) * (flat.shape[-1] - 1))
    ordered = np.partition(flat, (middle, high), axis=-1)
    most = np.maximum(6 / 0.6745 * ordered[..., middle], ordered[..., high])
    return size <= most[..., None, None]


def fine(image: Image) -> Image:
    """The fine structure (..., h - 2, w - 2): the second difference along both axes (Immerkaer 1996)."""
    rows = image[..., :-2, :] - 2 * image[..., 1:-1, :] + image[..., 2:, :]
    return rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]


def cells(image: Image, side: int) -> Image:
    """Sums over squares of pixels of images (..., h, w), flat."""
    high, wide = (length // side for length in image.shape[-2:])
    squares = image[..., : high * side, : wide * side].reshape(*image.shape[:-2], high, side, wide, side)
    return squares.sum(axis=(-3, -1)).reshape(*image.shape[:-2], -1)


def redness(left: Image) -> Image:
    """Variance of the means over 4 x 4 pixels of remainders (..., h, w) over that of their fine structure; 1 for white
    noise."""
    coarse = (cells(left, 4) ** 2).mean(axis=-1) / 16
    return coarse / np.maximum((fine(left) ** 2).mean(axis=(-2, -1)) / 36, 1e-300)


def noise_in_common(predicted: Image, target: Image) -> dict[str, float]:
    """How much of the fine structure of a prediction is found in what it predicts, over the half of the image where the
    prediction has less: the arcs of different lenses are alike, the noise between them is not."""
    ours, theirs = fine(predicted), fine(target)
    own, product, other = (cells(part, 6) for part in (ours**2, ours * theirs, theirs**2))
    # Where an image was filled with a constant, it says nothing of its noise.
    alive = np.flatnonzero(own > EMPTY * own.max())
    quiet = alive[np.argsort(own[alive])[: max(len(alive) // 2, 1)]]
    power = max(float(own[quiet].sum()), 1e-300)
    shared, noisier = float(product[quiet].sum()) / power, float(other[quiet].sum() / power) ** 0.5
    # The fine structure of white noise is correlated: a pixel counts for half.
    return {
        "shared": shared,
        "noisier": noisier,
        "noise": (power / (len(quiet) * 36 * 36)) ** 0.5 / max(float(predicted.std()), 1e-300),
        "certainty": shared / max(noisier, 1e-300) * (len(quiet) * 18) ** 0.5,
    }
