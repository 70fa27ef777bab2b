"""Which weights of a training are kept: rules that choose an evaluation by what is known of the validation images.

E evaluations, K classes. `deeplense benchmark selection` compares the rules; RESULTS.md has the table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Array

WINDOW = 3
"""Evaluations of a running mean."""
FEW_IMAGES, FEW_OF_A_CLASS = 100, 10
"""Validation images below which they tell little about which weights are better."""


@dataclass(frozen=True)
class Loss:
    """A mean over the validation images, with its standard error."""

    mean: float
    error: float


NOTHING = Loss(math.inf, 0.0)
"""Before the first evaluation."""


@dataclass(frozen=True)
class Curve:
    """What the evaluations of a training found, in their order: scores (larger is better), mean log losses and their
    standard errors, each (E,)."""

    scores: Array
    log_losses: Array
    errors: Array


def log_loss(logits: Array, labels: NDArray[np.integer]) -> Loss:
    """The log loss of logits (N, K), from N = 2 on."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return Loss(float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses))))


def is_kept(loss: Loss, least: Loss) -> bool:
    """Whether the weights of an evaluation take the place of earlier ones: unless their loss is above the least before
    by more than the standard error of the difference. So few images, whose losses say little, keep the last weights;
    many keep the last of the best."""
    return loss.mean - least.mean <= math.hypot(loss.error, least.error)


def last_not_worse(curve: Curve) -> int:
    """The last evaluation that is kept."""
    kept, least = 0, NOTHING
    for number, (mean, error) in enumerate(zip(curve.log_losses, curve.errors, strict=True)):
        loss = Loss(mean, error)
        if is_kept(loss, least):
            kept = number
        least = min(least, loss, key=lambda each: each.mean)
    return kept


def running_mean(values: Array) -> Array:
    """The mean of each value and those just before it, (E,)."""
    return np.array([np.mean(values[max(0, k - WINDOW + 1) : k + 1]) for k in range(len(values))])


def last_highest(values: Array) -> int:
    """The last place of the largest value."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


RULES: Mapping[str, Callable[[Curve], int]] = {
    "first maximum of the AUC": lambda curve: int(np.argmax(curve.scores)),
    "last maximum of the AUC": lambda curve: last_highest(curve.scores),
    "least log loss": lambda curve: int(np.argmin(curve.log_losses)),
    "AUC, log loss where it ties": lambda curve: int(np.lexsort((-curve.log_losses, curve.scores))[-1]),
    "running mean of the AUC": lambda curve: last_highest(running_mean(curve.scores)),
    "running mean of the log loss": lambda curve: int(np.argmin(running_mean(curve.log_losses))),
    "last whose log loss is not worse": last_not_worse,
    "last weights": lambda curve: len(curve.scores) - 1,
}
"""Each gives the number of the evaluation whose weights it keeps."""


def few_images(counts: Mapping[str, int]) -> str:
    """In words which classes have few validation images, or that all have; empty where there are enough."""
    rare = [f"{count} of {name}" for name, count in counts.items() if count < FEW_OF_A_CLASS]
    total = sum(counts.values())
    return ", ".join(rare) or (f"below {FEW_IMAGES}" if total < FEW_IMAGES else "")
