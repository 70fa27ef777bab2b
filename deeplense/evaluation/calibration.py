"""How far confidence is from accuracy, with an interval that holds the truth. N samples, B bins, R draws.

The error of binned confidences is a sum of absolute differences: it is never 0, even of a classifier that is perfectly
calibrated, and resamples of the samples only add to it. So its distribution is simulated: for each error that might be
true, labels are drawn of a classifier that has it, and the errors that are not at odds with the one seen make the
interval (test inversion by hybrid resampling: Chuang and Lai 2000, Statistica Sinica 10, 1; for an error of 0 these
are the labels of Broecker and Smith 2007, Weather and Forecasting 22, 651). As no error is below 0, the two tails
share the 5 % as Feldman and Cousins do (1998, Physical Review D 57, 3873, section IV B). The number itself is the
error whose draws are below the one seen as often as above.

`python -m tests.evaluation.interval_coverage` measures how often the truth is in the interval.
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
    """Mean distance between confidence and accuracy over 15 equal bins of confidence (Guo et al. 2017, equation 5),
    as others publish it: too large by chance, the more so the fewer samples there are."""
    member = np.eye(NUM_BINS)[bins_of(confidence)]
    return np.abs(weights @ (member * (correct - confidence)[:, None])).sum(axis=1) / weights.sum(axis=1)


def bins_of(confidence: Array) -> NDArray[np.integer]:
    """The number of the bin of each confidence."""
    return np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)


def calibration_error(confidence: Array, correct: Array, *, seed: int = 0) -> tuple[float, float, float]:
    """The same error without what chance adds to it, and the ends of its 95 % interval.

    Args:
        confidence: the probability of the predicted class (N,), within [0, 1].
        correct: 1 where the prediction is right, else 0 (N,).
        seed: of the draws.
    """
    samples = Binned.of(confidence, correct, seed=seed)
    least = -float(np.abs(samples.gap).max())
    middle = falls_to_zero(lambda change: samples.position(change).above - 0.5, least, 1.0)
    low = falls_to_zero(lambda change: samples.position(change).excess, least, middle)
    high = falls_to_zero(lambda change: samples.position(change).shortfall, middle, 1.0)
    return samples.error(middle), samples.error(low), samples.error(high)


def falls_to_zero(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from `low` to `high` passes 0, or the end that is nearest."""
    if function(low) <= 0:
        return low
    return high if function(high) >= 0 else bisect(function, low, high)


def bisect(function: Callable[[float], float], low: float, high: float, *, precision: float = PRECISION) -> float:
    """A zero between ends where a function has different signs."""
    return cast(float, optimize.bisect(function, low, high, xtol=precision))


class Position(NamedTuple):
    """Where the error that was seen lies among draws of which another is true: the share of draws below it (half of
    those that are equal), and the chance with which such an error may be missed from above."""

    above: float
    missed_above: float

    @property
    def excess(self) -> float:
        """Positive where the error seen is too large for the true one."""
        return self.missed_above - (1 - self.above)

    @property
    def shortfall(self) -> float:
        """Negative where the error seen is too small for the true one."""
        return self.above - (MISSED - self.missed_above)


@dataclass(frozen=True)
class Binned:
    """Samples in the bins that have any (B,): the mean confidence, how far the accuracy is above it, the share of the
    samples, the error seen, and how many samples each draw has (R, B)."""

    confidence: Array
    gap: Array
    share: Array
    seen: float
    drawn: NDArray[np.integer]
    seed: int

    @classmethod
    def of(cls, confidence: Array, correct: Array, *, seed: int) -> "Binned":
        """Samples by their confidence (N,)."""
        bins = bins_of(confidence)
        counts = np.bincount(bins, minlength=NUM_BINS)
        used = counts > 0
        said, right = (np.bincount(bins, x, minlength=NUM_BINS)[used] / counts[used] for x in (confidence, correct))
        share = counts[used] / len(confidence)
        drawn = np.random.default_rng((seed, 0)).multinomial(len(confidence), share, size=NUM_DRAWS)
        return cls(said, right - said, share, float(share @ np.abs(right - said)), drawn, seed)

    def changed(self, change: float) -> Array:
        """The gaps (B,), all wider or narrower by as much, as far as an accuracy can be."""
        upwards = np.where(self.gap == 0, self.confidence < 0.5, self.gap > 0)
        return np.clip(
            np.where(upwards, 1, -1) * np.maximum(np.abs(self.gap) + change, 0), -self.confidence, 1 - self.confidence
        )

    def error(self, change: float) -> float:
        """The error of a classifier with such gaps."""
        return float(self.share @ np.abs(self.changed(change)))

    def draws(self, change: float) -> Array:
        """The errors seen of such a classifier (R,), the same random numbers each time."""
        accuracy = np.clip(self.confidence + self.changed(change), 0, 1)
        correct = np.random.default_rng((self.seed, 1)).binomial(self.drawn, accuracy)
        return np.abs(correct - self.drawn * self.confidence).sum(axis=1) / self.drawn[0].sum()

    @cached_property
    def chance(self) -> float:
        """What a perfectly calibrated classifier's error is in the median."""
        return float(np.median(self.draws(-1.0)))

    def position(self, change: float) -> Position:
        """Where the error that was seen lies among those of such a classifier."""
        errors = self.draws(change)
        below, equal = (errors < self.seen - SAME).mean(), (np.abs(errors - self.seen) <= SAME).mean()
        distance = max(float(np.median(errors)) - self.chance, 0.0) / max(float(errors.std()), SAME)
        return Position(float(below + equal / 2), missed_from_above(distance))


def missed_from_above(distance: float) -> float:
    """How much of the 5 % that an interval may miss are numbers too large, where the true one is that many standard
    deviations from the least possible: 5 % at 0, half of it from 1.96 on (Feldman and Cousins 1998, equation 4.3)."""
    if distance >= special.ndtri(1 - MISSED / 2):
        return MISSED / 2
    if distance < SAME:
        return MISSED

    def too_much(half_width: float) -> float:
        lower = -(distance**2 + half_width**2) / (2 * distance)
        return special.ndtr(half_width) - special.ndtr(lower) - (1 - MISSED)

    return float(special.ndtr(-bisect(too_much, max(distance, 1.6), 2.0, precision=SAME)))
