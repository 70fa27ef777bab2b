"""How well a rare class is found: true positive rates at low false positive rates. N images of other classes, M of the
class, R draws.

The usual bootstrap fails at low rates: the threshold then depends on a few images of other classes. The interval here
is fiducial. Of N scores drawn from one distribution, the fraction of the population above the r-th highest is
distributed as the r-th order statistic of N uniform numbers, whatever the distribution is. So draws of these fractions
say between which two scores the threshold of a given rate lies; the number of images of the class above it has a beta
distribution (Jeffreys). If the threshold is above all N scores, the ROC curve is continued to 0 as the root of the
false positive rate. `tests/evaluation/test_finding.py` measures how often the intervals contain the truth.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Array, Estimate

RATES = (1e-2, 1e-3, 1e-4)
"""False positive rates of a report."""
LEAST_EXPECTED = 2.0
"""Least number of false positives that are expected at a rate; with fewer, an interval would say little."""
NUM_DRAWS = 4000


def true_positive_rate(scores: Array, positive: NDArray[np.bool_], rate: float) -> float:
    """Return the fraction of the class above the lowest threshold with at most this false positive rate.

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,).
        rate: false positive rate, 0 to 1.

    Example:
        >>> scores, positive = np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, False, True, False])
        >>> true_positive_rate(scores, positive, 0.0), true_positive_rate(scores, positive, 0.5)
        (0.5, 1.0)
    """
    negatives = np.sort(scores[~positive])[::-1]
    allowed = min(int(rate * len(negatives) + 1e-9), len(negatives) - 1)
    return float(np.mean(scores[positive] > negatives[allowed]))


def draw_rates(
    scores: Array, positive: NDArray[np.bool_], rate: float, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Array:
    """Return draws of the true positive rate at this false positive rate of the population, (R,).

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,).
        rate: false positive rate, above 0.
        num_draws: R.
        seed: seed of the draws.
    """
    random = np.random.default_rng(seed)
    negatives, found = np.sort(scores[~positive])[::-1], np.sort(scores[positive])
    num, num_positive = len(negatives), len(found)
    # Of the ordered fractions only the lowest matter: above this number the rate is never reached.
    most = min(num, int(3 * rate * num) + 60)
    gaps = random.exponential(size=(num_draws, most)).cumsum(axis=1)
    fractions = gaps / (gaps[:, -1:] + random.gamma(num + 1 - most, size=(num_draws, 1)))
    place = (fractions <= rate).sum(axis=1)
    above = np.append(num_positive - np.searchsorted(found, negatives, side="right"), num_positive)[place]
    continued = np.sqrt(rate / np.maximum(fractions[:, 0], rate))
    above = np.where(place == 0, above * continued, above)
    return random.beta(above + 0.5, num_positive - above + 0.5)


def rate_with_interval(scores: Array, positive: NDArray[np.bool_], rate: float, *, seed: int = 0) -> Estimate | str:
    """Return the true positive rate at a false positive rate, with its 95 % interval; or why it is not given.

    Args:
        scores: score of each image, (N + M,).
        positive: whether it is of the class, (N + M,).
        rate: false positive rate, above 0.
        seed: seed of the interval.
    """
    num, needed = int((~positive).sum()), int(np.ceil(LEAST_EXPECTED / rate))
    if not positive.any():
        return "no image of the class"
    if num < needed:
        return f"needs {needed:,} images of other classes, has {num:,}"
    value = true_positive_rate(scores, positive, rate)
    low, high = np.quantile(draw_rates(scores, positive, rate, seed=seed), [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value))


def finding_report(
    probabilities: Array, labels: NDArray[np.integer], classes: Sequence[str]
) -> dict[str, dict[str, dict[str, float | str]]]:
    """Return the true positive rates of each class at all `RATES`, by class and name such as `tpr_at_fpr_0.01`: value,
    low and high, or why it is `undefined`.

    Args:
        probabilities: (N, K), each row with the sum 1.
        labels: (N,), from 0 to K - 1.
        classes: names of the classes.
    """
    return {
        name: {f"tpr_at_fpr_{rate:g}": told(probabilities[:, k], labels == k, rate) for rate in RATES}
        for k, name in enumerate(classes)
    }


def told(scores: Array, positive: NDArray[np.bool_], rate: float) -> dict[str, float | str]:
    """Return a rate as an entry of a report."""
    found = rate_with_interval(scores, positive, rate)
    if isinstance(found, str):
        return {"undefined": found}
    return {"value": found.value, "low": found.low, "high": found.high}
