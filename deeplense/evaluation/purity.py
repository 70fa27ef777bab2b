"""Purity and completeness of a search for a rare class in a survey, and the number that is found among the best ranked.
N images of other classes, M of the class, R draws, P points of a curve.

Held-out images have far more lenses than a survey. Completeness is the true positive rate, which does not depend on
this; purity is the fraction of the selected objects that are of the class. It follows from the true and the false
positive rate, t and f, and the prevalence p, the fraction of the class in the survey: p t / (p t + (1 - p) f). The
images of other classes must be like those of the survey.

A rare class needs a low false positive rate. If fewer than two images of other classes are above the threshold, no
estimate is given, but a lower bound (one-sided, 95 %). It assumes that nothing is found above the highest image of
another class: with none above the threshold, it is that of at most 3 / N false positives (Clopper and Pearson 1934).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Array, Estimate
from deeplense.evaluation.roc_draws import Curves, along, lowest, sample_curve, stepped, with_ends

LEAST_ABOVE = 2
"""Least number of images of other classes above a threshold for an estimate."""
SMALL = 1e-6


@dataclass(frozen=True)
class Bound:
    """A number that the images only bound from below, at 95 %, and why."""

    at_least: float
    reason: str


def refuse_prevalence(prevalence: float) -> None:
    """Raise ValueError unless a prevalence is above 0 and below 1."""
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence={prevalence} must be above 0 and below 1: the fraction of the class in a survey.")


def purity(true: Array, false: Array, prevalence: float) -> Array:
    """Return the purity at true and false positive rates; 1 if both are 0.

    Args:
        true: true positive rates, any shape.
        false: false positive rates, same shape.
        prevalence: fraction of the class in the survey.

    Example:
        >>> float(purity(np.array(0.5), np.array(0.001), 0.001).round(4))
        0.3336
    """
    refuse_prevalence(prevalence)
    right, wrong = prevalence * true, (1 - prevalence) * false
    return np.where(right + wrong > 0, right / np.where(right + wrong > 0, right + wrong, 1), 1.0)


def average_precision(curve: Curves, prevalence: float) -> float:
    """Return the average precision of images as scikit-learn defines it: the sum over the thresholds of the purity
    times the increase of the completeness. With M / (N + M) as prevalence it is that of the images as they are.

    Args:
        curve: curve of the images themselves, with a point per threshold (R = 1).
        prevalence: fraction of the class.
    """
    true, false = curve.true[0], curve.false[0]
    return float(np.sum(np.diff(true) * purity(true, false, prevalence)[1:]))


def area_under_purity(curves: Curves, prevalence: float) -> Array:
    """Return the mean purity over all completenesses of curves, (R,): the average precision of very many images.

    Args:
        curves: curves of the population.
        prevalence: fraction of the class.
    """
    right, wrong = prevalence * curves.true, (1 - prevalence) * curves.false
    before, total = right[:, :-1], (right + wrong)[:, :-1]
    more, grown = np.diff(right, axis=1), np.diff(right + wrong, axis=1)
    start = before / np.where(total > 0, total, 1)
    slope = more / np.where(grown > 0, grown, 1)
    ratio = grown / np.where(total > 0, total, 1)
    # Along a straight part the purity moves from `start` towards `slope`: the mean of this way has a logarithm.
    left = np.where(ratio > SMALL, np.log1p(ratio) / np.where(ratio > SMALL, ratio, 1), 1 - ratio / 2)
    means = np.where(total > 0, slope + (start - slope) * left, slope)
    if curves.tied.any():
        means[:, curves.tied] = purity(curves.true, curves.false, prevalence)[:, 1:][:, curves.tied]
    return np.sum(np.diff(curves.true) * means, axis=1)


def purity_at(curves: Curves, completeness: float, prevalence: float) -> Array:
    """Return the purity at the highest threshold with this completeness, (R,).

    Args:
        curves: curves of the population, or of images (R = 1).
        completeness: above 0, at most 1.
        prevalence: fraction of the class in the survey.
    """
    steps = stepped(curves)
    false = along(steps.true, steps.false, completeness, first=True)
    # A step that passes the completeness has more of it.
    true = np.maximum(along(steps.false, steps.true, false[:, None]), completeness)
    return purity(true, false, prevalence)


def completeness_at(curves: Curves, least: float, prevalence: float) -> Array:
    """Return the largest completeness at which the purity is at least a number, (R,).

    Args:
        curves: curves of the population.
        least: purity, above 0 and below 1.
        prevalence: fraction of the class in the survey.
    """
    curves = stepped(curves)
    excess = curves.false - false_per_true(least, prevalence) * curves.true
    last = excess.shape[1] - 1 - np.argmax(excess[:, ::-1] <= 0, axis=1)[:, None]
    after = np.minimum(last + 1, excess.shape[1] - 1)
    (x0, x1), (y0, y1) = (
        (np.take_along_axis(values, last, axis=1), np.take_along_axis(values, after, axis=1))
        for values in (excess, curves.true)
    )
    share = np.where(x1 > x0, -x0 / np.where(x1 > x0, x1 - x0, 1), 0)
    return (y0 + share * (y1 - y0))[:, 0]


def false_per_true(least: float, prevalence: float) -> float:
    """Return the largest ratio of false to true positive rate with at least this purity."""
    refuse_prevalence(prevalence)
    return prevalence * (1 - least) / (least * (1 - prevalence))


def lenses_in_top(curves: Curves, top: int, size: int, prevalence: float) -> Array:
    """Return the expected number of objects of the class among the best ranked of a survey, (R,). Objects with the same
    score are taken in random order.

    Args:
        curves: curves of the population, or of images (R = 1).
        top: number of the best ranked objects, at most `size`.
        size: number of objects of the survey.
        prevalence: fraction of the class in the survey.
    """
    refuse_prevalence(prevalence)
    if not 0 < top <= size:
        raise ValueError(f"top={top} must be above 0 and at most the number of objects, {size}.")
    selected = prevalence * curves.true + (1 - prevalence) * curves.false
    return size * prevalence * along(selected, curves.true, top / size)


def purity_with_interval(
    scores: Array, positive: NDArray[np.bool_], draws: Curves, *, completeness: float, prevalence: float
) -> Estimate | Bound:
    """Return the purity at a completeness with its 95 % interval, or a bound if too few images of other classes are
    above the threshold.

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,).
        draws: curves of the population (R, P), drawn from the same scores.
        completeness: above 0, at most 1.
        prevalence: fraction of the class in the survey.
    """
    found = np.sort(scores[positive])[::-1]
    threshold = found[max(int(np.ceil(completeness * len(found) - 1e-9)), 1) - 1]
    above = scores >= threshold
    value = float(purity(np.mean(above[positive]), np.mean(above[~positive]), prevalence))
    made = partial(purity_at, completeness=completeness, prevalence=prevalence)
    return estimate_or_bound(value, made, draws, num_false=int(above[~positive].sum()), num=int((~positive).sum()))


def completeness_with_interval(
    scores: Array, positive: NDArray[np.bool_], draws: Curves, *, least: float, prevalence: float
) -> Estimate | Bound:
    """Return the largest completeness with a purity with its 95 % interval, or a bound if too few images of other
    classes are above the threshold.

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,).
        draws: curves of the population (R, P), drawn from the same scores.
        least: purity, above 0 and below 1.
        prevalence: fraction of the class in the survey.
    """
    curve, num = sample_curve(scores, positive), int((~positive).sum())
    enough = np.flatnonzero(curve.false[0] <= false_per_true(least, prevalence) * curve.true[0])[-1]
    num_false = round(float(curve.false[0, enough]) * num)
    made = partial(completeness_at, least=least, prevalence=prevalence)
    return estimate_or_bound(float(curve.true[0, enough]), made, draws, num_false=num_false, num=num)


def top_with_interval(
    scores: Array, positive: NDArray[np.bool_], draws: Curves, *, top: int, size: int, prevalence: float
) -> Estimate | Bound:
    """Return the expected number of objects of the class among the best ranked of a survey with its 95 % interval, or a
    bound if too few images of other classes are above the threshold.

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,).
        draws: curves of the population (R, P), drawn from the same scores.
        top: number of the best ranked objects, at most `size`.
        size: number of objects of the survey.
        prevalence: fraction of the class in the survey.
    """
    curve, num = sample_curve(scores, positive), int((~positive).sum())
    value = float(lenses_in_top(curve, top, size, prevalence)[0])
    num_false = max(top - value, 0) / (size * (1 - prevalence)) * num
    made = partial(lenses_in_top, top=top, size=size, prevalence=prevalence)
    return estimate_or_bound(value, made, draws, num_false=num_false, num=num)


def estimate_or_bound(
    value: float,
    made: Callable[[Curves], Array],
    draws: Curves,
    *,
    num_false: float,
    num: int,
) -> Estimate | Bound:
    """Return a value with its interval if enough of the `num` images of other classes are above the threshold; `made`
    computes it from curves."""
    if num_false >= LEAST_ABOVE:
        return with_ends(value, made(draws))
    shown = np.floor(10 * num_false) / 10
    reason = f"{shown:g} of {num:,} images of other classes are above the threshold, {LEAST_ABOVE} are needed"
    return Bound(min(value, float(np.quantile(made(lowest(draws)), 0.05))), reason)
