"""Model selection: rules that choose the evaluation whose weights are kept, from the validation scores.

E evaluations, K classes. `deeplense benchmark selection` compares the rules; RESULTS.md contains the table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Array

WINDOW = 3
"""Number of evaluations in a running mean."""
FEW_IMAGES, FEW_OF_A_CLASS = 100, 10
"""Below these numbers of validation images (in total, per class) model selection is unreliable."""


@dataclass(frozen=True)
class Loss:
    """Mean loss over the validation images, with its standard error."""

    mean: float
    error: float


NOTHING = Loss(math.inf, 0.0)
"""The loss before the first evaluation."""


@dataclass(frozen=True)
class Curve:
    """Validation results of the evaluations of a training, in order: scores (larger is better), mean log losses and
    their standard errors, each (E,)."""

    scores: Array
    log_losses: Array
    errors: Array


def log_loss(logits: Array, labels: NDArray[np.integer]) -> Loss:
    """Return the log loss of logits (N, K), N at least 2."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return Loss(float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses))))


def is_kept(loss: Loss, least: Loss) -> bool:
    """Whether the weights of an evaluation replace earlier ones: unless their loss exceeds the lowest loss so far by
    more than the standard error of the difference. With few validation images, whose losses are uncertain, this keeps
    the last weights; with many, the last of the best."""
    return loss.mean - least.mean <= math.hypot(loss.error, least.error)


def last_not_worse(curve: Curve) -> int:
    """Return the index of the last evaluation that is kept by `is_kept`."""
    kept, least = 0, NOTHING
    for number, (mean, error) in enumerate(zip(curve.log_losses, curve.errors, strict=True)):
        loss = Loss(mean, error)
        if is_kept(loss, least):
            kept = number
        least = min(least, loss, key=lambda each: each.mean)
    return kept


def running_mean(values: Array) -> Array:
    """Return the mean of each value and those just before it, (E,)."""
    return np.array([np.mean(values[max(0, k - WINDOW + 1) : k + 1]) for k in range(len(values))])


def last_highest(values: Array) -> int:
    """Return the last index of the largest value."""
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
"""The rules by name; each returns the index of the evaluation whose weights it keeps."""


def few_images(counts: Mapping[str, int]) -> str:
    """Say which classes have few validation images, or that there are few in total; empty if there are enough."""
    rare = [f"{count} of {name}" for name, count in counts.items() if count < FEW_OF_A_CLASS]
    total = sum(counts.values())
    return ", ".join(rare) or (f"below {FEW_IMAGES}" if total < FEW_IMAGES else "")
