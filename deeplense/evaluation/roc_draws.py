"""ROC curves of the population that agree with the held-out images. N images of other classes, M of the class, R draws,
P points.

The usual bootstrap fails at low false positive rates: the threshold then depends on a few images of other classes. The
draws here are fiducial (Hannig 2009, Statistica Sinica 19, 491). Of N scores drawn from one distribution, the fraction
of the population above the r-th highest is distributed as the r-th order statistic of N uniform numbers, whatever the
distribution is. The fractions of the class above the same thresholds have beta distributions, of which one half counts
one image more above the threshold and the other half one image less: the quantiles of such a mixture are the mid-P
interval of a binomial fraction (Berry and Armitage 1995, The Statistician 44, 417). Between two thresholds the curve is
straight. It is the ROC curve of the Bayesian bootstrap (Gu, Ghosal and Roy 2008, Statistics in Medicine 27, 5407), but
for the halves.

Above the highest image of another class the images say nothing about the false positive rate. There the curve is
continued to 0 as a power of the false positive rate. Its exponent is that of the curve between the highest and the
fourth highest image of another class, and above: most curves bend down towards low rates, and some, where a few images
of other classes look like the class, do so steeply. How much above differs from draw to draw.
`python -m tests.evaluation.finding_coverage` measures how often the intervals contain the truth.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Array, Estimate

NUM_DRAWS = 2000
EACH, FURTHER = 40, 60
"""So many thresholds from the top are at each image of another class, and so many further ones at some of them."""
NUM_FOR_SLOPE, STEEPEST = 4, 4.0
"""Number of thresholds that set the exponent above the highest, and its largest value."""
STEEPER, ADDED = 0.5, 0.15
"""By which part of itself, and by how much in addition, the exponent is larger, on average."""
NUM_ABOVE = 12


@dataclass(frozen=True)
class Curves:
    """R ROC curves: false and true positive rates of P points from (0, 0) to (1, 1), (R, P) each, straight between."""

    false: Array
    true: Array


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


def draw_curves(scores: Array, positive: NDArray[np.bool_], *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Curves:
    """Return draws of the ROC curve of the population, (R, P).

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,); N and M are above 0.
        num_draws: R.
        seed: seed of the draws.
    """
    refuse_nan(scores)
    random = np.random.default_rng(seed)
    negatives, found = np.sort(scores[~positive])[::-1], np.sort(scores[positive])
    ranks = chosen_ranks(len(negatives))
    above = len(found) - np.searchsorted(found, negatives[ranks - 1], side="right")
    gaps = np.diff(ranks, prepend=0, append=len(negatives) + 1)
    false = cumulative(random, np.tile(gaps.astype(float), (num_draws, 1)))
    one_more = random.integers(0, 2, size=(num_draws, 1))
    counts = np.tile(np.diff(above, prepend=0, append=len(found)), (num_draws, 1)).astype(float)
    counts[:, :1] += one_more
    counts[:, -1:] += 1 - one_more
    true = cumulative(random, counts)
    tail = continued(false, true, random)
    ends = np.zeros((num_draws, 1)), np.ones((num_draws, 1))
    return Curves(*(np.hstack([ends[0], *parts, ends[1]]) for parts in zip(tail, (false, true), strict=True)))


def chosen_ranks(num: int) -> NDArray[np.integer]:
    """Return the ranks of the images of other classes at which a curve has a point, from 1 to `num`."""
    further = np.geomspace(min(EACH, num), num, FURTHER).round().astype(int)
    return np.unique(np.r_[np.arange(1, min(EACH, num) + 1), further])


def cumulative(random: np.random.Generator, counts: Array) -> Array:
    """Draw from a Dirichlet distribution with these parameters (R, k) and return the cumulative sums but the last,
    (R, k - 1)."""
    parts = random.standard_gamma(counts).cumsum(axis=1)
    return parts[:, :-1] / parts[:, -1:]


def continued(false: Array, true: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Return the points of curves above their first known point.

    Args:
        false: false positive rates of the known points (R, K), increasing.
        true: their true positive rates (R, K).
        random: draws how much steeper each curve becomes.
    """
    last = min(NUM_FOR_SLOPE, false.shape[1]) - 1
    known = np.maximum(true[:, [0, last]], np.finfo(float).tiny)
    rise = np.log(false[:, last] / false[:, 0]) if last else np.ones(len(false))
    slope = np.clip(np.log(known[:, 1] / known[:, 0]) / rise, 0, STEEPEST)
    steeper, added = random.exponential(size=(2, len(false)))
    exponent = slope * (1 + STEEPER * steeper) + ADDED * added
    steps = -np.arange(NUM_ABOVE, 0, -1.0)
    return false[:, :1] * 2.0**steps, true[:, :1] * 2.0 ** (steps * exponent[:, None])


def lowest(curves: Curves) -> Curves:
    """Return the draws of curves with nothing found above the highest image of another class: whatever the curves are
    there, these are not above them."""
    false, true = curves.false.copy(), curves.true.copy()
    false[:, 1 : NUM_ABOVE + 1] = false[:, NUM_ABOVE + 1 : NUM_ABOVE + 2]
    true[:, 1 : NUM_ABOVE + 1] = 0
    return Curves(false, true)


def along(known: Array, wanted: Array, at: float, *, first: bool = False) -> Array:
    """Return a second coordinate (R,) of curves where the first has a value.

    Args:
        known: first coordinate (R, P), which does not decrease, from at most `at`.
        wanted: second coordinate (R, P).
        at: value of the first.
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


def with_ends(value: float, draws: Array) -> Estimate:
    """Return a value with the 95 % interval of draws (R,) of it; the interval contains the value."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value))
