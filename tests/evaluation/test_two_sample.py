"""Tests of two samples: right as often as they promise where nothing differs, and aware of what does."""

from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from deeplense.evaluation.two_sample import (
    Verdict,
    corrected,
    kolmogorov_smirnov,
    permutation,
    standardised_difference,
)

LABELS = [f"number {k}" for k in range(6)]


def verdict(p_value: float) -> Verdict:
    return Verdict("test", p_value, 0.0, "ks", "", p_value)


def heavy_tails(generator: np.random.Generator, count: int, *, shift: float = 0.0) -> np.ndarray:
    """Six numbers of each image, correlated, with tails that no normal distribution has."""
    common = generator.standard_t(3, size=(count, 1))
    return common + generator.standard_t(3, size=(count, 6)) + shift * (np.arange(6) == 4)


def false_alarms(p_values: list[float], level: float) -> bool:
    """Whether as many of the p-values are below a level as should be: a two-sided binomial test at 1 in 1000."""
    below = sum(p <= level for p in p_values)
    return bool(stats.binomtest(below, len(p_values), level).pvalue > 1e-3)


def test_false_alarms_of_a_permutation_are_as_many_as_promised_and_of_dependent_images_more() -> None:
    p_values, doubled = [], []
    for seed in range(200):
        first, second = (heavy_tails(np.random.default_rng((seed, side)), 30) for side in (0, 1))
        arguments = {"labels": LABELS, "seed": seed, "num_permutations": 99}
        p_values.append(permutation("t", first, second, **arguments).p_value)
        doubled.append(permutation("t", np.tile(first, (3, 1)), np.tile(second, (3, 1)), **arguments).p_value)
    for level in (0.05, 0.2, 0.5):
        assert false_alarms(p_values, level), level
    assert not false_alarms(doubled, 0.05)


def test_false_alarms_of_kolmogorov_and_smirnov_are_no_more_than_promised() -> None:
    draws = [heavy_tails(np.random.default_rng(seed), 120) for seed in range(200)]
    p_values = [kolmogorov_smirnov("t", d[:60], d[60:], unit="").p_value for d in draws]
    assert sum(p <= 0.05 for p in p_values) <= stats.binom.ppf(0.999, 200, 0.05)
    one = [kolmogorov_smirnov("t", d[:60, :1], d[60:, :1], unit="").p_value for d in draws]
    assert false_alarms(one, 0.2)


def test_a_permutation_finds_the_number_that_differs_and_says_which() -> None:
    first, second = (heavy_tails(np.random.default_rng(side), 150, shift=shift) for side, shift in ((0, 1.5), (1, 0.0)))
    found = permutation("moments", first, second, labels=LABELS, seed=0, num_permutations=999)
    assert found.p_value == 1 / 1000
    assert found.effect == pytest.approx(standardised_difference(first[:, 4], second[:, 4]))
    assert found.effect > 0.5
    assert found.detail.startswith("number 4: ")
    other_side = permutation("moments", second, first, labels=LABELS, seed=0, num_permutations=999)
    assert other_side.effect == -found.effect


def test_a_permutation_of_few_images_is_that_of_all_their_arrangements() -> None:
    first, second = np.array([[0.0], [1.0], [2.0]]), np.array([[3.0], [4.0], [5.5]])
    exact = stats.permutation_test(
        (first[:, 0], second[:, 0]), lambda a, b: abs(a.mean() - b.mean()), alternative="greater"
    ).pvalue
    found = permutation("t", first, second, labels=["x"], seed=0, num_permutations=20_000)
    assert found.p_value == pytest.approx(exact, abs=4 * float(np.sqrt(exact / 20_000)))


def test_numbers_that_never_vary_differ_in_nothing_and_one_that_differs_always_is_infinitely_different() -> None:
    same = permutation("t", np.ones((20, 2)), np.ones((30, 2)), labels=["a", "b"], seed=0, num_permutations=99)
    assert (same.p_value, same.effect) == (1.0, 0.0)
    other = permutation("t", np.ones((20, 1)), np.zeros((30, 1)), labels=["a"], seed=0, num_permutations=99)
    assert (other.p_value, other.effect) == (0.01, np.inf)


def test_kolmogorov_and_smirnov_name_the_band_that_differs() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 100, 3))
    first[:, 2] += 2
    found = kolmogorov_smirnov("peak", first, second, unit="counts")
    expected = cast(Any, stats.ks_2samp(first[:, 2], second[:, 2]))
    assert found.detail.startswith("band 2: ")
    assert "counts" in found.detail
    assert found.p_value == pytest.approx(3 * expected.pvalue)
    assert found.effect == pytest.approx(expected.statistic)


def test_corrections_are_those_of_holm_in_any_order() -> None:
    # By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and the last, 1 x 0.04, no less than the one before it.
    given = [0.01, 0.04, 0.03, 0.005]
    assert [v.corrected for v in corrected([verdict(p) for p in given])] == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_correction_lowers_no_p_value_keeps_their_order_and_stays_below_one() -> None:
    p_values = np.random.default_rng(0).uniform(size=40) ** 3
    whole = np.array([v.corrected for v in corrected([verdict(p) for p in p_values])])
    assert (whole >= p_values).all()
    assert (whole <= 1).all()
    assert (np.diff(whole[np.argsort(p_values)]) >= 0).all()
    assert whole.min() == pytest.approx(40 * p_values.min())


def test_one_of_many_tests_fails_by_accident_no_more_often_than_the_level() -> None:
    generator = np.random.default_rng(0)
    alarms, plain = 0, 0
    for p_values in generator.uniform(size=(400, 6)):
        alarms += min(v.corrected for v in corrected([verdict(p) for p in p_values])) < 0.05
        plain += p_values.min() < 0.05
    assert stats.binomtest(alarms, 400, 0.05).pvalue > 1e-3
    assert stats.binomtest(plain, 400, 0.05).pvalue < 1e-6
