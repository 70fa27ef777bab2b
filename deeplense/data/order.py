"""Random choices as pure functions of a seed and some numbers, in integer arithmetic that no library version can
change."""

from dataclasses import dataclass

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENTATION, STEP, WINDOW, DEAL, GROUPS = 1, 2, 3, 4, 5, 6


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): scrambles uint64 words, one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key(*words: int) -> np.ndarray:
    """One uint64 from some words. Words are chained, not added: (seed 0, epoch 1) is unlike (seed 1, epoch 0)."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = mix((state + GOLDEN) ^ np.uint64(word & 0xFFFFFFFFFFFFFFFF))
    return state


def shuffled(num_items: int, *words: int) -> np.ndarray:
    """The numbers below `num_items` in an order drawn by some words."""
    return np.argsort(mix(np.arange(num_items, dtype=np.uint64) * GOLDEN + key(*words)), kind="stable")


def permutation(num_items: int, seed: int, number: int) -> np.ndarray:
    """One of the orders that a seed draws."""
    return shuffled(num_items, seed, ORDER, number)


def uniforms(seed: int, epochs: np.ndarray, indices: np.ndarray, *, count: int) -> np.ndarray:
    """Random numbers in [0, 1[ for the augmentation of samples, (n, count): a function of (seed, epoch, index)."""
    base = mix(mix(epochs.astype(np.uint64) * GOLDEN + key(seed, AUGMENTATION)) + indices.astype(np.uint64) * GOLDEN)
    words = mix(base[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a rank's library generators (dropout and the like) for one step."""
    return int(key(seed, STEP, step, rank)[0] >> np.uint64(1))


def rank_slice(num_items: int, rank: int, world_size: int) -> slice:
    """The part of `num_items` that belongs to a rank: contiguous, of nearly equal size, none twice, none left out."""
    return slice(rank * num_items // world_size, (rank + 1) * num_items // world_size)


def num_steps(epochs: float, *, num_samples: int, batch_size: int) -> int:
    """Steps that make this many epochs; the part of a last batch is left out, but at least one step is made."""
    return max(int(epochs * num_samples) // batch_size, 1)


def split_off(
    labels: np.ndarray, fraction: float, *, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices in two parts, the second with this fraction of each class, drawn by `seed`; each sorted. The share is
    rounded, but a class of two or more samples is missing in neither part; a single sample stays in the first. Samples
    with the same number in `groups` (n,) are in one part; all else is then as near as that allows."""
    second = np.zeros(len(labels), dtype=bool)
    least, leave = int(fraction > 0), int(fraction < 1)
    second[some_of_each(labels, fraction, seed=seed, groups=groups, least=least, leave=leave)] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def some_of_each(
    labels: np.ndarray,
    fraction: float,
    *,
    seed: int,
    groups: np.ndarray | None = None,
    least: int = 0,
    leave: int = 0,
) -> np.ndarray:
    """Sorted indices of this fraction of each class, drawn by `seed`; those of a smaller fraction are among those of a
    larger one. The share is rounded, then at least `least`, then all but `leave` at most.

    Of samples with the same number in `groups` (n,) all are taken or none; the counts are then as near as that allows,
    and smaller fractions are not among larger ones.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    totals = np.bincount(numbers, minlength=len(classes))
    wanted = np.array([min(max(round(fraction * n), least), n - leave) for n in totals.tolist()], dtype=np.int64)
    alone = single(groups, len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    together = several(groups, alone, seed)
    drawn = uniforms(seed, np.full(len(together), GROUPS), np.arange(len(together)), count=1)[:, 0] < fraction
    choosing = Choosing(numbers, chosen, np.zeros_like(totals), wanted, totals - leave)
    for k in np.flatnonzero(drawn):
        choosing.take_if_nearer(together[k])
    for k, label in enumerate(classes):
        members = np.flatnonzero((numbers == k) & alone)
        order = permutation(len(members), seed, int(label) + 1)
        choosing.take(members[order[: max(wanted[k] - choosing.have[k], 0)]])
    for k in np.flatnonzero(~drawn):
        choosing.take_if_nearer(together[k])
    for k in np.flatnonzero((choosing.have == 0) & (wanted > 0)):
        of_class = [members for members in together if (numbers[members] == k).any()]
        next((True for members in sorted(of_class, key=len) if choosing.take_if_left(members)), None)
    return np.flatnonzero(chosen)


@dataclass(frozen=True)
class Choosing:
    """Samples that are chosen, by mask (n,), with the number of the class of each (n,); and how many of each class
    there are, are wanted, and may be at most (K,)."""

    numbers: np.ndarray
    chosen: np.ndarray
    have: np.ndarray
    wanted: np.ndarray
    most: np.ndarray

    def counts(self, members: np.ndarray) -> np.ndarray:
        """How many of each class some samples are (K,)."""
        return np.bincount(self.numbers[members], minlength=len(self.have))

    def take(self, members: np.ndarray) -> None:
        """Choose these samples."""
        self.chosen[members] = True
        self.have[:] += self.counts(members)

    def take_if_nearer(self, members: np.ndarray) -> None:
        """Choose these samples where that brings the counts nearer to what is wanted."""
        before, after = (np.abs(self.wanted - have).sum() for have in (self.have, self.have + self.counts(members)))
        if after < before:
            self.take_if_left(members)

    def take_if_left(self, members: np.ndarray) -> bool:
        """Choose these samples where enough of each class are left; returns whether."""
        left = bool((self.have + self.counts(members) <= self.most).all())
        if left:
            self.take(members)
        return left


def single(groups: np.ndarray | None, count: int) -> np.ndarray:
    """Which of so many samples are in no group with others, (n,)."""
    if groups is None:
        return np.ones(count, dtype=bool)
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return sizes[numbers] == 1


def several(groups: np.ndarray | None, alone: np.ndarray, seed: int) -> list[np.ndarray]:
    """The indices of the samples of each group that has several, in an order drawn by `seed`."""
    if groups is None or alone.all():
        return []
    together = np.flatnonzero(~alone)
    _, numbers, sizes = np.unique(groups[together], return_inverse=True, return_counts=True)
    members = np.split(together[np.argsort(numbers, kind="stable")], np.cumsum(sizes)[:-1])
    return [members[k] for k in shuffled(len(sizes), seed, GROUPS)]


def first_of_each(labels: np.ndarray, count: int, *, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Sorted indices of `count` samples, with the shares of the classes as near as they can be, drawn by `seed`; those
    of a smaller count are among those of a larger one. Of the groups (n,) of several samples at most one is not taken
    whole."""
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = members[permutation(len(members), seed, int(label) + 1)]
        places[drawn] = (np.arange(len(members)) + 0.5) / len(members)
    if groups is not None:
        _, members, numbers = np.unique(groups, return_index=True, return_inverse=True)
        first = np.full(len(members), np.inf)
        np.minimum.at(first, numbers, places)
        return np.sort(np.lexsort((places, members[numbers], first[numbers]))[:count])
    return np.sort(np.argsort(places, kind="stable")[:count])


def fold_of(labels: np.ndarray, num_folds: int, *, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold of each sample, (n,), with each class spread evenly over the folds. Samples with the same number in
    `groups` (n,) are in one fold; the classes are then as even as that allows."""
    folds = np.empty(len(labels), dtype=np.int64)
    classes, numbers = np.unique(labels, return_inverse=True)
    alone = single(groups, len(labels))
    held = np.zeros((num_folds, len(classes)), dtype=np.int64)
    totals = np.bincount(numbers, minlength=len(classes))
    for members in sorted(several(groups, alone, seed), key=len, reverse=True):
        counts = np.bincount(numbers[members], minlength=len(classes))
        fullest = (held * counts / totals).sum(axis=1)
        fold = int(np.lexsort((held.sum(axis=1), fullest))[0])
        folds[members], held[fold] = fold, held[fold] + counts
    for k, label in enumerate(classes):
        members = np.flatnonzero((labels == label) & alone)
        if not held[:, k].any():
            folds[members[permutation(len(members), seed, int(label) + 1)]] = np.arange(len(members)) % num_folds
            continue
        levels = held[:, k][:, None] + np.arange(len(members))
        emptiest = np.argsort(levels.T.ravel(), kind="stable")[: len(members)] % num_folds
        folds[members[permutation(len(members), seed, int(label) + 1)]] = emptiest
    return folds
