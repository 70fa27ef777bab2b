"""Random subsets of samples: stratified fractions, folds, the first of each class, without cutting groups."""

from dataclasses import dataclass

import numpy as np

from deeplense.random.draws import GROUPS, permutation, shuffled, uniforms


def split_off(
    labels: np.ndarray, fraction: float, *, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices at random into two parts, the second with this fraction of each class.

    The number of samples is rounded, but a class of two or more samples has at least one in each part; a single sample
    stays in the first.

    Args:
        labels: number of the class of each sample, (n,); -1 counts as a class.
        fraction: fraction of each class in the second part, 0 to 1.
        seed: random seed.
        groups: number of the group of each sample, (n,); a group stays in one part, and the fractions are then as close
            as that allows. None for no groups.

    Returns:
        The sorted indices of the first part and of the second part.

    Example:
        >>> first, second = split_off(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(first), len(second)
        (6, 2)
    """
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
    """Return sorted indices of a random fraction of each class; smaller subsets are nested in larger ones, except with
    groups.

    The number of each class is rounded, then raised to `least`, then lowered to all but `leave`.

    Args:
        labels: number of the class of each sample, (n,).
        fraction: fraction of each class, 0 to 1.
        seed: random seed.
        groups: number of the group of each sample, (n,); a group is taken completely or not at all, and the numbers are
            then as close as that allows. None for no groups.
        least: smallest number of samples of a class.
        leave: smallest number of samples of a class that are not taken.

    Example:
        >>> labels = np.repeat([0, 1], 10)
        >>> small, large = (some_of_each(labels, fraction, seed=0) for fraction in (0.2, 0.5))
        >>> np.bincount(labels[small]).tolist(), set(small) <= set(large)
        ([2, 2], True)
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
    """The samples that are chosen so far.

    Args:
        numbers: number of the class of each sample, (n,).
        chosen: mask of chosen samples, (n,).
        have: number of chosen samples of each class, (K,).
        wanted: desired number of each class, (K,).
        most: largest allowed number of each class, (K,).
    """

    numbers: np.ndarray
    chosen: np.ndarray
    have: np.ndarray
    wanted: np.ndarray
    most: np.ndarray

    def counts(self, members: np.ndarray) -> np.ndarray:
        """Return the number of samples of each class, (K,)."""
        return np.bincount(self.numbers[members], minlength=len(self.have))

    def take(self, members: np.ndarray) -> None:
        """Choose these samples."""
        self.chosen[members] = True
        self.have[:] += self.counts(members)

    def take_if_nearer(self, members: np.ndarray) -> None:
        """Choose these samples if that brings the numbers closer to the desired ones."""
        before, after = (np.abs(self.wanted - have).sum() for have in (self.have, self.have + self.counts(members)))
        if after < before:
            self.take_if_left(members)

    def take_if_left(self, members: np.ndarray) -> bool:
        """Choose these samples if enough of each class are left; returns whether they were chosen."""
        left = bool((self.have + self.counts(members) <= self.most).all())
        if left:
            self.take(members)
        return left


def single(groups: np.ndarray | None, count: int) -> np.ndarray:
    """Return which samples share their group with no other, (n,) bool.

    Args:
        groups: number of the group of each sample, (n,); None for no groups.
        count: n.

    Example:
        >>> single(np.array([7, 7, 9]), 3).tolist()
        [False, False, True]
    """
    if groups is None:
        return np.ones(count, dtype=bool)
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return sizes[numbers] == 1


def several(groups: np.ndarray | None, alone: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return the indices of the samples of each group with several samples, in random order.

    Args:
        groups: number of the group of each sample, (n,); None for no groups.
        alone: result of `single`, (n,).
        seed: random seed.
    """
    if groups is None or alone.all():
        return []
    together = np.flatnonzero(~alone)
    _, numbers, sizes = np.unique(groups[together], return_inverse=True, return_counts=True)
    members = np.split(together[np.argsort(numbers, kind="stable")], np.cumsum(sizes)[:-1])
    return [members[k] for k in shuffled(len(sizes), seed, GROUPS)]


def first_of_each(labels: np.ndarray, count: int, *, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return sorted indices of a number of random samples, stratified by class; smaller subsets are nested in larger
    ones.

    Args:
        labels: number of the class of each sample, (n,).
        count: number of samples, up to n.
        seed: random seed.
        groups: number of the group of each sample, (n,); at most one group of several samples is not taken completely.
            None for no groups.

    Example:
        >>> labels = np.repeat([0, 1], 10)
        >>> np.bincount(labels[first_of_each(labels, 6, seed=0)]).tolist()
        [3, 3]
    """
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
    """Return the fold of each sample, (n,), with each class spread evenly over the folds.

    Args:
        labels: number of the class of each sample, (n,).
        num_folds: number of folds, at least 2.
        seed: random seed.
        groups: number of the group of each sample, (n,); a group is in one fold, and the classes are then as even as
            that allows. None for no groups.

    Example:
        >>> np.bincount(fold_of(np.repeat([0, 1], 5), 5, seed=0)).tolist()
        [2, 2, 2, 2, 2]
    """
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
