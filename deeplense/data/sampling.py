"""Which samples make the batch of step n: a pure function of (seed, n).

The samples of all epochs form one endless stream, each epoch an order of its own; step n takes the next batch of it. So
every sample comes exactly once an epoch, none is dropped or repeated, and to resume is to know n. Groups (classes, data
sets) that are drawn by weight are such streams each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from deeplense.data.order import DEAL, GOLDEN, ORDER, WINDOW, key, mix, shuffled

LANES = 8
"""Parts of an epoch that are read side by side where blocks are kept together; a rank of 2, 4 or 8 has its own."""
ROUND = 4096
"""Positions among which weights are kept exactly."""


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is mixed: `block` neighbours in the store are read together (1: none), and the samples of `window`
    blocks mixed."""

    block: int = 1
    window: int = 256

    @property
    def window_samples(self) -> int:
        """Samples that are mixed with one another; 0 where all are."""
        return self.block * self.window if self.block > 1 else 0


def epoch_order(num_samples: int, *words: int, shuffle: Shuffle) -> np.ndarray:
    """The numbers of the samples in one epoch, in an order drawn by some words."""
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
    """All epochs of some samples, one after the other. `group` tells streams of one seed apart."""

    num_samples: int
    seed: int
    shuffle: Shuffle
    group: int = 0
    recent: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples at these positions of the stream, and the epoch of each."""
        epochs, places = positions // self.num_samples, positions % self.num_samples
        found = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self.order(int(epoch))[places[here]]
        return found, epochs

    def order(self, epoch: int) -> np.ndarray:
        """The order of one epoch; that of its neighbour is kept, too, for a batch may reach over the end."""
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
    """The batches of a training: samples of one or more groups, each an array of indices, drawn by weight.

    Without weights every sample of all groups comes exactly once an epoch. With weights, each 4096 draws hold the
    groups in just these proportions, and within a group each sample comes once before any comes twice.

    Raises ValueError where a group is empty, or its weight too small.
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
            raise ValueError("there are no samples of one of the groups that are to be drawn; leave it out.")
        self.shuffle = shuffle or Shuffle()
        self.streams = [Stream(len(group), seed, self.shuffle, k) for k, group in enumerate(self.groups)]

    @property
    def steps_ahead(self) -> int:
        """Steps after which a batch is of the next window, which may be read from the disk meanwhile; 0 where all
        samples are mixed."""
        return -(-self.shuffle.window_samples // self.batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of the batch of a step, and the epoch of each (how often its group was gone through before)."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        group, positions = deal_all(positions, self.shares, self.seed)
        indices, epochs = np.empty_like(positions), np.empty_like(positions)
        for number, stream in enumerate(self.streams):
            here = group == number
            places, epochs[here] = stream.at(positions[here])
            indices[here] = self.groups[number][places]
        return indices, epochs


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """How many of 4096 draws each group gets, by the largest remainders. Raises ValueError where that is none."""
    exact = np.asarray(weights, dtype=float) / sum(weights) * ROUND
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: ROUND - counts.sum()]] += 1
    if counts.min() < 1:
        raise ValueError(
            f"the weights {list(weights)} give a group less than 1/{ROUND} of the samples; leave it out, or give more."
        )
    return tuple(int(count) for count in counts)


def deal_all(positions: np.ndarray, counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The group of each position, and its position within the stream of that group."""
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
    """The groups of one round of draws, mixed, and how many of its group each has before it."""
    groups = np.repeat(np.arange(len(counts)), counts)[shuffled(ROUND, seed, DEAL, number)]
    places = np.empty_like(groups)
    for group, count in enumerate(counts):
        places[groups == group] = np.arange(count)
    return groups, places


def variance_inflation(labels: np.ndarray, batch_size: int) -> float:
    """How much more the shares of the classes vary from batch to batch than if samples were drawn at random: 1 for a
    full shuffle, up to `batch_size` where each batch is of one class (Kish 1965, the design effect).

    Args:
        labels: of the samples in the order in which they come, (N,).
        batch_size: samples of a batch; a last one that is not full is left out.
    """
    whole = len(labels) // batch_size * batch_size
    ratios = []
    for label in np.unique(labels):
        member = (labels == label).astype(float)
        expected = member.var() / batch_size * (1 - batch_size / len(labels)) * len(labels) / (len(labels) - 1)
        ratios.append(((member[:whole].reshape(-1, batch_size).mean(axis=1) - member.mean()) ** 2).mean() / expected)
    return float(np.mean(ratios))
