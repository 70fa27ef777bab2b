"""How often the truth is in the intervals of the numbers of a search for a rare class. The truth is known, as the
scores are drawn from known distributions.

    python -m tests.evaluation.finding_coverage --sets 400 --images 1000x100 20000x2000

For each kind of scores and pair of numbers of images (of other classes x of the class), it prints how many per cent of
the intervals contain the truth, and for numbers that may be given as a lower bound, in how many per cent an estimate is
given. The binomial error of a percentage is printed last.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from deeplense.evaluation.finding import (
    HALF,
    Found,
    Ranked,
    allowed_with_interval,
    images_in_top,
    precision_with_interval,
    rate_or_less,
)
from deeplense.evaluation.metrics import Estimate
from deeplense.evaluation.purity import (
    Bound,
    completeness_with_interval,
    false_per_true,
    purity,
    purity_with_interval,
    top_with_interval,
)

PREVALENCES = (0.1, 0.01)
EXPECTED = (2, 3, 5, 10)
"""Numbers of false positives that are expected at the false positive rates."""


@dataclass(frozen=True)
class Kind:
    """Distributions of the scores of other classes and of the class. Scores are rounded to multiples of `step`, and at
    most `most`."""

    other: Any
    own: Any
    step: float = 0.0
    most: float = np.inf

    def draw(self, num: int, num_positive: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and whether they are of the class."""
        scores = np.r_[self.other.rvs(num, random_state=random), self.own.rvs(num_positive, random_state=random)]
        scores = np.round(scores / self.step) * self.step if self.step else scores
        return np.minimum(scores, self.most), np.arange(num + num_positive) >= num

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the false and the true positive rates of the population at all thresholds, from the highest."""
        if self.step:
            lowest, highest = -300, 300
            edges = (np.arange(highest, lowest, -1) - 0.5) * self.step
        else:
            tails = np.r_[np.geomspace(1e-14, 0.5, 60_000), 1 - np.geomspace(0.5, 1e-9, 20_000)]
            edges = np.unique(np.r_[self.other.isf(tails), self.own.isf(tails)])[::-1]
        edges = edges[edges <= self.most]
        return self.other.sf(edges), self.own.sf(edges)


KINDS: Mapping[str, Kind] = {
    "normal, 1.5 apart": Kind(stats.norm(), stats.norm(1.5)),
    "normal, 2.5 apart": Kind(stats.norm(), stats.norm(2.5)),
    "normal, 4 apart": Kind(stats.norm(), stats.norm(4)),
    "normal, own wider": Kind(stats.norm(), stats.norm(2, 2)),
    "normal, own narrower": Kind(stats.norm(), stats.norm(3, 0.6)),
    "exponential": Kind(stats.expon(), stats.expon(scale=5)),
    "heavy tails": Kind(stats.t(3), stats.t(3, loc=5)),
    "a few others like the class": Kind(stats.t(2), stats.norm(6)),
    "rounded to 0.1": Kind(stats.norm(), stats.norm(2.5), step=0.1),
    "rounded to 0.5": Kind(stats.norm(), stats.norm(2.5), step=0.5),
    "top scores equal": Kind(stats.norm(), stats.norm(2.5), most=3.2),
}


def truths(kind: Kind, num: int, num_positive: int) -> dict[str, float]:
    """Return the true value of each number for so many images of other classes and of the class."""
    false, true = kind.rates()
    found = {f"rate {expected:g}": attained(false, true, expected / num) for expected in EXPECTED}
    for allowed in (0, 10):
        # The probability that the first, or eleventh, image of another class is at or above each threshold.
        reached = stats.binom.sf(allowed, num, false)
        found[f"tpr{allowed}"] = float(np.sum(np.diff(reached, prepend=0) * np.r_[0, true[:-1]]) + 1 - reached[-1])
    share = num_positive / (num + num_positive)
    found["precision"] = float(np.sum(np.diff(true, prepend=0) * purity(true, false, share)))
    found["in top"] = in_top(false, true, share, num_positive // 2, num + num_positive)
    for prevalence in PREVALENCES:
        at = np.argmax(true >= HALF)
        found[f"purity {prevalence:g}"] = float(purity(true[at], false[at], prevalence))
        enough = false <= false_per_true(HALF, prevalence) * true
        found[f"complete {prevalence:g}"] = float(true[enough].max(initial=0))
        found[f"top {prevalence:g}"] = in_top(false, true, prevalence, *selected(num, prevalence))
    return found


def attained(false: np.ndarray, true: np.ndarray, rate: float) -> float:
    """Return the highest true positive rate with at most this false positive rate."""
    return float(true[false <= rate].max(initial=0))


def in_top(false: np.ndarray, true: np.ndarray, prevalence: float, top: int, size: int) -> float:
    """Return the number of objects of the class among the best ranked."""
    chosen = prevalence * true + (1 - prevalence) * false
    return size * prevalence * float(np.interp(top / size, np.r_[0, chosen], np.r_[0, true]))


def selected(num: int, prevalence: float) -> tuple[int, int]:
    """Return how many of how many objects of a survey are selected."""
    return int(100 * num * prevalence), 100 * num


def estimates(scores: np.ndarray, positive: np.ndarray, seed: int, *, num_draws: int = 500) -> dict[str, Found]:
    """Return all numbers with their intervals."""
    ranked = Ranked(scores, positive, seed=seed, num_draws=num_draws)
    num, draws = ranked.num_others, ranked.draws
    found: dict[str, Found] = {f"rate {expected:g}": rate_or_less(ranked, expected / num) for expected in EXPECTED}
    found |= {f"tpr{allowed}": allowed_with_interval(ranked, allowed) for allowed in (0, 10)}
    found["precision"] = precision_with_interval(ranked)
    found["in top"] = images_in_top(ranked, int(positive.sum()) // 2)
    for prevalence in PREVALENCES:
        top, size = selected(num, prevalence)
        found[f"purity {prevalence:g}"] = purity_with_interval(
            scores, positive, draws, completeness=HALF, prevalence=prevalence
        )
        found[f"complete {prevalence:g}"] = completeness_with_interval(
            scores, positive, draws, least=HALF, prevalence=prevalence
        )
        found[f"top {prevalence:g}"] = top_with_interval(
            scores, positive, draws, top=top, size=size, prevalence=prevalence
        )
    return found


@dataclass(frozen=True)
class Coverage:
    """Fractions of sets in which the truth is below and above the interval, and in which an estimate is given."""

    below: float
    above: float
    given: float

    @property
    def covered(self) -> float:
        """Fraction of sets in which the truth is in the interval, or above the bound."""
        return 1 - self.below - self.above


def coverage(
    kind: Kind,
    num: int,
    num_positive: int,
    num_sets: int,
    *,
    made: Callable[[np.ndarray, np.ndarray, int], Mapping[str, Found]] = estimates,
    seed: int = 0,
) -> dict[str, Coverage]:
    """Return how often the truth is in the interval of each number."""
    true, random = truths(kind, num, num_positive), np.random.default_rng(seed)
    found = [made(*kind.draw(num, num_positive, random), trial) for trial in range(num_sets)]
    return {name: coverage_of([each[name] for each in found], true[name]) for name in found[0]}


def coverage_of(found: list[Found], true: float) -> Coverage:
    """Return how often the truth is in these intervals, or above these bounds."""
    lows = np.array([each.low if isinstance(each, Estimate) else each.at_least for each in found])  # type: ignore[union-attr]
    highs = np.array([each.high if isinstance(each, Estimate) else np.inf for each in found])
    slack = 1e-9
    given = np.mean([not isinstance(each, Bound) for each in found])
    return Coverage(float(np.mean(true < lows - slack)), float(np.mean(true > highs + slack)), float(given))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=[*KINDS])
    parser.add_argument("--images", nargs="+", default=["200x50", "1000x100", "3000x50", "5000x500", "20000x2000"])
    parser.add_argument("--sides", action="store_true", help="print also how often the truth is below and above")
    asked = parser.parse_args()
    for name in asked.only:
        for images in asked.images:
            num, num_positive = map(int, images.split("x"))
            true = truths(KINDS[name], num, num_positive)
            for number, each in coverage(KINDS[name], num, num_positive, asked.sets).items():
                sides = f" {100 * each.below:5.1f} {100 * each.above:5.1f}" if asked.sides else ""
                text = f"{name:<28} {images:>10} {number:<13} {true[number]:10.4g} {100 * each.covered:6.1f}{sides}"
                print(f"{text} {100 * each.given:5.0f}", flush=True)
    print(f"error of a percentage: {100 * np.sqrt(0.05 * 0.95 / asked.sets):.1f}")


if __name__ == "__main__":
    main()
