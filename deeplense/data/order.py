"""Random choices as pure functions of a seed and some numbers, in integer arithmetic that no library version can
change."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENTATION, STEP, WINDOW, DEAL = 1, 2, 3, 4, 5


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


def split_off(labels: np.ndarray, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices in two parts, the second with this fraction of each class, drawn by `seed`; each sorted. The share is
    rounded, but a class of two or more samples is missing in neither part; a single sample stays in the first."""
    second = np.zeros(len(labels), dtype=bool)
    second[some_of_each(labels, fraction, seed=seed, least=int(fraction > 0), leave=int(fraction < 1))] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def some_of_each(labels: np.ndarray, fraction: float, *, seed: int, least: int = 0, leave: int = 0) -> np.ndarray:
    """Sorted indices of this fraction of each class, drawn by `seed`; those of a smaller fraction are among those of a
    larger one. The share is rounded, then at least `least`, then all but `leave` at most."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = members[permutation(len(members), seed, int(label) + 1)]
        chosen[drawn[: min(max(round(fraction * len(members)), least), len(members) - leave)]] = True
    return np.flatnonzero(chosen)


def first_of_each(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Sorted indices of `count` samples, with the shares of the classes as near as they can be, drawn by `seed`; those
    of a smaller count are among those of a larger one."""
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = members[permutation(len(members), seed, int(label) + 1)]
        places[drawn] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(places, kind="stable")[:count])


def fold_of(labels: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """The fold of each sample, (n,), with each class spread evenly over the folds."""
    folds = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        folds[members[permutation(len(members), seed, int(label) + 1)]] = np.arange(len(members)) % num_folds
    return folds
