"""The calibration error: its interval holds the truth, that of the bootstrap does not."""

import numpy as np
import pytest
from interval_coverage import CLASSIFIERS, by_bootstrap, holds, intervals, truth
from scipy import stats

from deeplense.evaluation import calibration
from deeplense.evaluation.calibration import calibration_error, expected_calibration_error, missed_from_above


@pytest.mark.parametrize(("name", "num_images"), [("calibrated", 300), ("too sure", 1000)])
def test_as_many_intervals_hold_the_truth_as_they_promise(
    name: str, num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "NUM_DRAWS", 200)
    covered = int(holds(intervals(name, num_images, 100), truth(CLASSIFIERS[name])).sum())
    assert stats.binomtest(covered, 100, 0.95).pvalue > 0.01


@pytest.mark.parametrize("num_images", [300, 1000])
def test_the_bootstrap_never_finds_a_calibrated_classifier_calibrated(num_images: int) -> None:
    assert not holds(intervals("calibrated", num_images, 10, method=by_bootstrap), 0.0).any()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_number_lies_in_its_interval_within_what_is_possible_and_the_seed_decides_it(name: str) -> None:
    for num_images in (1, 2, 40, 700):
        drawn = CLASSIFIERS[name](num_images, np.random.default_rng(num_images))
        found = calibration_error(drawn.confidence, drawn.correct)
        assert 0 <= found[1] <= found[0] <= found[2] <= 1
        assert found == calibration_error(drawn.confidence, drawn.correct)
    assert found != calibration_error(drawn.confidence, drawn.correct, seed=1)


def test_the_interval_of_a_seed_is_the_same_in_every_version() -> None:
    drawn = CLASSIFIERS["too sure"](2000, np.random.default_rng(7))
    found = calibration_error(drawn.confidence, drawn.correct, seed=3)
    assert found == pytest.approx((0.05220735811279281, 0.037640056307041404, 0.06916288784374262), abs=1e-4)


def test_an_error_that_may_be_none_is_missed_from_above_only() -> None:
    drawn = CLASSIFIERS["too sure"](300, np.random.default_rng(7))
    samples = calibration.Binned.of(drawn.confidence, drawn.correct, seed=3)
    assert samples.position(-1.0).missed_above == 0.05
    assert samples.position(0.5).missed_above == 0.025


def test_what_chance_adds_is_taken_off_of_a_calibrated_classifier_and_little_of_many_images() -> None:
    few = CLASSIFIERS["calibrated"](300, np.random.default_rng(5))
    many = CLASSIFIERS["too sure"](100_000, np.random.default_rng(5))
    (plain,) = expected_calibration_error(few.confidence, few.correct, np.ones((1, 300)))
    value, low, high = calibration_error(few.confidence, few.correct)
    assert low == 0 < high
    assert value < plain / 2
    value, low, high = calibration_error(many.confidence, many.correct)
    (plain,) = expected_calibration_error(many.confidence, many.correct, np.ones((1, 100_000)))
    assert value == pytest.approx(plain, rel=0.02)
    assert 0.004 < high - low < 0.008


@pytest.mark.parametrize(("confidence", "accuracy"), [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_certainty_is_not_believed_further_than_clopper_and_pearson_would(confidence: float, accuracy: float) -> None:
    value, low, high = calibration_error(np.full(50, confidence), np.full(50, accuracy))
    assert value == abs(confidence - accuracy)
    exact = stats.binomtest(50, 50).proportion_ci(0.95, method="exact")
    assert high - low == pytest.approx(1 - exact.low, abs=0.03)


def test_the_tails_are_those_of_feldman_and_cousins() -> None:
    """Their table X for 95 %: where 0 is seen of a normal distribution, its mean is at most 1.96; where 1, 2.96."""
    assert missed_from_above(0.0) == pytest.approx(0.05)
    assert [missed_from_above(mu) for mu in (1.96, 3.0)] == pytest.approx([0.025, 0.025], rel=1e-3)
    between = [missed_from_above(mu) for mu in np.linspace(0, 2, 41)]
    assert (np.diff(between) < 1e-9).all()
    # The upper limit is where the chance to see less is what the tail from above leaves.
    for seen, limit in ((0.0, 1.96), (1.0, 2.96), (-1.0, 1.10)):
        assert stats.norm.sf(limit - seen) == pytest.approx(0.05 - missed_from_above(limit), abs=0.002)
    # From 1.645 on a mean of 0 is too small.
    assert stats.norm.sf(1.645) == pytest.approx(missed_from_above(1e-6), rel=1e-3)
