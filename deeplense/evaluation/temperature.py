"""Calibration of class probabilities after training: a temperature for the logits, and a change of the class fractions.
N images, K classes."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Array = NDArray[np.floating]
SPREAD = 1.0
"""Standard deviation of the prior of the logarithm of the temperature, which is centred at 0."""
FARTHEST = 4.0
"""Largest absolute logarithm of a temperature."""


def probabilities_of(logits: Array, temperature: float = 1.0) -> Array:
    """Return class probabilities (N, K): softmax of logits / temperature.

    Args:
        logits: (N, K).
        temperature: above 0; above 1 makes probabilities less certain.

    Example:
        >>> probabilities_of(np.array([[0.0, np.log(3.0)]])).round(2).tolist()
        [[0.25, 0.75]]
    """
    return special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)


def mean_log_loss(
    logits: Array, labels: NDArray[np.integer], temperature: float = 1.0, *, offset: Array | float = 0.0
) -> float:
    """Return the mean negative logarithm of the probability of the true class.

    Args:
        logits: (N, K).
        labels: number of the true class, (N,).
        temperature: above 0.
        offset: logarithm of the class fractions of these images over those that the logits are for, (K,).
    """
    logs = special.log_softmax(np.asarray(logits, dtype=np.float64) / temperature + offset, axis=1)
    return -float(logs[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Array, labels: NDArray[np.integer], *, offset: Array | float = 0.0) -> float:
    """Return the temperature with the highest posterior density (Guo et al. 2017, section 4.2, with a prior).

    The prior of ln T is normal with mean 0 and standard deviation 1. It matters for few images only: without it, the
    likelihood of images that are all classified correctly has no maximum, and T would be 0.

    Args:
        logits: of images that the network was not trained on, (N, K).
        labels: number of the true class, (N,).
        offset: logarithm of the class fractions of these images over those that the network was trained with, (K,).
            Without it, the temperature would also make up for the difference.

    Raises:
        ValueError: there are no images, or logits are not finite.

    Example:
        >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 100)
        >>> labels = np.array([0, 1, 1] * 100)  # A third is wrong, with a confidence of 0.98.
        >>> round(fit_temperature(logits, labels), 1)
        5.5
    """
    if len(labels) == 0:
        raise ValueError("a temperature needs images with labels; there are none.")
    if not np.isfinite(logits).all():
        raise ValueError("some logits are not finite; train again with a lower learning rate.")

    def loss(log_temperature: float) -> float:
        likelihood = len(labels) * mean_log_loss(logits, labels, math.exp(log_temperature), offset=offset)
        return likelihood + log_temperature**2 / (2 * SPREAD**2)

    found = optimize.minimize_scalar(loss, bounds=(-FARTHEST, FARTHEST), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def fractions_at(prevalence: float, positive: int, fractions: Array) -> Array:
    """Return class fractions (K,) in which one class has a given fraction; the others keep their proportions.

    Args:
        prevalence: fraction of the class, above 0 and below 1.
        positive: number of the class.
        fractions: class fractions before, (K,), above 0.

    Raises:
        ValueError: the prevalence is out of range, or a class fraction is 0.

    Example:
        >>> fractions_at(0.1, 1, np.array([0.25, 0.5, 0.25])).tolist()
        [0.45, 0.1, 0.45]
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence={prevalence} must be above 0 and below 1.")
    before = np.asarray(fractions, dtype=np.float64)
    if (before <= 0).any():
        raise ValueError(f"the class fractions {before.tolist()} must all be above 0.")
    others = np.arange(len(before)) != positive
    after = np.where(others, before * (1 - prevalence) / before[others].sum(), prevalence)
    return after


def at_fractions(probabilities: Array, before: Array, after: Array) -> Array:
    """Return class probabilities for other class fractions: the classes look the same, but some are rarer (Saerens et
    al. 2002, Neural Computation 14, 21, equation 2.4).

    Args:
        probabilities: (N, K), for images with the class fractions `before`.
        before: class fractions (K,), above 0.
        after: class fractions (K,).

    Example:
        >>> at_fractions(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]), np.array([0.9, 0.1])).tolist()
        [[0.9, 0.1]]
    """
    weighted = np.asarray(probabilities, dtype=np.float64) * (np.asarray(after) / np.asarray(before))
    return weighted / weighted.sum(axis=1, keepdims=True)
