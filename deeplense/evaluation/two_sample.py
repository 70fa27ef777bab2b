"""Two-sample tests of whether two sets of images have the same distribution, and the correction of their p-values. n
and m images, d numbers per image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_PERMUTATIONS = 1999
ROWS_AT_A_TIME = 100


@dataclass(frozen=True)
class Verdict:
    """Result of one test: its p-value, the p-value corrected for the number of tests, the effect size, and a text that
    describes the largest difference.

    `effect` is the largest distance of two cumulative distributions (0 to 1) if `effect_name` is ks, and the difference
    of means in standard deviations if it is sd.
    """

    name: str
    p_value: float
    effect: float
    effect_name: str
    detail: str
    corrected: float

    def __str__(self) -> str:
        return f"{self.name} (p = {self.corrected:.2g}, {self.effect_name} {self.effect:+.2f}): {self.detail}"


def kolmogorov_smirnov(name: str, first: NDArray[np.floating], second: NDArray[np.floating], *, unit: str) -> Verdict:
    """Two-sample Kolmogorov-Smirnov test of one number per image, (n, d) and (m, d); for several numbers, that of the
    number with the largest deviation, with its p-value times d (Bonferroni)."""
    results = [cast(Any, stats.ks_2samp(first[:, k], second[:, k])) for k in range(first.shape[1])]
    worst = int(np.argmax([result.statistic for result in results]))
    p_value = min(1.0, len(results) * float(min(result.pvalue for result in results)))
    detail = f"{spread(first[:, worst], unit)} against {spread(second[:, worst], unit)}"
    where = f"band {worst}: " if len(results) > 1 else ""
    return Verdict(name, p_value, float(results[worst].statistic), "ks", where + detail, p_value)


def spread(values: NDArray[np.floating], unit: str) -> str:
    """Format the median and the range of the central two thirds."""
    low, middle, high = np.quantile(values, [1 / 6, 1 / 2, 5 / 6])
    return f"{middle:.3g} ({low:.3g} to {high:.3g}){unit and ' '}{unit}"


def permutation(
    name: str,
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    labels: Sequence[str],
    seed: int,
    num_permutations: int = NUM_PERMUTATIONS,
) -> Verdict:
    """Permutation test of whether the means of several numbers per image, (n, d) and (m, d), are equal. The largest
    standardised difference of the d numbers is compared with its values under random permutations of the images between
    the two sets (Westfall and Young 1993, max T). The p-value is exact for any distribution, and the d numbers count as
    one test."""
    pooled = np.concatenate([first, second]).astype(np.float64)
    pooled -= pooled.mean(axis=0)
    deviation = pooled.std(axis=0)
    pooled = np.where(deviation > 0, pooled / np.where(deviation > 0, deviation, 1), 0.0)
    difference = pooled[: len(first)].mean(axis=0) - pooled[len(first) :].mean(axis=0)
    worst = int(np.abs(difference).argmax())
    drawn = largest_differences(pooled, len(first), seed=seed, num_permutations=num_permutations)
    # The sums are computed in another order there, so equal differences may differ by rounding.
    as_large = int((drawn >= np.abs(difference[worst]) * (1 - 1e-9)).sum())
    p_value = (1 + as_large) / (1 + num_permutations)
    effect = standardised_difference(first[:, worst], second[:, worst])
    means = f"{first[:, worst].mean():.3g} against {second[:, worst].mean():.3g}"
    return Verdict(name, p_value, effect, "sd", f"{labels[worst]}: means {means}", p_value)


def largest_differences(
    pooled: NDArray[np.floating], num_first: int, *, seed: int, num_permutations: int
) -> NDArray[np.floating]:
    """Return the largest difference of means over all d numbers for each random permutation. The pooled numbers
    (n + m, d) must have mean 0."""
    generator = np.random.default_rng((seed, len(pooled)))
    num_second = len(pooled) - num_first
    sides = np.arange(len(pooled)) < num_first
    parts = []
    for start in range(0, num_permutations, ROWS_AT_A_TIME):
        rows = min(ROWS_AT_A_TIME, num_permutations - start)
        drawn = generator.permuted(np.tile(sides, (rows, 1)), axis=1)
        sums = drawn.astype(np.float64) @ pooled
        parts.append(np.abs(sums * (1 / num_first + 1 / num_second)).max(axis=1))
    return np.concatenate(parts)


def standardised_difference(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Difference of two means over the standard deviation within the samples (Cohen's d); 0 if both are constant and
    equal."""
    difference = float(first.mean(dtype=np.float64) - second.mean(dtype=np.float64))
    within = float(np.sqrt((first.var(dtype=np.float64) + second.var(dtype=np.float64)) / 2))
    return difference / within if within > 0 else float(np.copysign(np.inf, difference)) if difference else 0.0


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the tests with p-values corrected for their number (Holm 1979), so that the probability of any false
    rejection at a level is at most that level."""
    p_values = np.array([verdict.p_value for verdict in verdicts])
    order = np.argsort(p_values, kind="stable")
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    whole = np.empty(len(order))
    whole[order] = steps
    return [replace(verdict, corrected=float(p)) for verdict, p in zip(verdicts, whole, strict=True)]
