"""The batches of a training: each sample once an epoch, a function of (seed, step), as well mixed as asked for."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from deeplense.data import order
from deeplense.data.order import (
    LANES,
    ROUND,
    Order,
    Shuffle,
    Stream,
    deal_all,
    epoch_order,
    share_of,
    shares,
    variance_inflation,
)
from deeplense.random.draws import GOLDEN, ORDER, WINDOW, key, mix, shuffled

few = settings(deadline=None, max_examples=40, derandomize=True)
seeds = st.integers(0, 2**63)
shuffles = st.builds(Shuffle, block=st.sampled_from([1, 2, 7, 64]), window=st.integers(1, 12))


def taken(order: Order, steps: range) -> tuple[np.ndarray, np.ndarray]:
    """The batches of some steps, one after the other."""
    parts = [order.batch(step) for step in steps]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@few
@given(
    num_samples=st.integers(1, 300),
    batch_size=st.integers(1, 90),
    seed=seeds,
    first_epoch=st.integers(0, 5),
    shuffle=shuffles,
)
def test_each_epoch_holds_every_sample_once(
    num_samples: int, batch_size: int, seed: int, first_epoch: int, shuffle: Shuffle
) -> None:
    chosen = np.arange(num_samples) * 3 + 1
    order = Order([chosen], batch_size=batch_size, seed=seed, shuffle=shuffle)
    start = first_epoch * num_samples // batch_size
    end = -(-(first_epoch + 2) * num_samples // batch_size)
    indices, epochs = taken(order, range(start, end))
    assert (np.diff(epochs) >= 0).all()
    for epoch in (first_epoch, first_epoch + 1):
        assert sorted(indices[epochs == epoch]) == chosen.tolist()


@few
@given(num_samples=st.integers(1, 60), seed=seeds, step=st.integers(0, 50), factor=st.integers(1, 6), shuffle=shuffles)
def test_a_larger_batch_is_several_smaller_ones(
    num_samples: int, seed: int, step: int, factor: int, shuffle: Shuffle
) -> None:
    samples = [np.arange(num_samples)]
    large = Order(samples, batch_size=5 * factor, seed=seed, shuffle=shuffle).batch(step)
    small = taken(Order(samples, batch_size=5, seed=seed, shuffle=shuffle), range(step * factor, (step + 1) * factor))
    for one, other in zip(large, small, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weights", [(), (2, 1)])
def test_a_batch_does_not_depend_on_what_was_asked_before(weights: tuple[float, ...]) -> None:
    def new() -> Order:
        return Order([np.arange(15), np.arange(15, 23)], batch_size=8, seed=1, weights=weights, shuffle=Shuffle(2, 3))

    order = new()
    forwards = [order.batch(step)[0].tolist() for step in range(12)]
    assert [order.batch(step)[0].tolist() for step in reversed(range(12))] == forwards[::-1]
    assert new().batch(11)[0].tolist() == forwards[11]
    assert len(order.streams[0].recent) <= 3


def test_only_the_orders_of_an_epoch_and_its_neighbours_are_kept() -> None:
    stream = Stream(5, 0, Shuffle())
    for epoch, kept in [(0, {0}), (1, {0, 1}), (2, {1, 2}), (6, {6}), (5, {5, 6}), (7, {6, 7}), (9, {9})]:
        order = stream.order(epoch).tolist()
        assert set(stream.recent) == kept
        assert order == stream.order(epoch).tolist() == Stream(5, 0, Shuffle()).order(epoch).tolist()


def test_the_batches_of_a_seed_are_the_same_in_every_version() -> None:
    in_blocks = Order([np.arange(40)], batch_size=8, seed=5, shuffle=Shuffle(4, 2))
    assert in_blocks.batch(3)[0].tolist() == [39, 8, 13, 2, 27, 16, 33, 22]
    weighted = Order([np.arange(9), np.arange(9, 12)], batch_size=8, seed=5, weights=(2, 1))
    assert weighted.batch(3)[0].tolist() == [8, 3, 6, 7, 1, 0, 2, 5]


def test_seeds_epochs_and_groups_have_orders_of_their_own() -> None:
    words = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1)]
    orders = [epoch_order(50, *each, shuffle=Shuffle(block)) for each in words for block in (1, 5)]
    assert len({tuple(order) for order in orders}) == len(orders)


@few
@given(num_samples=st.integers(1, 2000), block=st.integers(2, 80), window=st.integers(1, 40), seed=seeds)
def test_blocks_are_read_whole_within_a_window_of_their_lane(
    num_samples: int, block: int, window: int, seed: int
) -> None:
    order = epoch_order(num_samples, seed, shuffle=Shuffle(block, window))
    lanes = [order[lane::LANES] for lane in range(LANES)] if num_samples % LANES == 0 else [order]
    rows = max(block * window // LANES, 1) if len(lanes) == LANES else num_samples
    for lane in lanes:
        for start in range(0, len(lane), rows):
            # So many samples can touch no more blocks than they fill, and one more at each end of each piece.
            touched = len(set((lane[start : start + rows] // block).tolist()))
            assert touched <= math.ceil(rows / block) + 2 + (num_samples % block > 0)


def inflation(shuffle: Shuffle, labels: np.ndarray, batch_size: int = 64) -> float:
    """The mean over some epochs."""
    orders = [epoch_order(len(labels), 5, epoch, shuffle=shuffle) for epoch in range(8)]
    return float(np.mean([variance_inflation(labels[order], batch_size) for order in orders]))


@pytest.mark.parametrize(
    ("labels", "batch_size"), [([0, 0, 1, 1, 1], 2), ([0, 1, 1, 2, 2, 2], 3), ([0, 0, 0, 1, 1, 2], 4)]
)
def test_over_all_orders_of_few_samples_the_shares_vary_as_if_drawn_at_random(
    labels: list[int], batch_size: int
) -> None:
    orders = list(itertools.permutations(labels))
    found = [variance_inflation(np.array(order), batch_size) for order in orders]
    assert np.mean(found) == pytest.approx(1, abs=1e-12)
    assert max(found) > 1.2 > 0.9 > min(found)


def test_batches_of_a_full_shuffle_vary_as_random_ones_do_and_blocks_of_a_sorted_store_do_not() -> None:
    is_sorted = np.arange(20000) * 10 // 20000
    assert inflation(Shuffle(1), is_sorted) == pytest.approx(1, abs=0.1)
    # A block that is alone in its lane gives 64 / 8 neighbours to a batch: 1 + (8 - 1) times their likeness.
    assert inflation(Shuffle(64, 1), is_sorted) == pytest.approx(8, rel=0.2)
    assert variance_inflation(is_sorted, 64) > 50
    wide = [inflation(Shuffle(16, window), is_sorted) for window in (16, 64, 256)]
    assert wide == sorted(wide, reverse=True)
    assert wide[-1] < 1.5


def test_blocks_of_a_mixed_store_lose_nothing() -> None:
    mixed = (np.arange(20000) * 10 // 20000)[shuffled(20000, 1)]
    assert inflation(Shuffle(64, 16), mixed) == pytest.approx(1, abs=0.1)


@few
@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_shares_are_the_weights_to_the_nearest_draw(weights: list[float]) -> None:
    found = np.array(shares(weights))
    assert found.sum() == ROUND
    assert (abs(found - np.array(weights) / sum(weights) * ROUND) < 1).all()


@few
@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=5), seed=seeds, first=st.integers(0, 3 * ROUND))
def test_draws_of_a_group_are_numbered_without_gaps(weights: list[int], seed: int, first: int) -> None:
    counts = shares(weights)
    group, within = deal_all(np.arange(first, first + 2 * ROUND), counts, seed)
    for number, count in enumerate(counts):
        places = within[group == number]
        np.testing.assert_array_equal(places, np.arange(places[0], places[0] + len(places)))
        assert abs(len(places) - 2 * count) <= count
    assert deal_all(np.arange(ROUND), counts, seed)[1].max() == max(counts) - 1


def test_weighted_groups_come_in_proportion_and_each_sample_once_before_any_comes_twice() -> None:
    groups = [np.arange(0, 40), np.arange(40, 45), np.arange(45, 300)]
    order = Order(groups, batch_size=64, seed=3, weights=(1, 1, 2))
    indices, epochs = taken(order, range(2 * ROUND // 64))
    for group, share in zip(groups, (1 / 4, 1 / 4, 1 / 2), strict=True):
        here = np.isin(indices, group)
        assert here.sum() == share * 2 * ROUND
        times = np.bincount(indices[here] - group[0], minlength=len(group))
        assert times.max() - times.min() <= 1
        for epoch in range(int(epochs[here].max())):
            assert sorted(indices[here][epochs[here] == epoch]) == group.tolist()
    in_batch = np.array([np.isin(order.batch(step)[0], groups[0]).sum() for step in range(128)])
    statistic = ((in_batch - 16) ** 2).sum() / (64 * 0.25 * 0.75)
    assert 1e-3 < chi2.sf(statistic, 127) < 1 - 1e-3


def test_groups_without_samples_and_weights_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="one of the groups to sample from has no samples"):
        Order([np.arange(3), np.arange(0)], batch_size=2, seed=0, weights=(1, 1))
    with pytest.raises(ValueError, match="less than 1/4096"):
        Order([np.arange(3), np.arange(3, 5)], batch_size=2, seed=0, weights=(1, 1e-6))


def order_in_plain_loops(num_samples: int, words: tuple[int, ...], block: int, window: int) -> list[int]:
    """Blocks in random order are cut into 8 lanes, in each of which windows are mixed; one of each lane in turn."""
    blocks = shuffled(-(-num_samples // block), *words, ORDER).tolist()
    stream = [number * block + k for number in blocks for k in range(block) if number * block + k < num_samples]
    draws = mix(np.arange(num_samples, dtype=np.uint64) * GOLDEN + key(*words, WINDOW)).tolist()
    lanes = [[place for place in range(num_samples) if place * 8 // num_samples == lane] for lane in range(8)]
    size, mixed = max(block * window // 8, 1), []
    for lane in lanes:
        parts = [lane[start : start + size] for start in range(0, len(lane), size)]
        mixed.append([place for part in parts for place in sorted(part, key=draws.__getitem__)])
    in_turn = [lane[k] for k in range(num_samples) for lane in mixed if k < len(lane)]
    return [stream[place] for place in in_turn]


@few
@given(num_samples=st.integers(1, 300), block=st.integers(2, 40), window=st.integers(1, 20), seed=seeds)
def test_the_order_of_blocks_is_that_of_plain_loops(num_samples: int, block: int, window: int, seed: int) -> None:
    """What a run goes on with rests on it: it stays what it is from version to version."""
    found = epoch_order(num_samples, seed, 3, shuffle=Shuffle(block, window))
    assert found.tolist() == order_in_plain_loops(num_samples, (seed, 3), block, window)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 16, 64])
def test_the_shares_of_ranks_divide_a_batch_in_its_order_and_as_evenly_as_can_be(batch_size: int) -> None:
    batch = list(range(100, 100 + batch_size))
    for ranks in range(1, batch_size + 1):
        parts = [batch[share_of(rank, ranks)] for rank in range(ranks)]
        assert sorted(sample for part in parts for sample in part) == batch
        assert all(part == sorted(part) for part in parts)
        sizes = [len(part) for part in parts]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) == batch_size // ranks


@pytest.mark.parametrize(
    ("shuffle", "steps"), [(Shuffle(4, 5), 3), (Shuffle(4, 7), 4), (Shuffle(4, 1), 1), (Shuffle(1, 9), 0)]
)
def test_the_next_window_comes_after_as_many_steps_as_this_one_fills(shuffle: Shuffle, steps: int) -> None:
    assert Order([np.arange(50)], batch_size=7, seed=0, shuffle=shuffle).steps_ahead == steps


def test_the_least_share_is_one_of_4096_draws() -> None:
    assert shares((4095, 1)) == (4095, 1)
    assert shares((1, 1, 2)) == (1024, 1024, 2048)
    with pytest.raises(ValueError, match="1/4096"):
        shares((8191, 1))


def test_an_epoch_takes_four_bytes_for_each_sample_where_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stream(100, 0, Shuffle()).order(0).dtype == np.uint32
    monkeypatch.setattr(order, "epoch_order", lambda *words, shuffle: np.array([2**32]))
    assert Stream(2**32 + 1, 0, Shuffle()).order(0).tolist() == [2**32]


def test_the_order_of_the_epoch_beside_is_kept_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def note(num_samples: int, seed: int, group: int, epoch: int, *, shuffle: Shuffle) -> np.ndarray:
        made.append(epoch)
        return np.arange(num_samples)

    monkeypatch.setattr(order, "epoch_order", note)
    stream = Stream(10, 0, Shuffle())
    for epoch in (3, 4, 3, 4, 5, 4, 9, 4):
        stream.order(epoch)
    assert made == [3, 4, 5, 9, 4]
    assert stream.recent.keys() == {4}
