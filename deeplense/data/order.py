"""The samples of the batch of step n: a pure function of (seed, n).

The samples of all epochs form one endless stream, with an order of its own for each epoch; step n takes the next batch
of it. So each sample comes exactly once per epoch, none is dropped or repeated, and to resume only n is needed. Groups
(classes, data sets) that are sampled by weight have a stream each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from deeplense.random.draws import DEAL, GOLDEN, ORDER, WINDOW, key, mix, shuffled

LANES = 8
"""Parts of an epoch that are read side by side if blocks are kept together; 2, 4 or 8 ranks have parts of their own."""
ROUND = 4096
"""Number of positions among which weights are kept exactly."""


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is shuffled.

    Args:
        block: neighbours in the store that are read together; 1 for a full shuffle.
        window: number of blocks whose samples are shuffled together.

    Example:
        >>> Shuffle(block=16, window=8).window_samples, Shuffle().window_samples
        (128, 0)
    """

    block: int = 1
    window: int = 256

    @property
    def window_samples(self) -> int:
        """Number of samples that are shuffled together; 0 for all."""
        return self.block * self.window if self.block > 1 else 0


def epoch_order(num_samples: int, *words: int, shuffle: Shuffle) -> np.ndarray:
    """Return the numbers of the samples of one epoch in random order, (num_samples,).

    Args:
        num_samples: number of samples.
        *words: integers that decide the order, such as seed and epoch.
        shuffle: full shuffle, or blocks within windows.

    Example:
        >>> sorted(epoch_order(6, 0, 1, shuffle=Shuffle()).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    if shuffle.block == 1:
        return shuffled(num_samples, *words, ORDER)
    blocks = shuffled(-(-num_samples // shuffle.block), *words, ORDER)
    stream = (blocks[:, None] * shuffle.block + np.arange(shuffle.block)).ravel()
    stream = stream[stream < num_samples]
    place = np.arange(num_samples)
    lane = place * LANES // num_samples
    in_lane = place - -(-lane * num_samples // LANES)
    window = in_lane // max(shuffle.window_samples // LANES, 1)
    mixed = np.lexsort((mix(place.astype(np.uint64) * GOLDEN + key(*words, WINDOW)), window, lane))
    return stream[mixed[np.lexsort((lane, in_lane))]]


@dataclass
class Stream:
    """All epochs of some samples, one after the other.

    Args:
        num_samples: number of samples.
        seed: random seed.
        shuffle: how each epoch is shuffled.
        group: keeps the streams of one seed independent.
        recent: cache of orders.
    """

    num_samples: int
    seed: int
    shuffle: Shuffle
    group: int = 0
    recent: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples at these positions of the stream, and their epochs."""
        epochs, places = positions // self.num_samples, positions % self.num_samples
        found = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self.order(int(epoch))[places[here]]
        return found, epochs

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of one epoch; that of its neighbour is kept, too, as a batch may cross the end."""
        known = self.recent
        if epoch not in known:
            order = epoch_order(self.num_samples, self.seed, self.group, epoch, shuffle=self.shuffle)
            small = np.uint32 if self.num_samples < 2**32 else np.uint64
            known = {near: kept for near, kept in known.items() if abs(near - epoch) == 1} | {
                epoch: order.astype(small)
            }
            self.recent = known
        return known[epoch]


class Order:
    """The batches of a training: samples of one or more groups, each an array of indices.

    Without weights each sample of all groups comes exactly once per epoch. With weights, each 4096 samples contain the
    groups in exactly these proportions, and within a group each sample comes once before any comes twice.

    Args:
        groups: indices of the samples of each group, (n,) each.
        batch_size: samples per batch, of all ranks together.
        seed: random seed.
        weights: relative weight of each group, above 0; none for no weighting.
        shuffle: how an epoch is shuffled; None for a full shuffle.

    Raises:
        ValueError: a group is empty, or its weight is too small.

    Example:
        >>> order = Order([np.arange(6)], batch_size=3, seed=0)
        >>> first, second = order.batch(0)[0], order.batch(1)[0]
        >>> sorted([*first.tolist(), *second.tolist()])
        [0, 1, 2, 3, 4, 5]
        >>> order.batch(2)[1].tolist()
        [1, 1, 1]
    """

    def __init__(
        self,
        groups: Sequence[np.ndarray],
        *,
        batch_size: int,
        seed: int,
        weights: Sequence[float] = (),
        shuffle: Shuffle | None = None,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.groups = list(groups) if len(weights) else [np.sort(np.concatenate(groups))]
        self.shares = shares(weights) if len(weights) else (ROUND,)
        if not all(len(group) for group in self.groups):
            raise ValueError("one of the groups to sample from has no samples; remove that group.")
        self.shuffle = shuffle or Shuffle()
        self.streams = [Stream(len(group), seed, self.shuffle, k) for k, group in enumerate(self.groups)]

    @property
    def steps_ahead(self) -> int:
        """Number of steps until a batch is of the next window, which may be read from the disk meanwhile; 0 for a full
        shuffle."""
        return -(-self.shuffle.window_samples // self.batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of the batch of a step, and the epoch of each: the number of passes over
        its group before."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        group, positions = deal_all(positions, self.shares, self.seed)
        indices, epochs = np.empty_like(positions), np.empty_like(positions)
        for number, stream in enumerate(self.streams):
            here = group == number
            places, epochs[here] = stream.at(positions[here])
            indices[here] = self.groups[number][places]
        return indices, epochs


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of 4096 samples each group gets, by the largest remainders. Raises ValueError if that is none.

    Example:
        >>> shares([3.0, 1.0])
        (3072, 1024)
    """
    exact = np.asarray(weights, dtype=float) / sum(weights) * ROUND
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: ROUND - counts.sum()]] += 1
    if counts.min() < 1:
        raise ValueError(
            f"the weights {list(weights)} give a group less than 1/{ROUND} of the samples; remove it or raise "
            "its weight."
        )
    return tuple(int(count) for count in counts)


def deal_all(positions: np.ndarray, counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each position, and its position within the stream of that group.

    Args:
        positions: positions in the stream of the training, (n,).
        counts: samples of each group per `ROUND`.
        seed: random seed.
    """
    if len(counts) == 1:
        return np.zeros_like(positions), positions
    group, within = np.empty_like(positions), np.empty_like(positions)
    rounds = positions // ROUND
    for number in np.unique(rounds):
        here = rounds == number
        groups, places = deal(counts, seed, int(number))
        slots = positions[here] % ROUND
        group[here] = groups[slots]
        within[here] = number * np.asarray(counts)[groups[slots]] + places[slots]
    return group, within


@lru_cache(maxsize=4)
def deal(counts: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups of one round in random order, (ROUND,), and the number of samples of the same group before
    each.

    Args:
        counts: samples of each group per `ROUND`.
        seed: random seed.
        number: number of the round.
    """
    groups = np.repeat(np.arange(len(counts)), counts)[shuffled(ROUND, seed, DEAL, number)]
    places = np.empty_like(groups)
    for group, count in enumerate(counts):
        places[groups == group] = np.arange(count)
    return groups, places


def variance_inflation(labels: np.ndarray, batch_size: int) -> float:
    """Return the variance of the class fractions from batch to batch, relative to random sampling: 1 for a full
    shuffle, up to `batch_size` if each batch has one class (Kish 1965, the design effect).

    Args:
        labels: labels of the samples in their order, (N,).
        batch_size: samples per batch; an incomplete last batch is ignored.

    Example:
        >>> round(variance_inflation(np.repeat([0, 1], 8), 4), 1)
        5.0
    """
    whole = len(labels) // batch_size * batch_size
    ratios = []
    for label in np.unique(labels):
        member = (labels == label).astype(float)
        expected = member.var() / batch_size * (1 - batch_size / len(labels)) * len(labels) / (len(labels) - 1)
        ratios.append(((member[:whole].reshape(-1, batch_size).mean(axis=1) - member.mean()) ** 2).mean() / expected)
    return float(np.mean(ratios))


def rank_slice(num_items: int, rank: int, world_size: int) -> slice:
    """Return the part of some items that belongs to a rank: contiguous and of nearly equal size, each item in one part.

    Args:
        num_items: number of items.
        rank: number of the part, 0 to world_size - 1.
        world_size: number of parts.

    Example:
        >>> [rank_slice(5, rank, 2) for rank in range(2)]
        [slice(0, 2, None), slice(2, 5, None)]
    """
    return slice(rank * num_items // world_size, (rank + 1) * num_items // world_size)


def share_of(rank: int, world_size: int) -> slice:
    """Return the part of a batch that belongs to a rank: every `world_size`-th sample, in the order of the batch. Each
    sample is in one part, and the sizes of the parts differ by at most one.

    Not a piece without gaps: the lanes of the order are dealt in turn, and a rank should have its own.

    Args:
        rank: number of the part, 0 to world_size - 1.
        world_size: number of parts.

    Example:
        >>> [list(range(16))[share_of(rank, 3)] for rank in range(3)]
        [[0, 3, 6, 9, 12, 15], [1, 4, 7, 10, 13], [2, 5, 8, 11, 14]]
    """
    return slice(rank, None, world_size)


def num_steps(epochs: float, *, num_samples: int, batch_size: int) -> int:
    """Return the number of steps of this many epochs. An incomplete last batch is ignored, but there is at least one
    step.

    Args:
        epochs: number of epochs, may be fractional.
        num_samples: samples per epoch.
        batch_size: samples per step, of all ranks together.

    Example:
        >>> num_steps(1.5, num_samples=100, batch_size=32)
        4
    """
    return max(int(epochs * num_samples) // batch_size, 1)
