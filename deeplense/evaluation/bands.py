"""Curves of a search for a rare class with 95 % bands, which are the intervals at each point (pointwise). P points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.finding import HALF, LEAST_EXPECTED, RATES, Ranked, rate_or_less
from deeplense.evaluation.metrics import Array, Estimate
from deeplense.evaluation.purity import purity_with_interval

NUM_POINTS = 60


@dataclass(frozen=True)
class Band:
    """A curve with its band: where, value, and the ends of the interval, (P,) each. The value is NaN where only a lower
    bound is known."""

    at: Array
    value: Array
    low: Array
    high: Array


def roc_band(ranked: Ranked) -> Band | None:
    """Return the true positive rate against the false positive rate, from the rate at which two false positives are
    expected; None if there are too few images for any."""
    if ranked.lacking or ranked.num_others <= LEAST_EXPECTED:
        return None
    least = LEAST_EXPECTED / ranked.num_others
    named = [rate for rate in RATES if rate > least]
    at = np.unique(np.r_[np.geomspace(least, 1, NUM_POINTS), named])
    return band_of(at, [rate_or_less(ranked, rate) for rate in at.tolist()])


def purity_band(ranked: Ranked, prevalence: float) -> Band | None:
    """Return the purity against the completeness; None if an image of either kind is missing.

    Args:
        ranked: the images.
        prevalence: fraction of the class in the survey.
    """
    if ranked.lacking:
        return None
    at = np.unique(np.r_[np.linspace(0.02, 1, NUM_POINTS - 10), HALF])
    found = [
        purity_with_interval(*ranked.pair, ranked.draws, completeness=completeness, prevalence=prevalence)
        for completeness in at.tolist()
    ]
    known = [each if isinstance(each, Estimate) else Estimate(np.nan, each.at_least, 1.0) for each in found]
    return band_of(at, known)


def band_of(at: NDArray[np.floating], found: list[Estimate]) -> Band:
    """Return a band from the intervals at its points."""
    values = np.array([(each.value, each.low, each.high) for each in found]).T
    return Band(at, *values)
