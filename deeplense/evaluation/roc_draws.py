"""ROC curves of the population that agree with the held-out images. N images of other classes, M of the class, R draws,
P points.

The usual bootstrap fails at low false positive rates: the threshold then depends on a few images of other classes. The
draws here are fiducial (Hannig 2009, Statistica Sinica 19, 491). Of N scores drawn from one distribution, the fraction
of the population above the r-th highest is distributed as the r-th order statistic of N uniform numbers, whatever the
distribution is. The fractions of the class above the same thresholds have beta distributions, of which one half counts
one image more above the threshold and the other half one image less: the quantiles of such a mixture are the mid-P
interval of a binomial fraction (Berry and Armitage 1995, The Statistician 44, 417). Without these halves it is the ROC
curve of the Bayesian bootstrap (Gu, Ghosal and Roy 2008, Statistics in Medicine 27, 5407). Between the highest images
of other classes the curve is a power of the false positive rate, further below it is straight.

Images with the same score are between two thresholds, and no threshold is between them. Of the population above such a
threshold, with s images of other classes above it, a fraction is taken that has the beta distribution of s + 1/2.

Above the highest image of another class the images say nothing about the false positive rate. There the curve is
continued to 0 as a power of the false positive rate. Its exponent is that of the curve between the highest and the
fourth highest image of another class, and above: most curves bend down towards low rates, and some, where a few images
of other classes look like the class, do so very steeply. How much above differs from draw to draw, sometimes by far.
`python -m tests.evaluation.finding_coverage` measures how often the intervals contain the truth.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Array, Estimate

NUM_DRAWS = 2000
EACH, FURTHER = 40, 60
"""So many thresholds from the top are at each image of another class, and so many further ones at some of them."""
NUM_FOR_SLOPE, STEEPEST = 4, 4.0
"""Number of images that set the exponent above the highest, and the largest exponent that they may set."""
STEEPER, ADDED, MOST = 0.5, 0.2, 50.0
"""The exponent is larger by a part of itself, on average `STEEPER`, and by an amount with the median `ADDED` that is
often much larger (Lomax 1954, with shape 1). `MOST` is the largest exponent."""
NUM_ABOVE, NUM_BENT = 12, 12
"""Number of points above the highest image of another class, and of parts below it that are powers."""
BETWEEN = np.array([0.25, 0.5, 0.75])
"""Where in such a part further points are."""
TINY = 1e-9
TAIL = 0.025
"""Part of the draws below, and above, an interval."""
TAIL_AT_THRESHOLDS = 0.03
"""The same for a number at one threshold. There, the draws that lie between two images average out some of the noise of
both, so that intervals with 2.5 % contain the truth in more than 97 %, measured by simulation."""


@dataclass(frozen=True)
class Curves:
    """R ROC curves: false and true positive rates of P points from (0, 0) to (1, 1), (R, P) each, straight between.
    `tied` says whether the images between a point and the next have the same score, (P - 1,), or (0,) if none have."""

    false: Array
    true: Array
    tied: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))


def stepped(curves: Curves) -> Curves:
    """Return curves whose parts with equal scores are steps: no threshold is between these images."""
    (at,) = (np.flatnonzero(curves.tied),)
    if not len(at):
        return curves
    false = np.insert(curves.false, at + 1, curves.false[:, at + 1], axis=1)
    return Curves(false, np.insert(curves.true, at + 1, curves.true[:, at], axis=1))


def refuse_nan(scores: Array) -> None:
    """Raise ValueError if a score is NaN, because it has no rank."""
    number = int(np.isnan(scores).sum())
    if number:
        raise ValueError(f"{number} scores are NaN, which has no rank; check the outputs of the model.")


def sample_curve(scores: Array, positive: NDArray[np.bool_]) -> Curves:
    """Return the ROC curve of the images themselves (R = 1), with one point per distinct score.

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,); N and M are above 0.

    Example:
        >>> found = sample_curve(np.array([0.9, 0.8, 0.8, 0.2]), np.array([True, False, True, False]))
        >>> found.false.tolist(), found.true.tolist()
        ([[0.0, 0.0, 0.5, 1.0]], [[0.0, 0.5, 1.0, 1.0]])
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    true = np.r_[0, positive[order].cumsum()[ends]]
    false = np.r_[0, (~positive[order]).cumsum()[ends]]
    return Curves(false[None] / false[-1], true[None] / true[-1])


def draw_curves(
    scores: Array, positive: NDArray[np.bool_], *, num_draws: int = NUM_DRAWS, seed: int = 0, halves: bool = True
) -> Curves:
    """Return draws of the ROC curve of the population, (R, P).

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,); N and M are above 0.
        num_draws: R.
        seed: seed of the draws.
        halves: whether the images of the class are counted with halves. Needed for rates, which the lowest image of the
            class must not limit; a mean over all thresholds would be biased by the half image below all others.
    """
    refuse_nan(scores)
    random = np.random.default_rng(seed)
    points, num, num_positive = thresholds(scores, positive), int((~positive).sum()), int(positive.sum())
    gaps = np.diff(points.places, prepend=0, append=num + 1)
    false = cumulative(random, np.tile(gaps, (num_draws, 1)))
    one_more = random.integers(0, 2, size=(num_draws, 1)) if halves else np.zeros((num_draws, 1))
    counts = np.tile(np.diff(points.above, prepend=0, append=num_positive), (num_draws, 1)).astype(float)
    counts[:, :1] += one_more
    counts[:, -1:] += (1 - one_more) if halves else 0
    true = cumulative(random, counts)
    end = len(points.places) - 1
    tail = continued(false, true, random, last=min(int(np.searchsorted(points.places, NUM_FOR_SLOPE)), end))
    count = min(NUM_BENT, int(np.argmax(np.r_[points.tied, True])), end)
    false, true = bent(false, count), bent(true, count)
    start, stop = np.zeros((num_draws, 1)), np.ones((num_draws, 1))
    tied = np.r_[np.zeros(NUM_ABOVE + 1 + count * len(BETWEEN), dtype=bool), points.tied]
    return Curves(np.hstack([start, tail[0], false, stop]), np.hstack([start, tail[1], true, stop]), tied)


@dataclass(frozen=True)
class Thresholds:
    """P thresholds from the highest: their places among the images of other classes, of which the r-th highest is at r,
    and a threshold between two is halfway; how many images of the class are above each; and whether the images between
    each threshold and the next, or the end, have the same score, (P,) each."""

    places: Array
    above: NDArray[np.integer]
    tied: NDArray[np.bool_]


def thresholds(scores: Array, positive: NDArray[np.bool_]) -> Thresholds:
    """Return the thresholds at which a curve has a point: one at each image of another class or, where other images
    have its score, one above all of them and one below."""
    negatives, found = np.sort(-scores[~positive]), np.sort(-scores[positive])
    values = chosen_values(negatives)
    sides = ("left", "right")
    first, last = (np.searchsorted(negatives, values, side=side) for side in sides)
    above, with_equal = (np.searchsorted(found, values, side=side) for side in sides)
    alone = (last - first == 1) & (with_equal == above)
    kept = np.stack([np.ones_like(alone), ~alone], axis=1)
    places = np.stack([np.where(alone, last, first + 0.5), last + 0.5], axis=1)[kept]
    counts = np.stack([above, with_equal], axis=1)[kept]
    return Thresholds(places, counts, np.stack([~alone, np.zeros_like(alone)], axis=1)[kept])


def bent(values: Array, count: int) -> Array:
    """Return values (R, K) with geometric means between each of the first `count` and the next."""
    logs = np.log(np.maximum(values[:, : count + 1], TINY))
    between = np.exp(logs[:, :-1, None] * (1 - BETWEEN) + logs[:, 1:, None] * BETWEEN)
    first = np.concatenate([values[:, :count, None], between], axis=2).reshape(len(values), -1)
    return np.hstack([first, values[:, count:]])


def chosen_values(negatives: Array) -> Array:
    """Return the values at which a curve has a point, of the sorted values of images of other classes."""
    values, first = np.unique(negatives, return_index=True)
    further = np.geomspace(min(EACH, len(negatives)), len(negatives), FURTHER).round() - 1
    indices = np.searchsorted(first, further, side="right") - 1
    return values[np.unique(np.r_[np.arange(min(EACH, len(values))), indices])]


def cumulative(random: np.random.Generator, counts: Array) -> Array:
    """Draw from a Dirichlet distribution with these parameters (R, k) and return the cumulative sums but the last,
    (R, k - 1)."""
    parts = random.standard_gamma(counts).cumsum(axis=1)
    return parts[:, :-1] / parts[:, -1:]


def continued(false: Array, true: Array, random: np.random.Generator, *, last: int) -> tuple[Array, Array]:
    """Return the points of curves above their first known point.

    Args:
        false: false positive rates of the known points (R, K), increasing.
        true: their true positive rates (R, K).
        random: draws how much steeper each curve becomes.
        last: number of the point that sets the exponent together with the first.
    """
    known = np.maximum(true[:, [0, last]], np.finfo(float).tiny)
    rise = np.log(false[:, last] / false[:, 0]) if last else np.ones(len(false))
    slope = np.clip(np.log(known[:, 1] / known[:, 0]) / rise, 0, STEEPEST)
    steeper, rest = random.exponential(size=len(false)), random.random(len(false))
    exponent = np.minimum(slope * (1 + STEEPER * steeper) + ADDED * (1 / (1 - rest) - 1), MOST)
    steps = -np.arange(NUM_ABOVE, 0, -1.0)
    return false[:, :1] * 2.0**steps, true[:, :1] * 2.0 ** (steps * exponent[:, None])


def lowest(curves: Curves) -> Curves:
    """Return the draws of curves with nothing found above the highest image of another class: whatever the curves are
    there, these are not above them."""
    false, true = curves.false.copy(), curves.true.copy()
    # A little before it, so that the rise there is no step that passes any completeness at once.
    false[:, 1 : NUM_ABOVE + 1] = false[:, NUM_ABOVE + 1 : NUM_ABOVE + 2] * (1 - 1e-9)
    true[:, 1 : NUM_ABOVE + 1] = 0
    return Curves(false, true, curves.tied)


def along(known: Array, wanted: Array, at: float | Array, *, first: bool = False) -> Array:
    """Return a second coordinate (R,) of curves where the first has a value.

    Args:
        known: first coordinate (R, P), which does not decrease, from at most `at`.
        wanted: second coordinate (R, P).
        at: value of the first, for all curves or for each, (R, 1).
        first: at which end of a part with this very value: its first point, or its last.
    """
    count = (known < at if first else known <= at).sum(axis=1, keepdims=True)
    after = np.clip(count, 1, known.shape[1] - 1)
    (x0, x1), (y0, y1) = (
        (np.take_along_axis(values, after - 1, axis=1), np.take_along_axis(values, after, axis=1))
        for values in (known, wanted)
    )
    share = np.clip((at - x0) / np.where(x1 > x0, x1 - x0, 1), 0, 1)
    return np.where(count >= known.shape[1], wanted[:, -1:], y0 + share * (y1 - y0))[:, 0]


def with_ends(value: float, draws: Array, *, tail: float = TAIL_AT_THRESHOLDS) -> Estimate:
    """Return a value with the 95 % interval of draws (R,) of it; the interval contains the value.

    Args:
        value: the number for the images themselves.
        draws: the number for each draw, (R,).
        tail: part of the draws below the interval, and part above it.
    """
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))
