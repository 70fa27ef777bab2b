"""Random choices: functions of their seed alone, and uniform."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare, kstest

from deeplense.data.order import num_steps, rank_slice
from deeplense.data.subsets import first_of_each, fold_of, some_of_each, split_off
from deeplense.random.draws import permutation, step_seed, uniforms

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
few = settings(deadline=None, max_examples=40, derandomize=True)
seeds = st.integers(0, 2**63)


def scramble(word: int) -> int:
    """The finaliser of splitmix64, in Python's integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def chained(*words: int) -> int:
    state = 0
    for word in words:
        state = scramble((state + GOLDEN) % WORD ^ word % WORD)
    return state


def order_by_integers(num_samples: int, seed: int, epoch: int) -> list[int]:
    start = chained(seed, 1, epoch)
    return sorted(range(num_samples), key=lambda i: scramble((i * GOLDEN + start) % WORD))


def test_splitmix_by_integers_is_the_published_generator() -> None:
    outputs = [scramble(1234567 + k * GOLDEN & WORD - 1) for k in range(1, 4)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@few
@given(num_samples=st.integers(1, 200), seed=seeds, epoch=st.integers(0, 10**6))
def test_the_order_is_that_of_an_implementation_in_integers(num_samples: int, seed: int, epoch: int) -> None:
    assert permutation(num_samples, seed, epoch).tolist() == order_by_integers(num_samples, seed, epoch)


def test_the_random_numbers_are_those_of_an_implementation_in_integers() -> None:
    seed, epoch, index = 7, 3, 11
    base = scramble(scramble((epoch * GOLDEN + chained(seed, 2)) % WORD) + index * GOLDEN & WORD - 1)
    expected = [(scramble((base + k * GOLDEN) % WORD) >> 11) * 2.0**-53 for k in (1, 2, 3)]
    assert uniforms(seed, np.array([epoch]), np.array([index]), count=3)[0].tolist() == expected


@few
@given(num_items=st.integers(0, 200), world_size=st.integers(1, 40))
def test_the_parts_of_the_ranks_make_the_whole(num_items: int, world_size: int) -> None:
    parts = [range(num_items)[rank_slice(num_items, rank, world_size)] for rank in range(world_size)]
    assert [item for part in parts for item in part] == list(range(num_items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_seeds_and_purposes_do_not_repeat_one_another() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (3, 1), (1, 3), (2**32, 0), (0, 2**32)]
    assert len({tuple(permutation(50, *pair)) for pair in pairs}) == len(pairs)
    first, second = (np.array(permutation(5000, *pair)) for pair in ((0, 1), (1, 0)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 5000**0.5
    triples = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1)]
    words = {step_seed(*triple) for triple in triples}
    assert len(words) == len(triples)
    assert all(0 <= word < 2**63 for word in words)


def places_are_uniform(order: Callable[[int], np.ndarray], num_samples: int = 10, num_epochs: int = 4000) -> bool:
    """Whether each sample comes at each place equally often, by a chi-square test of the whole table."""
    table = np.zeros((num_samples, num_samples))
    for epoch in range(num_epochs):
        table[order(epoch), np.arange(num_samples)] += 1
    expected = num_epochs / num_samples
    statistic = ((table - expected) ** 2 / expected).sum()
    return bool(chi2.sf(statistic, (num_samples - 1) ** 2) > 1e-3)


def slightly_sorted(epoch: int) -> np.ndarray:
    """A good order, spoilt: the first two samples of one epoch in ten come sorted."""
    order = np.random.default_rng(epoch).permutation(10)
    order[:2] = np.sort(order[:2]) if epoch % 10 == 0 else order[:2]
    return order


def test_every_sample_comes_at_every_place_equally_often() -> None:
    assert places_are_uniform(lambda epoch: permutation(10, 0, epoch))
    assert places_are_uniform(lambda epoch: permutation(10, epoch, 0))


def test_an_order_slightly_sorted_is_detected() -> None:
    assert not places_are_uniform(slightly_sorted, num_epochs=20000)


def test_random_numbers_are_uniform_and_uncorrelated() -> None:
    epochs, indices = (grid.ravel() for grid in np.meshgrid(np.arange(40), np.arange(100)))
    numbers = uniforms(0, epochs, indices, count=3)
    assert numbers.shape == (4000, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert kstest(numbers.ravel() ** 1.1, "uniform").pvalue < 1e-3
    bound = 4 / 4000**0.5
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert abs(np.corrcoef(numbers[:, first], numbers[:, second])[0, 1]) < bound
    cube = numbers.reshape(100, 40, 3)
    for shifted, kept in [(cube[1:], cube[:-1]), (cube[:, 1:], cube[:, :-1])]:
        assert abs(np.corrcoef(shifted.ravel(), kept.ravel())[0, 1]) < bound


def test_random_numbers_are_a_function_of_seed_epoch_and_index() -> None:
    epochs, indices = np.array([0, 0, 5, 2]), np.array([3, 0, 1, 3])
    together = uniforms(4, epochs, indices, count=3)
    np.testing.assert_array_equal(uniforms(4, epochs[::-1], indices[::-1], count=3)[::-1], together)
    np.testing.assert_array_equal(uniforms(4, epochs[2:3], indices[2:3], count=3)[0], together[2])
    np.testing.assert_array_equal(uniforms(4, epochs, indices, count=2), together[:, :2])
    others = [
        uniforms(seed, np.array([e]), np.array([i]), count=1)[0, 0] for seed, e, i in [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    ]
    assert len({*others, *together.ravel()}) == 15


@few
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_part_split_off_has_its_fraction_of_each_class(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    rest, part = split_off(labels, fraction, seed=seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    assert all((np.diff(each) > 0).all() for each in (rest, part))
    for label, count in enumerate(counts):
        share = round(fraction * count)
        if 0 < fraction < 1 and share in (0, count):
            # A class that rounding would take out of one part keeps one sample there; a single one stays in the first.
            share = 0 if count == 1 else min(max(share, 1), count - 1)
        assert (labels[part] == label).sum() == share


@few
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_where_rounding_leaves_some_of_each_class_a_part_is_what_it_was(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    _, part = split_off(labels, fraction, seed=seed)
    plain = some_of_each(labels, fraction, seed=seed)
    for label, count in enumerate(counts):
        if 0 < round(fraction * count) < count or fraction in (0, 1):
            assert part[labels[part] == label].tolist() == plain[labels[plain] == label].tolist()


@few
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), num_folds=st.integers(1, 7), seed=st.integers(0, 1000)
)
def test_folds_hold_each_class_evenly(counts: list[int], num_folds: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = fold_of(labels, num_folds, seed=seed)
    assert len(folds) == len(labels)
    assert set(folds) <= set(range(num_folds))
    for label in range(len(counts)):
        in_fold = np.bincount(folds[labels == label], minlength=num_folds)
        assert in_fold.max() - in_fold.min() <= 1


def test_splits_and_folds_are_drawn_by_the_seed() -> None:
    labels = np.arange(300) % 3
    assert split_off(labels, 0.3, seed=1)[1].tolist() == split_off(labels, 0.3, seed=1)[1].tolist()
    assert split_off(labels, 0.3, seed=1)[1].tolist() != split_off(labels, 0.3, seed=2)[1].tolist()
    assert fold_of(labels, 5, seed=1).tolist() != fold_of(labels, 5, seed=2).tolist()
    drawn = np.concatenate([split_off(labels, 0.3, seed=seed)[1] for seed in range(100)])
    assert chisquare(np.bincount(drawn, minlength=300)).pvalue > 1e-3


@few
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 1000), data=st.data())
def test_labels_are_nested_and_have_the_shares_of_their_classes(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    few_of_them, more = sorted(data.draw(st.tuples(*[st.integers(1, len(labels))] * 2)))
    chosen = {count: first_of_each(labels, count, seed=seed) for count in (few_of_them, more)}
    assert set(chosen[few_of_them]) <= set(chosen[more])
    for count, indices in chosen.items():
        assert len(set(indices.tolist())) == count == len(indices)
        assert (np.diff(indices) > 0).all()
        for label, of_label in enumerate(counts):
            # As near as it can be where fewer labels are among more: half a sample for one class and two.
            farthest = 0.5 * max(len(counts) - 1, 1)
            assert abs((labels[indices] == label).sum() - count * of_label / len(labels)) <= farthest + 1e-9


def test_each_seed_draws_other_labels_and_each_sample_is_drawn_equally_often() -> None:
    labels = np.arange(300) % 3
    assert first_of_each(labels, 30, seed=1).tolist() == first_of_each(labels, 30, seed=1).tolist()
    drawn = np.concatenate([first_of_each(labels, 30, seed=seed) for seed in range(300)])
    assert chisquare(np.bincount(drawn, minlength=300)).pvalue > 1e-3
    always = np.tile(first_of_each(labels, 30, seed=1), 300)
    assert chisquare(np.bincount(always, minlength=300)).pvalue < 1e-3, "the control: one seed, again and again"


@pytest.mark.parametrize(
    ("epochs", "num_samples", "batch_size", "expected"),
    [
        (1, 96, 16, 6),
        (1, 95, 16, 5),
        (0.5, 96, 16, 3),
        (2, 24, 16, 3),
        (0.01, 96, 16, 1),
        (1, 3, 16, 1),
        (0, 96, 16, 1),
    ],
)
def test_whole_batches_make_the_epochs_and_there_is_always_a_step(
    epochs: float, num_samples: int, batch_size: int, expected: int
) -> None:
    assert num_steps(epochs, num_samples=num_samples, batch_size=batch_size) == expected


@few
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=4), fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_which_samples_are_drawn_is_what_it_was_in_each_version(counts: list[int], fraction: float, seed: int) -> None:
    """The splits of runs that are finished rest on it: of class k the first of the permutation of (seed, k + 1)."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    expected = [
        np.flatnonzero(labels == k)[permutation(count, seed, k + 1)][: round(fraction * count)]
        for k, count in enumerate(counts)
    ]
    assert some_of_each(labels, fraction, seed=seed).tolist() == sorted(np.concatenate(expected).tolist())


def test_what_a_seed_draws_is_the_same_in_every_version() -> None:
    """Of runs that were begun before an update: numbers once drawn, as they were in 0.1."""
    labels = np.array([0, 1, 1, 2, 0, 1, 2, 2, 1, 0, 2, 1, 0, 0, 1])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9])
    assert permutation(8, 5, 2).tolist() == [6, 1, 4, 7, 5, 0, 2, 3]
    assert uniforms(5, np.array([2]), np.array([7]), count=1)[0, 0] == 0.7367623577748721
    assert step_seed(5, 2, 1) == 5005069832199932734
    assert some_of_each(labels, 0.5, seed=5).tolist() == [2, 7, 9, 10, 11, 12, 14]
    assert some_of_each(labels, 0.5, seed=5, groups=groups).tolist() == [2, 3, 4, 5, 10, 12, 13, 14]
    assert first_of_each(labels, 6, seed=5).tolist() == [2, 7, 9, 10, 11, 12]
    assert first_of_each(labels, 6, seed=5, groups=groups).tolist() == [2, 3, 9, 10, 11, 12]
    assert fold_of(labels, 3, seed=5).tolist() == [0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 0, 1, 1, 2, 2]
    assert fold_of(labels, 3, seed=5, groups=groups).tolist() == [2, 2, 2, 2, 1, 1, 2, 1, 1, 1, 0, 0, 0, 0, 0]
