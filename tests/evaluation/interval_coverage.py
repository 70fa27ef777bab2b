"""How often the truth is in the interval of the calibration error. The truth is known, as the labels are drawn.

    python -m tests.evaluation.interval_coverage --classifiers 1000 --images 300 1000 3000

One core takes some 50 ms for each classifier.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from deeplense.evaluation.calibration import NUM_BINS, bins_of, calibration_error, expected_calibration_error
from deeplense.evaluation.metrics import with_intervals

Interval = tuple[float, float, float]
MANY = 2_000_000


@dataclass(frozen=True)
class Drawn:
    """Predictions (N,): the confidence, how probable it is that they are right, and whether they are."""

    confidence: np.ndarray
    chance: np.ndarray
    correct: np.ndarray


def softmax_classifier(*, skill: float, sharpness: float) -> Callable[[int, np.random.Generator], Drawn]:
    """A classifier of three normal distributions; its logits are those of the true probabilities times `sharpness`, so
    that it is calibrated at 1, too sure above and not sure enough below."""

    def draw(num_images: int, generator: np.random.Generator) -> Drawn:
        labels = generator.integers(0, 3, num_images)
        logits = skill * (generator.normal(size=(num_images, 3)) + skill * np.eye(3)[labels])
        said, true = special.softmax(sharpness * logits, axis=1), special.softmax(logits, axis=1)
        best = said.argmax(axis=1)
        return Drawn(said.max(axis=1), true[np.arange(num_images), best], (best == labels).astype(float))

    return draw


def wrong_by(error: Callable[[np.ndarray], np.ndarray]) -> Callable[[int, np.random.Generator], Drawn]:
    """A classifier with confidences from 0.4 to 1 alike, whose accuracy is wrong by a function of them."""

    def draw(num_images: int, generator: np.random.Generator) -> Drawn:
        confidence = generator.uniform(0.4, 1, num_images)
        chance = confidence + error(confidence)
        return Drawn(confidence, chance, (generator.uniform(size=num_images) < chance).astype(float))

    return draw


CLASSIFIERS: Mapping[str, Callable[[int, np.random.Generator], Drawn]] = {
    "calibrated": softmax_classifier(skill=1.5, sharpness=1.0),
    "calibrated, of 97 % accuracy": softmax_classifier(skill=3.0, sharpness=1.0),
    "calibrated, confidences alike": wrong_by(lambda confidence: 0 * confidence),
    "too sure": softmax_classifier(skill=1.5, sharpness=1.5),
    "much too sure": softmax_classifier(skill=1.5, sharpness=4.0),
    "not sure enough": softmax_classifier(skill=1.5, sharpness=0.6),
    "a little too sure": wrong_by(lambda confidence: -0.03 + 0 * confidence),
    "up and down": wrong_by(lambda confidence: 0.08 * np.sin(4 * np.pi * confidence)),
}


def truth(draw: Callable[[int, np.random.Generator], Drawn]) -> float:
    """The calibration error of two million images, by how probable it is that each prediction is right."""
    found = draw(MANY, np.random.default_rng(1234))
    gaps = np.bincount(bins_of(found.confidence), found.chance - found.confidence, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / MANY)


def by_bootstrap(confidence: np.ndarray, correct: np.ndarray, *, seed: int = 0) -> Interval:
    """The interval of before, percentiles of resamples, which does not hold the truth."""
    found = with_intervals(
        lambda weights: {"ece": expected_calibration_error(confidence, correct, weights)}, len(correct), seed=seed
    )["ece"]
    return found.value, found.low, found.high


def intervals(
    name: str, num_images: int, num_classifiers: int, *, method: Callable[..., Interval] = calibration_error
) -> np.ndarray:
    """Value, low and high of so many classifiers of a kind (M, 3)."""
    generator = np.random.default_rng((num_images, list(CLASSIFIERS).index(name)))
    drawn = [CLASSIFIERS[name](num_images, generator) for _ in range(num_classifiers)]
    return np.array([method(each.confidence, each.correct, seed=k) for k, each in enumerate(drawn)])


def holds(found: np.ndarray, true: float) -> np.ndarray:
    """Which intervals hold the truth (M,)."""
    return (found[:, 1] <= true) & (true <= found[:, 2])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--classifiers", type=int, default=400)
    parser.add_argument("--only", choices=CLASSIFIERS, nargs="+", default=[*CLASSIFIERS])
    parser.add_argument("--images", type=int, nargs="+", default=[300, 1000, 3000])
    asked = parser.parse_args()
    print(f"{'classifier':<30} {'images':>6} {'truth':>7} {'value':>7} {'width':>7} {'covers':>7}", flush=True)
    for name in asked.only:
        true = truth(CLASSIFIERS[name])
        for num_images in asked.images:
            found = intervals(name, num_images, asked.classifiers)
            width, covered = (found[:, 2] - found[:, 1]).mean(), holds(found, true).mean()
            print(
                f"{name:<30} {num_images:>6} {true:7.4f} {found[:, 0].mean():7.4f} {width:7.4f} {covered:7.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
