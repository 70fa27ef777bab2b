"""Groups: what belongs together is on one side of every split, whatever the seed; and that is not so without them."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.groups import groups_of_values, groups_on_sky, united
from deeplense.data.subsets import first_of_each, fold_of, several, some_of_each, split_off
from deeplense.random.draws import GROUPS, uniforms

few = settings(deadline=None, max_examples=40, derandomize=True)
SECOND = 1 / 3600


def as_sets(groups: np.ndarray) -> set[frozenset[int]]:
    """Groups as sets of samples."""
    return {frozenset(np.flatnonzero(groups == number).tolist()) for number in np.unique(groups)}


def by_hand(ra: np.ndarray, dec: np.ndarray, radius: float) -> set[frozenset[int]]:
    """Friends of friends by all pairs of angles (haversine, another formula)."""
    a, d = np.radians(ra), np.radians(dec)
    half = np.sin((d[:, None] - d) / 2) ** 2 + np.cos(d[:, None]) * np.cos(d) * np.sin((a[:, None] - a) / 2) ** 2
    near = 2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))) <= np.radians(radius * SECOND)
    for _ in range(len(ra)):
        near = near @ near
    return {frozenset(np.flatnonzero(row).tolist()) for row in near}


@few
@given(
    pole=st.sampled_from([0.0, 45.0, 89.9995, -89.9995, 90.0]),
    around=st.sampled_from([0.0, 180.0, 359.9995]),
    radius=st.floats(0.5, 20),
    seed=st.integers(0, 1000),
)
def test_friends_of_friends_are_found_everywhere_on_the_sphere(
    pole: float, around: float, radius: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    dec = np.clip(pole + generator.normal(0, 15 * SECOND, 25), -90, 90)
    spread = 360 if abs(pole) > 89 else 30 * SECOND
    ra = (around + generator.uniform(-spread, spread, 25)) % 360
    assert as_sets(groups_on_sky(ra, dec, radius)) == by_hand(ra, dec, radius)


def test_ra_0_and_360_are_the_same_place_and_at_a_pole_ra_says_nothing() -> None:
    assert len(as_sets(groups_on_sky(np.array([359.9999, 0.0001, 360.0, 0.0]), np.zeros(4), 1.0))) == 1
    assert len(as_sets(groups_on_sky(np.array([0.0, 90.0, 180.0]), np.full(3, 90.0), 0.1))) == 1
    assert len(as_sets(groups_on_sky(np.array([0.0, 90.0, 180.0]), np.zeros(3), 10.0))) == 3


def test_a_chain_of_neighbours_is_one_group_up_to_the_first_gap() -> None:
    ra = np.array([0, 1, 2, 3, 4.2, 5]) * SECOND
    assert as_sets(groups_on_sky(ra, np.zeros(6), 1.0)) == {frozenset({0, 1, 2, 3}), frozenset({4, 5})}


def test_groups_by_value_and_by_place_are_joined_where_they_touch() -> None:
    values = groups_of_values(["a", "b", "a", "c", "d"])
    places = np.array([0, 1, 2, 1, 3])
    assert as_sets(united([values, places])) == {frozenset({0, 2}), frozenset({1, 3}), frozenset({4})}
    assert as_sets(united([values])) == as_sets(values)


def made_up(seed: int, *, most: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three unequal classes, in groups of one to some samples, mostly but not always of one class."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, most + 1, size=120)
    groups = np.repeat(np.arange(120), sizes)
    labels = np.repeat(generator.choice(3, size=120, p=[0.6, 0.3, 0.1]), sizes)
    labels = np.where(generator.uniform(size=len(labels)) < 0.1, 0, labels)
    order = generator.permutation(len(labels))
    return labels[order], groups[order] * 7 - 3


def part_of_split(labels: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """The part of each sample (n,)."""
    parts = np.zeros(len(labels))
    parts[split_off(labels, 0.25, seed=seed, groups=groups)[1]] = 1
    return parts


def part_of_share(labels: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """The part of each sample (n,)."""
    parts = np.zeros(len(labels))
    parts[some_of_each(labels, 0.6, seed=seed, groups=groups)] = 1
    return parts


def part_of_folds(labels: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """The part of each sample (n,)."""
    return fold_of(labels, 5, seed=seed, groups=groups)


def cut(parts: np.ndarray, groups: np.ndarray) -> int:
    """How many groups are in several parts."""
    return sum(len(np.unique(parts[groups == number])) > 1 for number in np.unique(groups))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("divide", [part_of_split, part_of_share, part_of_folds])
def test_no_group_is_in_two_parts_and_without_groups_many_are(divide: Callable[..., np.ndarray], seed: int) -> None:
    labels, groups = made_up(seed)
    assert cut(divide(labels, seed, groups), groups) == 0
    assert cut(divide(labels, seed, None), groups) > 30, "the control"


@pytest.mark.parametrize("seed", range(12))
def test_parts_and_folds_are_as_even_as_groups_allow(seed: int) -> None:
    labels, groups = made_up(seed)
    second = split_off(labels, 0.25, seed=seed, groups=groups)[1]
    folds = fold_of(labels, 5, seed=seed, groups=groups)
    for label in range(3):
        count = int((labels == label).sum())
        assert abs(int((labels[second] == label).sum()) - count / 4) <= 6
        in_fold = np.bincount(folds[labels == label], minlength=5)
        assert in_fold.max() - in_fold.min() <= 8
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 8


@few
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=3), seed=st.integers(0, 99), fraction=st.floats(0, 1))
def test_groups_of_one_change_nothing(counts: list[int], seed: int, fraction: float) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    alone = np.random.default_rng(seed + 1).permutation(len(labels)) * 3
    for groups in (alone, None):
        assert (
            split_off(labels, fraction, seed=seed, groups=groups)[1].tolist()
            == split_off(labels, fraction, seed=seed)[1].tolist()
        )
        assert fold_of(labels, 4, seed=seed, groups=groups).tolist() == fold_of(labels, 4, seed=seed).tolist()
        count = len(labels) // 2
        assert (
            first_of_each(labels, count, seed=seed, groups=groups).tolist()
            == first_of_each(labels, count, seed=seed).tolist()
        )


@pytest.mark.parametrize("seed", range(6))
def test_known_labels_are_as_many_as_asked_for_nested_and_cut_one_group_at_most(seed: int) -> None:
    labels, groups = made_up(seed)
    earlier: set[int] = set()
    for count in (10, 50, 200):
        chosen = first_of_each(labels, count, seed=seed, groups=groups)
        parts = np.isin(np.arange(len(labels)), chosen)
        assert len(chosen) == count
        assert cut(parts, groups) <= 1
        assert earlier <= set(chosen.tolist())
        earlier = set(chosen.tolist())


def test_each_class_is_in_both_parts_where_its_groups_allow_that() -> None:
    labels = np.array([0] * 40 + [1] * 20)
    groups = np.array([*range(40), *([100] * 10), *([101] * 10)])
    for seed in range(10):
        rest, part = split_off(labels, 0.1, seed=seed, groups=groups)
        assert set(labels[rest]) == set(labels[part]) == {0, 1}


def test_the_seed_draws_the_groups_and_each_is_drawn_about_equally_often() -> None:
    labels, groups = np.arange(200) % 2, np.arange(200) // 4
    drawn = np.array(
        [
            np.bincount(groups[split_off(labels, 0.2, seed=seed, groups=groups)[1]], minlength=50) > 0
            for seed in range(300)
        ]
    )
    assert (drawn.sum(axis=1) == 10).all()
    assert drawn.sum(axis=0).min() > 30
    assert drawn.sum(axis=0).max() < 95


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7])
def test_groups_are_drawn_one_by_one_with_the_fraction_before_others_fill_up(fraction: float) -> None:
    labels, groups = np.zeros(300, dtype=int), np.arange(300) // 3
    for seed in range(10):
        chosen = np.isin(np.arange(300), some_of_each(labels, fraction, seed=seed, groups=groups))
        together = several(groups, np.zeros(300, dtype=bool), seed)
        drawn = uniforms(seed, np.full(100, GROUPS), np.arange(100), count=1)[:, 0] < fraction
        taken = np.array([chosen[members].all() for members in together])
        assert taken.sum() == round(100 * fraction)
        assert (taken <= drawn).all() or (drawn <= taken).all()


def test_of_a_fraction_of_none_no_group_is_taken() -> None:
    labels, groups = made_up(0)
    assert len(some_of_each(labels, 0.0, seed=0, groups=groups)) == 0
    rest, part = split_off(labels, 0.0, seed=0, groups=groups)
    assert (len(rest), len(part)) == (len(labels), 0)
