"""How well people agree: published values, scikit-learn, and what must hold for any grades."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from deeplense.candidates.agreement import cohen_kappa, krippendorff_alpha

PUBLISHED = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Four observers, twelve units: the example of Krippendorff (2011), section E; its alpha for ordinal data is 0.815."""


def table(text: str) -> np.ndarray:
    """Grades (N, R) of a text with a line per person."""
    return np.array(
        [[-1 if sign == "." else int(sign) - 1 for sign in line.split()] for line in text.split("\n") if line]
    ).T


def test_alpha_is_the_published_one() -> None:
    assert krippendorff_alpha(table(PUBLISHED), 5).value == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_two_people_by_hand() -> None:
    # Coincidences: AA 2, AB 1, BA 1, BB 2; both distances are equal: 1 - (6 - 1) * 2 / (2 * 3 * 3).
    assert krippendorff_alpha(np.array([[0, 0], [0, 1], [1, 1]]), 2).value == pytest.approx(1 - 5 * 2 / 18)


def drawn(count: int, people: int, noise: float, seed: int) -> np.ndarray:
    """Grades of people who see a common truth through noise, (count, people)."""
    random = np.random.default_rng(seed)
    seen = random.normal(size=(count, 1)) + noise * random.normal(size=(count, people))
    return np.digitize(seen, [-0.7, 0.0, 0.7])


def test_random_grades_have_an_alpha_about_zero_and_equal_ones_of_one() -> None:
    random = np.random.default_rng(0).integers(0, 4, size=(2000, 3))
    found = krippendorff_alpha(random, 4)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.15
    same = krippendorff_alpha(np.repeat(random[:, :1], 3, axis=1), 4)
    assert (same.value, np.isnan(same.low)) == (1.0, True)


def test_alpha_falls_with_the_noise_and_depends_neither_on_the_order_of_people_nor_on_images_of_one() -> None:
    values = [krippendorff_alpha(drawn(300, 3, noise, 1), 4).value for noise in (0.1, 0.5, 1.0, 3.0)]
    assert values == sorted(values, reverse=True)
    grades = drawn(200, 3, 0.5, 2)
    alone = np.concatenate([grades, np.tile([0, -1, -1], (50, 1))])
    assert krippendorff_alpha(alone, 4) == krippendorff_alpha(grades, 4)
    turned = krippendorff_alpha(grades[:, ::-1], 4)
    assert turned.value == pytest.approx(krippendorff_alpha(grades, 4).value)


def test_the_interval_contains_the_value_of_many_images_in_nineteen_of_twenty_cases() -> None:
    truth = krippendorff_alpha(drawn(200_000, 3, 0.6, 9), 4).value
    found = [krippendorff_alpha(drawn(80, 3, 0.6, seed), 4) for seed in range(200)]
    inside = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.89 <= inside <= 0.985


@pytest.mark.parametrize("grades", [[[0, -1], [-1, 1]], [[2, 2], [2, 2]], np.zeros((0, 2))])
def test_alpha_is_undefined_without_pairs_or_without_a_difference(grades: object) -> None:
    assert np.isnan(krippendorff_alpha(np.array(grades, dtype=int).reshape(-1, 2), 4).value)


def test_kappa_is_that_of_scikit_learn_on_the_common_images() -> None:
    grades = drawn(150, 2, 0.5, 3)
    grades[:30, 0] = grades[120:, 1] = -1
    common = grades[30:120]
    right = cohen_kappa_score(common[:, 0], common[:, 1])
    assert cohen_kappa(grades[:, 0], grades[:, 1], 4) == pytest.approx(right, abs=1e-12)


def test_kappa_is_undefined_without_a_common_image_or_with_one_grade() -> None:
    assert np.isnan(cohen_kappa(np.array([0, -1]), np.array([-1, 1]), 2))
    assert np.isnan(cohen_kappa(np.array([1, 1]), np.array([1, 1]), 2))
