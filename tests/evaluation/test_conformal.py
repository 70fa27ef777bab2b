"""Conformal sets: the coverage that is stated, for each class, also where classes are rarer."""

import numpy as np
import pytest
from scipy.special import softmax

from deeplense.evaluation.conformal import sets, thresholds


def classifier(fractions: tuple[float, ...], number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 3) of an overconfident classifier, and labels (N,)."""
    labels = rng.choice(3, size=number, p=fractions)
    return softmax(5 * (rng.normal(size=(number, 3)) + 1.5 * np.eye(3)[labels]), axis=1), labels


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_sets_contain_the_true_class_as_often_as_stated_whatever_the_class_fractions(coverage: float) -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        given, labels = classifier((0.4, 0.3, 0.3), 150, rng)
        least = thresholds(given, labels, coverage)
        asked, truth = classifier((0.9, 0.08, 0.02), 400, rng)
        found = sets(asked, least)[np.arange(400), truth]
        inside.append([found[truth == k].mean() if (truth == k).any() else np.nan for k in range(3)])
    reached = np.nanmean(inside, axis=0)
    assert (reached > coverage - 0.01).all()
    # With some 50 validation images of a class it is at most 1/51 more.
    assert (reached < coverage + 0.035).all()


def test_a_threshold_is_the_quantile_of_the_rank_of_vovk() -> None:
    given = np.stack([np.arange(1, 20) / 20, 1 - np.arange(1, 20) / 20], axis=1)
    # Of 19 images and a coverage of 0.9, the set must have the 18 of the highest probability.
    assert thresholds(given, np.zeros(19, dtype=int), 0.9).tolist() == [2 / 20, 0.0]
    assert thresholds(given[:8], np.zeros(8, dtype=int), 0.9).tolist() == [0.0, 0.0]


def test_a_coverage_out_of_range_is_refused() -> None:
    for coverage in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            thresholds(np.ones((1, 2)), np.zeros(1, dtype=int), coverage)
