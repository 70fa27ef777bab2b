"""How well people agree who grade the same images. N images, R people, K grades in order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MISSING = -1
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Agreement:
    """A coefficient of agreement with its 95 % interval; the ends are NaN where there is none."""

    value: float
    low: float
    high: float


def coincidences(grades: NDArray[np.integer], num_grades: int) -> np.ndarray:
    """Return how often each pair of grades was given to each image by two people, (N, K, K). Each person of an image
    with m grades counts once: pairs are divided by m - 1. An image with one grade has no pair.

    Args:
        grades: numbers of the grades, (N, R), -1 where a person gave none.
        num_grades: K.
    """
    counts = np.stack([(grades == k).sum(axis=1) for k in range(num_grades)], axis=1).astype(float)
    pairs = counts[:, :, None] * counts[:, None, :]
    own = np.arange(num_grades)
    pairs[:, own, own] -= counts
    return pairs / np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None]


def alpha_of(found: np.ndarray) -> np.ndarray:
    """Return Krippendorff's alpha for ordered grades; NaN if it is undefined, because no image has two grades or all
    grades are equal.

    Args:
        found: sum of the coincidences over images, (..., K, K).
    """
    totals = found.sum(axis=-1)
    total = totals.sum(axis=-1)
    places = np.cumsum(totals, axis=-1) - totals / 2
    distance = (places[..., :, None] - places[..., None, :]) ** 2
    observed = (found * distance).sum(axis=(-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * distance).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def krippendorff_alpha(grades: NDArray[np.integer], num_grades: int, *, seed: int = 0) -> Agreement:
    """Return Krippendorff's alpha for ordered grades (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"):
    1 if all agree, 0 for grades that are given at random. A large disagreement counts more than one of neighbouring
    grades. People may have graded different images. The interval has the 2.5 and 97.5 percentiles of 1000 bootstrap
    resamples of the images that two people graded; it has no ends if all agree.

    Args:
        grades: numbers of the grades in order, (N, R), -1 where a person gave none.
        num_grades: K.
        seed: seed of the resamples.

    Example:
        >>> round(krippendorff_alpha(np.array([[0, 0], [1, 1], [2, 1]]), 3).value, 3)
        0.778
    """
    each = coincidences(grades, num_grades)
    each = each[each.sum(axis=(1, 2)) > 0]
    value = float(alpha_of(each.sum(axis=0)))
    if not np.isfinite(value) or value == 1:
        return Agreement(value, np.nan, np.nan)
    # Images with the same grades are interchangeable: a resample is the number of images of each kind.
    kinds, counts = np.unique(each, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(each), counts / len(each), size=NUM_RESAMPLES)
    resampled = alpha_of(np.tensordot(weights, kinds, axes=1))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Agreement(value, float(low), float(high))


def cohen_kappa(first: NDArray[np.integer], second: NDArray[np.integer], num_grades: int) -> float:
    """Return Cohen's kappa of two people: 1 if all grades are equal, 0 if they are as often equal as by chance; NaN
    without a common image, or if both gave one and the same grade only.

    Args:
        first: numbers of the grades of the first person, (N,), -1 for none.
        second: numbers of the grades of the second person, (N,), -1 for none.
        num_grades: K.

    Example:
        >>> cohen_kappa(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
        0.5
    """
    both = (first != MISSING) & (second != MISSING)
    if not both.any():
        return float("nan")
    one, other = first[both], second[both]
    shares = [np.bincount(values, minlength=num_grades) / len(values) for values in (one, other)]
    by_chance = float(shares[0] @ shares[1])
    if by_chance >= 1:
        return float("nan")
    return float((np.mean(one == other) - by_chance) / (1 - by_chance))
