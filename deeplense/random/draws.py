"""Random choices as pure functions of a seed and some numbers, in integer arithmetic that does not depend on library
versions."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENTATION, STEP, WINDOW, DEAL, GROUPS = 1, 2, 3, 4, 5, 6


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 words, one to one: the finaliser of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key(*words: int) -> np.ndarray:
    """Return one uint64 word from several numbers, (1,).

    The numbers are chained, not added: (seed 0, epoch 1) differs from (seed 1, epoch 0).
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = mix((state + GOLDEN) ^ np.uint64(word & 0xFFFFFFFFFFFFFFFF))
    return state


def shuffled(num_items: int, *words: int) -> np.ndarray:
    """Return the numbers below `num_items` in a random order, (num_items,).

    Args:
        num_items: number of items.
        *words: integers that decide the order.
    """
    return np.argsort(mix(np.arange(num_items, dtype=np.uint64) * GOLDEN + key(*words)), kind="stable")


def permutation(num_items: int, seed: int, number: int) -> np.ndarray:
    """Return a random order of the numbers below `num_items`, (num_items,).

    Args:
        num_items: number of items.
        seed: random seed.
        number: which of the orders of this seed, such as an epoch.

    Example:
        >>> sorted(permutation(5, seed=0, number=1).tolist())
        [0, 1, 2, 3, 4]
        >>> bool((permutation(5, seed=0, number=1) == permutation(5, seed=0, number=1)).all())
        True
    """
    return shuffled(num_items, seed, ORDER, number)


def uniforms(seed: int, epochs: np.ndarray, indices: np.ndarray, *, count: int) -> np.ndarray:
    """Return random numbers in [0, 1[ for the augmentation of samples, (n, count): a function of (seed, epoch, index).

    Args:
        seed: random seed.
        epochs: epoch of each sample, (n,), integers.
        indices: number of each sample within the split, (n,), integers.
        count: random numbers per sample.

    Example:
        >>> uniforms(0, np.array([0, 0]), np.array([3, 7]), count=4).shape
        (2, 4)
    """
    base = mix(mix(epochs.astype(np.uint64) * GOLDEN + key(seed, AUGMENTATION)) + indices.astype(np.uint64) * GOLDEN)
    words = mix(base[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a rank's library generators (dropout and the like) for one step.

    Args:
        seed: random seed of the training.
        step: number of the update.
        rank: number of the process.

    Example:
        >>> step_seed(0, 5, 0) != step_seed(0, 5, 1)
        True
    """
    return int(key(seed, STEP, step, rank)[0] >> np.uint64(1))
