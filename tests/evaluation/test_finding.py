"""True positive rates at low false positive rates: the values agree with scikit-learn and with published ones, and the
intervals contain the truth about as often as they say."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

from deeplense.evaluation.finding import draw_rates, finding_report, rate_with_interval, true_positive_rate


@pytest.mark.parametrize("seed", range(20))
def test_the_rate_is_the_highest_that_scikit_learn_finds_with_so_few_false_positives(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(200) < 0.4
    # Half of them with many ties.
    scores = np.round(random.normal(size=200) + positive, 1 if seed % 2 else 8)
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    for rate in (0.0, 0.004, 0.01, 0.1, 0.5):
        assert true_positive_rate(scores, positive, rate) == pytest.approx(true[false <= rate].max())


def test_the_numbers_of_a_published_table_of_scores_come_out(public_data: Path) -> None:
    rows = list(csv.DictReader((public_data / "lens_scores" / "scores.csv").read_text().splitlines()))
    positive = np.array([row["is_lens"] == "1" for row in rows])
    scores = np.array([float(row["probs"]) for row in rows])
    negatives = (~positive).sum()
    found = [true_positive_rate(scores, positive, rate) for rate in (0.01, 0.001, 0.0, 10 / negatives)]
    assert found == pytest.approx([0.5796, 0.3632, 0.0, 0.4819], abs=5e-5)


def coverage(num: int, num_positive: int, shift: float, rate: float, *, of: float, num_trials: int) -> float:
    """How often the interval at a rate contains the true positive rate at the rate `of`; scores are normal."""
    random = np.random.default_rng(0)
    truth = stats.norm.sf(stats.norm.isf(of) - shift)
    positive = np.arange(num + num_positive) >= num
    hits = 0
    for trial in range(num_trials):
        scores = random.normal(size=len(positive)) + shift * positive
        low, high = np.quantile(draw_rates(scores, positive, rate, num_draws=800, seed=trial), [0.025, 0.975])
        hits += low <= truth <= high
    return hits / num_trials


CASES = [(1000, 100, 1.5, 0.01), (1000, 100, 3.0, 0.01), (3000, 300, 2.0, 0.001), (300, 100, 2.0, 0.01)]
CASES += [(2000, 300, 2.0, 0.001), (10000, 300, 2.5, 0.001)]
"""Numbers of images of other classes and of the class, distance of the two, rate: 2 to 10 expected false positives."""


@pytest.mark.parametrize("case", CASES)
def test_an_interval_contains_the_truth_as_often_as_it_says(case: tuple[int, int, float, float]) -> None:
    assert 0.92 <= coverage(*case, of=case[3], num_trials=200) <= 0.995


def test_an_interval_at_another_rate_does_not() -> None:
    assert coverage(1000, 300, 1.5, 0.01, of=0.05, num_trials=50) < 0.2


def test_a_rate_that_few_images_cannot_tell_is_not_given() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 60])
    probabilities = random.dirichlet([1, 1], size=360)
    report = finding_report(probabilities, labels, ["other", "lens"])
    assert set(report["lens"]["tpr_at_fpr_0.01"]) == {"value", "low", "high"}
    assert report["lens"]["tpr_at_fpr_0.001"] == {"undefined": "needs 2,000 images of other classes, has 300"}
    assert report["other"]["tpr_at_fpr_0.01"] == {"undefined": "needs 200 images of other classes, has 60"}
    assert rate_with_interval(probabilities[:, 0], labels == 5, 0.01) == "no image of the class"


def test_the_value_lies_in_its_interval_and_the_seed_repeats_it() -> None:
    random = np.random.default_rng(1)
    positive = np.arange(1000) < 100
    scores = random.normal(size=1000) + 2 * positive
    first, again = (rate_with_interval(scores, positive, 0.01) for _ in range(2))
    assert first == again
    assert not isinstance(first, str)
    assert first.low < first.value < first.high


def test_a_class_that_is_always_above_all_others_is_found_at_every_rate() -> None:
    positive = np.arange(3000) < 50
    found = rate_with_interval(positive + np.random.default_rng(2).random(3000) / 2, positive, 0.01)
    assert not isinstance(found, str)
    assert found.value == 1
    assert found.low > 0.9
