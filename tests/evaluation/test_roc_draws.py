"""Draws of the ROC curve: what equal scores are, where the points are, and how curves are continued."""

import numpy as np
import pytest
from scipy import stats

from deeplense.evaluation.finding import LEAST_FOR_LOW, Ranked, rate_or_less, rates_at
from deeplense.evaluation.metrics import Estimate
from deeplense.evaluation.purity import area_under_purity, lenses_in_top, purity, purity_at
from deeplense.evaluation.roc_draws import (
    NUM_ABOVE,
    Curves,
    bent,
    chosen_values,
    draw_curves,
    lowest,
    stepped,
    thresholds,
)


def curve(false: list[float], true: list[float], *tied: int) -> Curves:
    """One curve; the parts with these numbers are of equal scores."""
    return Curves(np.array([false]), np.array([true]), np.isin(np.arange(len(false) - 1), tied))


def test_a_threshold_is_at_each_image_alone_and_around_images_with_equal_scores() -> None:
    others, own = [0.9, 0.7, 0.7, 0.5, 0.2], [0.95, 0.8, 0.7, 0.6, 0.1]
    scores, positive = np.array(others + own), np.arange(10) >= 5
    found = thresholds(scores, positive)
    # At 0.9; above 0.7 and below; at 0.5; at 0.2.
    assert found.places.tolist() == [1, 1.5, 3.5, 4, 5]
    assert found.above.tolist() == [1, 2, 3, 4, 4]
    assert found.tied.tolist() == [False, True, False, False, False]


def test_an_image_of_another_class_with_the_score_of_one_of_the_class_is_no_threshold() -> None:
    found = thresholds(np.array([0.5, 0.5]), np.array([False, True]))
    assert (found.places.tolist(), found.above.tolist(), found.tied.tolist()) == ([0.5, 1.5], [0, 1], [True, False])


def test_no_threshold_is_between_equal_scores() -> None:
    steps = stepped(curve([0, 0.1, 0.3, 1], [0, 0.5, 0.9, 1], 1))
    assert steps.false.tolist() == [[0, 0.1, 0.3, 0.3, 1]]
    assert steps.true.tolist() == [[0, 0.5, 0.5, 0.9, 1]]
    tied = curve([0, 0.1, 0.3, 1], [0, 0.5, 0.9, 1], 1)
    assert [rates_at(tied, rate)[0] for rate in (0.1, 0.2, 0.3)] == pytest.approx([0.5, 0.5, 0.9])
    assert rates_at(curve([0, 0.1, 0.3, 1], [0, 0.5, 0.9, 1]), 0.2)[0] == pytest.approx(0.7)


def test_a_threshold_that_selects_half_of_the_class_may_select_more_with_equal_scores() -> None:
    tied = curve([0, 0.1, 0.3, 1], [0, 0.4, 0.9, 1], 1)
    assert purity_at(tied, 0.5, 0.1)[0] == pytest.approx(purity(np.array(0.9), np.array(0.3), 0.1))
    straight = curve([0, 0.1, 0.3, 1], [0, 0.4, 0.9, 1])
    assert purity_at(straight, 0.5, 0.1)[0] == pytest.approx(purity(np.array(0.5), np.array(0.14), 0.1))


def test_the_average_precision_of_equal_scores_is_the_purity_of_all_of_them() -> None:
    tied = curve([0, 0.2, 1], [0, 0.6, 1], 0, 1)
    exact = 0.6 * purity(np.array(0.6), np.array(0.2), 0.1) + 0.4 * 0.1
    assert area_under_purity(tied, 0.1)[0] == pytest.approx(exact)
    assert area_under_purity(curve([0, 0.2, 1], [0, 0.6, 1]), 0.1)[0] > exact + 0.005


def test_equal_scores_are_taken_in_random_order_into_the_top() -> None:
    # Half of all objects have the best score, among them 0.6 of the class: of the best quarter, as many are.
    tied = curve([0, 0.4, 1], [0, 0.6, 1], 0)
    assert lenses_in_top(tied, 25, 100, 0.5)[0] == pytest.approx(15)


def test_points_between_two_images_are_those_of_a_power() -> None:
    false, true = np.array([[0.01, 0.04, 0.2]]), np.array([[0.3, 0.6, 0.9]])
    x, y = bent(false, 1)[0], bent(true, 1)[0]
    assert (len(x), x[-2:].tolist(), y[-2:].tolist()) == (6, [0.04, 0.2], [0.6, 0.9])
    # 0.3 at 0.01 and 0.6 at 0.04: an exponent of one half.
    assert y[:5] == pytest.approx(0.3 * (x[:5] / 0.01) ** 0.5)
    assert bent(np.array([[0.0, 0.5]]), 1)[0][1] < 1e-4
    assert bent(false, 0).tolist() == false.tolist()


def test_the_values_with_a_point_are_the_highest_forty_and_sixty_further_ones() -> None:
    values = chosen_values(np.arange(20_000.0))
    assert values[:40].tolist() == list(range(40))
    assert values[-1] == 19_999
    assert 80 < len(values) <= 100
    assert chosen_values(np.zeros(50)).tolist() == [0]
    assert chosen_values(np.arange(7.0)).tolist() == list(range(7))


def test_the_fractions_above_a_threshold_have_the_distributions_that_are_stated() -> None:
    others, own = np.arange(100.0), np.array([120.0, 110, 98.5, 60.5, 10.5])
    scores, positive = np.r_[others, own], np.arange(105) >= 100
    draws = draw_curves(scores, positive, num_draws=20_000)
    count = np.flatnonzero(np.isclose(draws.true.mean(axis=0), 3 / 6, atol=0.09))
    first = NUM_ABOVE + 1
    assert draws.false[:, first].mean() == pytest.approx(1 / 101, rel=0.03)
    assert np.quantile(draws.false[:, first], 0.9) == pytest.approx(stats.beta.ppf(0.9, 1, 100), rel=0.05)
    # Above the highest other image, 99, are two of five: the mean of beta distributions of 2 or 3 of 5.
    assert draws.true[:, first].mean() == pytest.approx(2.5 / 6, abs=0.01)
    assert len(count)
    whole = draw_curves(scores, positive, num_draws=20_000, halves=False)
    assert whole.true[:, first].mean() == pytest.approx(2 / 5, abs=0.01)
    # The lowest image of the class is above 10 others: without halves, all of the class is.
    assert (whole.true[:, -2] == 1).all()
    assert draws.true[:, -2].mean() == pytest.approx(1 - 0.5 / 6, abs=0.01)


def test_curves_only_rise_from_0_to_1() -> None:
    random = np.random.default_rng(0)
    for digits in (0, 1, 6):
        positive = random.random(300) < 0.3
        scores = np.round(random.normal(size=300) + 2 * positive, digits)
        for draws in (
            draw_curves(scores, positive, num_draws=50),
            stepped(draw_curves(scores, positive, num_draws=50)),
        ):
            for values in (draws.false, draws.true):
                assert (np.diff(values, axis=1) >= -1e-12).all()
                assert (values[:, 0] == 0).all()
                assert values[:, -1] == pytest.approx(1)


def test_the_lowest_curves_find_nothing_above_the_highest_other_image() -> None:
    positive = np.arange(220) >= 200
    scores = np.random.default_rng(0).normal(size=220) + 3 * positive
    draws = draw_curves(scores, positive, num_draws=30)
    low = lowest(draws)
    assert (low.true <= draws.true).all()
    assert (low.true[:, NUM_ABOVE] == 0).all()
    assert low.true[:, NUM_ABOVE + 1] == pytest.approx(draws.true[:, NUM_ABOVE + 1])
    assert low.false[:, NUM_ABOVE] == pytest.approx(draws.false[:, NUM_ABOVE + 1])


def test_below_three_expected_false_positives_nothing_is_said_of_the_lowest_rate() -> None:
    positive = np.arange(1100) >= 1000
    ranked = Ranked(np.random.default_rng(0).normal(size=1100) + 2.5 * positive, positive)
    few, enough = (rate_or_less(ranked, expected / 1000) for expected in (LEAST_FOR_LOW - 0.1, LEAST_FOR_LOW))
    assert few.low == 0 < enough.low
    assert isinstance(few, Estimate)
    # It is the one-sided bound of 95 %.
    assert few.high == pytest.approx(np.quantile(rates_at(ranked.draws, 0.0029), 0.95))
    assert few.value < few.high
