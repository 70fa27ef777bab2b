"""Whether one image is a copy of another that was rotated, flipped, shifted, rescaled, or slightly changed. Shapes: n
images, C bands, H x W pixels.

After the alignment, the second image is predicted from the first by a factor and a constant, or by a small kernel and a
constant, which also undoes a shift by fractions of a pixel. The residual of the prediction decides. For a copy it is
rounding, white noise or a few pixels; for another lens it is a pattern that is smooth over several pixels. Two
exposures of one lens leave white noise, too, but the noise of the first is not found in the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deeplense.data.alignment import TURNS, Aligned, Image, turned

ROUNDING = 1e-6
"""A residual below this fraction of the image's standard deviation is rounding."""
MOST_CHANGED = 0.03
"""Fraction of the pixels that may be changed by any amount."""
REDDEST = 6.0
"""For white noise, means over 4 x 4 pixels have a sixteenth of the variance of the pixels; this is the largest accepted
variance, in this unit."""
LEAST_SHARED = 0.5
CERTAIN = 4.0
CLEANER = 8.0
"""Fraction of the first image's noise that must be found in the second, by how many standard errors it must differ from
zero, and the noise ratio from which this is not required: if the second has this many times the noise of the first and
is explained, and the first has none."""
EXPLAINED = 0.5
"""A residual below this fraction of the image's standard deviation proves that both show the same object."""
LARGEST, PROMISING = 0.7, 0.3
"""Of what a factor leaves: the most with which a kernel is tried, and the part that the kernel may leave of it."""
FURTHEST = 0.25
"""Largest shift, as a fraction of the side."""
BORDER = 2
CELL = 6
"""Side in pixels of the squares over which noise is summed."""
NOISELESS = 3e-4
"""Noise below this fraction of an image's standard deviation counts as none: simulated without noise. (A faint real
star looks like a bright one with more noise, and is not a copy of it.)"""
EMPTY = 1e-24
"""Fine structure below this fraction of the largest, as a variance, is rounding."""
SMALLEST = 1e-12
"""Smallest singular value that a kernel may use, in units of the largest."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """How a second image was made from the first.

    Args:
        turn: orientation, 0 to 7, see `TURNS`.
        shift: (rows, columns) in pixels.
        factor: factor of the flux.
        correlation: correlation of the two after that.
        equal: whether they are equal, pixel by pixel and without any of this.
        noisier: 0 or 1 if the first or second is the other with so much noise added that it may belong to another image
            as well.
    """

    turn: int
    shift: tuple[float, float]
    factor: float
    correlation: float
    equal: bool = False
    noisier: int | None = None
    """0 or 1: the first or second is the other with so much noise added that it may belong to another image as well"""

    def __str__(self) -> str:
        moved = any(abs(part) >= 0.05 for part in self.shift)
        parts = [
            "equal" if self.equal else "",
            TURNS[self.turn],
            "shifted by ({:.4g}, {:.4g})".format(*(round(part, 1) + 0.0 for part in self.shift)) if moved else "",
            f"times {self.factor:.4g}" if abs(self.factor - 1) > 0.002 else "",
        ]
        return ", ".join(filter(None, parts)) or "slightly changed"


def worth_a_look(first: Image, second: Image, aligned: Aligned) -> NDArray[np.bool_]:
    """Return which pairs may be copies, (n,) bool: the residual of a factor is not far too smooth, or that of a small
    kernel is far smaller. All pairs are tested at once, which saves most of them `find_copy`.

    Args:
        first: (n, C, H, W).
        second: (n, C, H, W).
        aligned: orientation and shift of each pair.
    """
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
    alike = (redness(left) < 2 * REDDEST) & (finer | (size < EXPLAINED * spread))
    looked_at = alike.all(axis=1)
    alike[looked_at] = shares_noise((two - left)[looked_at], two[looked_at], seen[looked_at])
    alike |= size <= 10 * ROUNDING * spread
    return (alike | (kernel_leaves(moved, second, seen) < PROMISING * size + ROUNDING * spread)).all(axis=1)


def shares_noise(predicted: Image, target: Image, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether the noise of a prediction may be that of its target, or one of the two has hardly any noise, (n,
    C) bool: `noise_in_common` with half its bounds, in both directions.

    Args:
        predicted: (n, C, H, W).
        target: (n, C, H, W).
        seen: pixels that both images have, (n, 1, H, W) bool.
    """
    ours, theirs = fine(predicted), fine(target)
    own, product, other = (cells(part, CELL) for part in (ours**2, ours * theirs, theirs**2))
    whole = cells(seen[..., 1:-1, 1:-1].astype(np.float64), CELL) == CELL**2
    left = ((target - predicted) ** 2 * seen).sum(axis=(2, 3)) / (target**2 * seen).sum(axis=(2, 3)).clip(1e-300)
    found = np.zeros(own.shape[:2], bool)
    # The other way round the factor is not the inverse: the product of both is the squared correlation.
    for power, image, scale in ((own, predicted, 1.0), (other, target, np.maximum(1 - left, 1e-3))):
        alive = whole & (power > EMPTY * power.max(axis=-1, keepdims=True))
        ordered = np.argsort(np.where(alive, power, np.inf), axis=-1, kind="stable")
        used = np.arange(power.shape[-1]) < np.maximum(alive.sum(axis=-1, keepdims=True) // 2, 1)
        quiet, common = (np.where(used, np.take_along_axis(x, ordered, axis=-1), 0).sum(-1) for x in (power, product))
        noise = np.sqrt(quiet / (used.sum(axis=-1) * 36 * CELL**2))
        spread = np.sqrt((image**2 * seen).sum(axis=(2, 3)) / seen.sum(axis=(2, 3)))
        found |= (common > LEAST_SHARED / 2 * scale * quiet) | (noise < 2 * NOISELESS * spread)
    return found


def covered(shifts: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return which pixels both images of each pair have, without a border, (n, 1, H, W) bool.

    Args:
        shifts: shifts in pixels, (n, 2).
        shape: (..., H, W).
    """
    seen = np.ones((len(shifts), 1, *shape[-2:]), bool)
    for axis, side in enumerate(shape[-2:]):
        low = np.maximum(shifts[:, axis], 0)[:, None] + BORDER
        high = side + np.minimum(shifts[:, axis], 0)[:, None] - BORDER
        inside = (np.arange(side) >= low) & (np.arange(side) < high)
        seen &= inside[:, None, :, None] if axis == 0 else inside[:, None, None, :]
    return seen


def centre(images: Image, kept: NDArray[np.bool_]) -> Image:
    """Return images minus the mean of the kept pixels.

    Args:
        images: (n, C, H, W).
        kept: (n, 1, H, W) or (n, C, H, W) bool.
    """
    return images - (images * kept).sum(axis=(2, 3), keepdims=True) / np.maximum(
        kept.sum(axis=(2, 3), keepdims=True), 1
    )


def remainder(moved: Image, second: Image, kept: NDArray[np.bool_]) -> tuple[Image, Image]:
    """Return the second images, centred, and the residual after the fit of a factor of the first, (n, C, H, W) each.

    Args:
        moved: first images, aligned, (n, C, H, W).
        second: (n, C, H, W).
        kept: pixels that are used, bool.
    """
    one, two = centre(moved, kept), centre(second.astype(np.float64), kept)
    power = np.maximum((one**2 * kept).sum(axis=(2, 3), keepdims=True), 1e-300)
    return two, two - (one * two * kept).sum(axis=(2, 3), keepdims=True) / power * one


def kernel_leaves(moved: Image, second: Image, seen: NDArray[np.bool_]) -> Image:
    """Return the standard deviation (n, C) of the residual of a 3 x 3 kernel and a constant, on a ninth of the pixels.

    Args:
        moved: first images, aligned, (n, C, H, W).
        second: (n, C, H, W).
        seen: pixels that both images have, (n, 1, H, W) bool.
    """
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
    """Return how the second image was made from the first, or None if it is not a copy.

    Args:
        first: (C, H, W).
        second: (C, H, W).
        turn: orientation, 0 to 7.
        shift: approximate shift (rows, columns) in pixels.

    Example:
        >>> image = np.random.default_rng(0).normal(size=(1, 32, 32))
        >>> str(find_copy(image, image, 0, (0, 0)))
        'equal'
        >>> find_copy(image, np.random.default_rng(1).normal(size=(1, 32, 32)), 0, (0, 0)) is None
        True
    """
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
            copy = summary(fits, turn=turn, inverse=inverse)
            return replace(copy, noisier=0 if inverse else 1) if any(fit.is_drowned for fit in fits) else copy
    return None


def is_promising(one: Image, two: Image, shift: tuple[int, int], fit: "Fit") -> bool:
    """Whether a kernel predicts a band far better than a factor did, tested on a ninth of the pixels.

    Args:
        one: band of the first image, (H, W).
        two: band of the second image, (H, W).
        shift: (rows, columns) in pixels.
        fit: result with a factor.
    """
    if fit.remainder > LARGEST:
        return False
    sources, target = overlapping(one, two, shift, BORDER)
    sources, target = sources[:, ::3, ::3], target[::3, ::3]
    kept = small(target - fitted(sources, target, np.ones(target.shape, bool))[1])
    predicted = fitted(sources, target, kept)[1]
    return float((target - predicted)[kept].std()) < PROMISING * fit.remainder * float(target[kept].std())


def summary(fits: Sequence["Fit"], *, turn: int, inverse: bool) -> Copy:
    """Return the mean over the bands.

    Args:
        fits: fit of each band.
        turn: orientation, 0 to 7.
        inverse: whether the first image was predicted from the second.
    """
    sign = -1 if inverse else 1
    shift = np.mean([fit.shift for fit in fits], axis=0) * sign
    factor = float(np.mean([fit.factor for fit in fits]))
    correlation = float(np.mean([fit.correlation for fit in fits]))
    factor = 1 / factor if inverse and factor else factor
    return Copy(turn=turn, shift=(float(shift[0]), float(shift[1])), factor=factor, correlation=correlation)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The residual of the prediction of one band by another.

    Args:
        shift: (rows, columns) in pixels.
        factor: factor of the flux.
        correlation: correlation of prediction and band.
        remainder: standard deviation of the residual in units of that of the band.
        redness: variance of its means over 4 x 4 pixels in units of that of white noise.
        shared: fraction of the fine structure of the quieter half of the first that is found in the second.
        certainty: the same in standard errors.
        noisier: amplitude of the fine structure of the second there, in units of that of the first.
        noise: amplitude of the fine structure of the first there, in units of its standard deviation.
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
        """Whether only rounding, white noise and a few pixels are left, and the noise of the first is found."""
        same_noise = self.shared > LEAST_SHARED and self.certainty > CERTAIN
        one_thing = self.is_drowned and self.remainder < EXPLAINED
        return self.remainder < ROUNDING or (self.redness < REDDEST and (same_noise or one_thing))

    @property
    def is_drowned(self) -> bool:
        """Whether the first has no noise, and the second has."""
        return self.noise < NOISELESS and self.noisier > CLEANER and self.remainder > ROUNDING


def predict(one: Image, two: Image, shift: tuple[int, int], *, reach: int) -> Fit:
    """Predict a band from another after a shift, by the pixels within some rows and columns.

    Args:
        one: band of the first image, (H, W).
        two: band of the second image, (H, W).
        shift: (rows, columns) in pixels.
        reach: half size of the kernel in pixels; 0 for a factor.
    """
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
    """Return the pixels of the first image at all offsets, (K, h, w), and those of the second that it covers, (h, w).

    Args:
        one: band of the first image, (H, W).
        two: band of the second image, (H, W).
        shift: (rows, columns) in pixels.
        reach: largest offset in pixels.
    """
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
    """Return weights (K,) of a least-squares fit with a constant, and the prediction (h, w).

    Args:
        sources: (K, h, w).
        target: (h, w).
        kept: pixels that are used, (h, w) bool.
    """
    known, wanted = sources[:, kept], target[kept]
    centre, mean = known.mean(axis=1), wanted.mean()
    known = known - centre[:, None]
    spread = known.std(axis=1)
    spread[spread == 0] = 1.0
    known /= spread[:, None]
    weights = np.linalg.lstsq(known @ known.T, known @ (wanted - mean), rcond=SMALLEST)[0] / spread
    return weights, np.tensordot(weights, sources, axes=1) + mean - weights @ centre


def small(left: Image) -> NDArray[np.bool_]:
    """Return where residuals (..., h, w) are not far beyond their usual size; true for nearly all pixels."""
    size = np.abs(left)
    flat = size.reshape(*size.shape[:-2], -1)
    middle, high = flat.shape[-1] // 2, int((1 - MOST_CHANGED) * (flat.shape[-1] - 1))
    ordered = np.partition(flat, (middle, high), axis=-1)
    most = np.maximum(6 / 0.6745 * ordered[..., middle], ordered[..., high])
    return size <= most[..., None, None]


def fine(image: Image) -> Image:
    """Return the fine structure (..., h - 2, w - 2): the second difference along both axes (Immerkaer 1996)."""
    rows = image[..., :-2, :] - 2 * image[..., 1:-1, :] + image[..., 2:, :]
    return rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]


def cells(image: Image, side: int) -> Image:
    """Return sums over squares of pixels, flat.

    Args:
        image: (..., h, w).
        side: pixels per side of a square.

    Example:
        >>> cells(np.ones((4, 4)), 2).tolist()
        [4.0, 4.0, 4.0, 4.0]
    """
    high, wide = (length // side for length in image.shape[-2:])
    squares = image[..., : high * side, : wide * side].reshape(*image.shape[:-2], high, side, wide, side)
    return squares.sum(axis=(-3, -1)).reshape(*image.shape[:-2], high * wide)


def redness(left: Image) -> Image:
    """Return the variance of the means over 4 x 4 pixels of residuals (..., h, w), relative to that of their fine
    structure; 1 for white noise."""
    coarse = (cells(left, 4) ** 2).mean(axis=-1) / 16
    return coarse / np.maximum((fine(left) ** 2).mean(axis=(-2, -1)) / 36, 1e-300)


def noise_in_common(predicted: Image, target: Image) -> dict[str, float]:
    """Return how much of the fine structure of a prediction is found in its target, in the half of the image where the
    prediction has less: the arcs of different lenses are alike, the noise between them is not.

    Args:
        predicted: (h, w).
        target: (h, w).

    Returns:
        `shared`, `noisier`, `noise` and `certainty` of `Fit`.
    """
    ours, theirs = fine(predicted), fine(target)
    own, product, other = (cells(part, CELL) for part in (ours**2, ours * theirs, theirs**2))
    # Where an image was filled with a constant, it says nothing of its noise.
    alive = np.flatnonzero(own > EMPTY * own.max())
    quiet = alive[np.argsort(own[alive])[: max(len(alive) // 2, 1)]]
    power = max(float(own[quiet].sum()), 1e-300)
    shared, noisier = float(product[quiet].sum()) / power, float(other[quiet].sum() / power) ** 0.5
    # The fine structure of white noise is correlated: a pixel counts for half.
    return {
        "shared": shared,
        "noisier": noisier,
        "noise": (power / (len(quiet) * 36 * CELL**2)) ** 0.5 / max(float(predicted.std()), 1e-300),
        "certainty": shared / max(noisier, 1e-300) * (len(quiet) * CELL**2 / 2) ** 0.5,
    }
