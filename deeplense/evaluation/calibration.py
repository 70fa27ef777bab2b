"""Expected calibration error with a bias correction and a confidence interval. N samples, B bins, R simulations.

The binned calibration error is a sum of absolute differences, so it is above 0 even for a perfectly calibrated
classifier, and bootstrap resampling increases it further. Therefore its distribution is simulated: for each possible
true error, labels are sampled from a classifier with that error, and the interval contains the true errors that are
compatible with the observed one (test inversion by hybrid resampling: Chuang and Lai 2000, Statistica Sinica 10, 1; for
an error of 0 these are the labels of Broecker and Smith 2007, Weather and Forecasting 22, 651). Because the error
cannot be below 0, the 5 % are divided between the two tails as in Feldman and Cousins (1998, Physical Review D 57,
3873, section IV B). The estimate is the true error for which the observed error is the median of the simulations.

`python -m tests.evaluation.interval_coverage` measures the coverage of the interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Array = NDArray[np.floating]
NUM_BINS = 15
NUM_DRAWS = 1000
MISSED = 0.05
PRECISION, SAME = 1e-4, 1e-12


def expected_calibration_error(confidence: Array, correct: Array, weights: Array) -> Array:
    """Mean absolute difference between confidence and accuracy over 15 equal bins of confidence (Guo et al. 2017,
    equation 5), the usual estimate; it is biased upwards, more so for few samples."""
    member = np.eye(NUM_BINS)[bins_of(confidence)]
    return np.abs(weights @ (member * (correct - confidence)[:, None])).sum(axis=1) / weights.sum(axis=1)


def bins_of(confidence: Array) -> NDArray[np.integer]:
    """Return the bin index of each confidence."""
    return np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)


def calibration_error(confidence: Array, correct: Array, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the bias-corrected expected calibration error and the ends of its 95 % interval.

    Args:
        confidence: probability of the predicted class (N,), within [0, 1].
        correct: 1 if the prediction is correct, else 0 (N,).
        seed: random seed of the simulations.
    """
    samples = Binned.of(confidence, correct, seed=seed)
    least = -float(np.abs(samples.gap).max())
    middle = falls_to_zero(lambda change: samples.position(change).above - 0.5, least, 1.0)
    low = falls_to_zero(lambda change: samples.position(change).excess, least, middle)
    high = falls_to_zero(lambda change: samples.position(change).shortfall, middle, 1.0)
    return samples.error(middle), samples.error(low), samples.error(high)


def falls_to_zero(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the zero of a function that decreases from `low` to `high`, or the nearest end if there is none."""
    if function(low) <= 0:
        return low
    return high if function(high) >= 0 else bisect(function, low, high)


def bisect(function: Callable[[float], float], low: float, high: float, *, precision: float = PRECISION) -> float:
    """Return a zero between two ends at which a function has different signs."""
    return cast(float, optimize.bisect(function, low, high, xtol=precision))


class Position(NamedTuple):
    """Position of the observed error in the simulations of a given true error: the fraction of simulations below it
    (plus half of those equal to it), and the probability allowed for the upper tail."""

    above: float
    missed_above: float

    @property
    def excess(self) -> float:
        """Positive if the observed error is too large for the true one."""
        return self.missed_above - (1 - self.above)

    @property
    def shortfall(self) -> float:
        """Negative if the observed error is too small for the true one."""
        return self.above - (MISSED - self.missed_above)


@dataclass(frozen=True)
class Binned:
    """Samples in non-empty bins (B,): mean confidence, accuracy minus confidence, fraction of the samples, the observed
    error, and the number of samples per bin in each simulation (R, B)."""

    confidence: Array
    gap: Array
    share: Array
    seen: float
    drawn: NDArray[np.integer]
    seed: int

    @classmethod
    def of(cls, confidence: Array, correct: Array, *, seed: int) -> "Binned":
        """Sort samples into bins of confidence (N,)."""
        bins = bins_of(confidence)
        counts = np.bincount(bins, minlength=NUM_BINS)
        used = counts > 0
        said, right = (np.bincount(bins, x, minlength=NUM_BINS)[used] / counts[used] for x in (confidence, correct))
        share = counts[used] / len(confidence)
        drawn = np.random.default_rng((seed, 0)).multinomial(len(confidence), share, size=NUM_DRAWS)
        return cls(said, right - said, share, float(share @ np.abs(right - said)), drawn, seed)

    def changed(self, change: float) -> Array:
        """The gaps (B,), all widened by `change` (or narrowed if negative), with accuracies kept within [0, 1]."""
        upwards = np.where(self.gap == 0, self.confidence < 0.5, self.gap > 0)
        return np.clip(
            np.where(upwards, 1, -1) * np.maximum(np.abs(self.gap) + change, 0), -self.confidence, 1 - self.confidence
        )

    def error(self, change: float) -> float:
        """The calibration error of a classifier with the changed gaps."""
        return float(self.share @ np.abs(self.changed(change)))

    def draws(self, change: float) -> Array:
        """Simulate the observed errors of such a classifier (R,), with the same random numbers in each call."""
        accuracy = np.clip(self.confidence + self.changed(change), 0, 1)
        correct = np.random.default_rng((self.seed, 1)).binomial(self.drawn, accuracy)
        return np.abs(correct - self.drawn * self.confidence).sum(axis=1) / self.drawn[0].sum()

    @cached_property
    def chance(self) -> float:
        """The median observed error of a perfectly calibrated classifier."""
        return float(np.median(self.draws(-1.0)))

    def position(self, change: float) -> Position:
        """The position of the observed error in the simulations of such a classifier."""
        errors = self.draws(change)
        below, equal = (errors < self.seen - SAME).mean(), (np.abs(errors - self.seen) <= SAME).mean()
        distance = max(float(np.median(errors)) - self.chance, 0.0) / max(float(errors.std()), SAME)
        return Position(float(below + equal / 2), missed_from_above(distance))


def missed_from_above(distance: float) -> float:
    """Return the part of the 5 % that is allocated to the upper tail if the true value is `distance` standard
    deviations above the smallest possible one: 5 % at 0, half of it from 1.96 (Feldman and Cousins 1998, equation
    4.3)."""
    if distance >= special.ndtri(1 - MISSED / 2):
        return MISSED / 2
    if distance < SAME:
        return MISSED

    def too_much(half_width: float) -> float:
        lower = -(distance**2 + half_width**2) / (2 * distance)
        return special.ndtr(half_width) - special.ndtr(lower) - (1 - MISSED)

    return float(special.ndtr(-bisect(too_much, max(distance, 1.6), 2.0, precision=SAME)))
