"""How often the true difference of two classifiers is in the interval of their paired difference. Both score the same
images, with correlated errors; the truth is known, as the scores are drawn from normal distributions.

    python -m tests.evaluation.paired_coverage --sets 300 --images 1000x100 5000x500

For each pair of classifiers, numbers of images (of other classes x of the class) and number of false positives that are
expected, it prints how many per cent of the intervals contain the true difference of the true positive rates, and how
often it is below and above them.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from deeplense.evaluation.comparison import LEAST_EXPECTED, RATES, Scores, difference, rate_names, score
from deeplense.evaluation.metrics import Estimate, tpr_at_fpr

CLASSES = ("other", "lens")


@dataclass(frozen=True)
class Pair:
    """Two classifiers: how far the class is from the others in their scores, and the correlation of their errors."""

    shifts: tuple[float, float]
    correlation: float

    def draw(self, num: int, num_positive: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of both, (2, N + M), and whether the images are of the class."""
        positive = np.arange(num + num_positive) >= num
        shared, own = random.normal(size=len(positive)), random.normal(size=(2, len(positive)))
        noise = np.sqrt(self.correlation) * shared + np.sqrt(1 - self.correlation) * own
        return noise + np.array(self.shifts)[:, None] * positive, positive

    def truth(self, rate: float) -> float:
        """Return the true difference of the true positive rates at a false positive rate, first minus second."""
        first, second = (float(stats.norm.sf(stats.norm.isf(rate) - shift)) for shift in self.shifts)
        return first - second


PAIRS: Mapping[str, Pair] = {
    "equal, correlated": Pair((2.5, 2.5), 0.8),
    "equal, independent": Pair((2.5, 2.5), 0.0),
    "better, correlated": Pair((3.0, 2.5), 0.8),
    "better, nearly the same": Pair((2.6, 2.5), 0.97),
    "much better": Pair((4.0, 2.0), 0.5),
}


def differences(scores: np.ndarray, positive: np.ndarray) -> dict[str, Estimate]:
    """Return the paired differences of the true positive rates of the class, by name, as `score_classes` and
    `difference` compute them, without the metrics that do not matter here."""
    names = {name: rate for rate in RATES for name in rate_names(positive.astype(int), CLASSES, rate).values()}
    names = {name: rate for name, rate in names.items() if name.endswith("_lens")}

    def rated(row: np.ndarray) -> Scores:
        def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
            return {name: tpr_at_fpr(row, positive, weights, rate) for name, rate in names.items()}

        return score(metrics, np.arange(len(row)), len(row), {})

    first, second = ({0: rated(row)} for row in scores)
    made = {name: difference(first, second, name) for name in names}
    return {name: value for name, value in made.items() if value is not None}


def coverage(pair: Pair, num: int, num_positive: int, num_sets: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return, by the name of the rate, how often the truth is below the interval, in it, and above it, (3,)."""
    random, counts = np.random.default_rng(seed), {}
    for _ in range(num_sets):
        for name, found in differences(*pair.draw(num, num_positive, random)).items():
            true = pair.truth(float(name.split("_")[3]))
            place = [true < found.low, found.low <= true <= found.high, true > found.high]
            counts[name] = counts.get(name, 0) + np.array(place)
    return {name: count / num_sets for name, count in counts.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--only", choices=PAIRS, nargs="+", default=[*PAIRS])
    parser.add_argument("--images", nargs="+", default=["1000x100", "3000x300", "10000x500"])
    asked = parser.parse_args()
    for name in asked.only:
        for images in asked.images:
            num, num_positive = map(int, images.split("x"))
            for number, (below, covered, above) in coverage(PAIRS[name], num, num_positive, asked.sets).items():
                expected = float(number.split("_")[3]) * num
                truth = PAIRS[name].truth(expected / num)
                text = f"{name:<24} {images:>10} {number:<20} {expected:5g} expected {truth:7.3f}"
                print(f"{text} {100 * covered:6.1f} {100 * below:5.1f} {100 * above:5.1f}", flush=True)
    print(f"error of a percentage: {100 * np.sqrt(0.05 * 0.95 / asked.sets):.1f}")
    print(f"rates {RATES}, with at least {LEAST_EXPECTED} expected false positives")


if __name__ == "__main__":
    main()
