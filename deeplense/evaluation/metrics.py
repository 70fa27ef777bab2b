"""Metrics with their uncertainty. N samples, K classes, R resamples.

Every metric takes weights (R, N), the number of times that each sample counts, and gives (R,): a row of ones is the
estimate, multinomial rows
are the bootstrap. Agreement with scikit-learn is tested.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.calibration import calibration_error, expected_calibration_error

Array = NDArray[np.floating]
Metrics = dict[str, Array]
ROWS_AT_A_TIME = 50


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def softmax(logits: Array) -> Array:
    """Probabilities (N, K) of logits (N, K), in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def auc(scores: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half. NaN without
    one of either."""
    order = np.argsort(scores, kind="stable")
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
    of_positives = np.add.reduceat(np.where(positive, weights, 0.0)[:, order], starts, axis=1)
    of_negatives = np.add.reduceat(np.where(positive, 0.0, weights)[:, order], starts, axis=1)
    below = np.cumsum(of_negatives, axis=1) - of_negatives / 2
    pairs = of_positives.sum(axis=1) * of_negatives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (of_positives * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of values (N,) for each row of weights."""
    return weights @ values / weights.sum(axis=1)


def log_loss(of_truth: Array, weights: Array) -> Array:
    """Mean of minus the natural logarithm of the true class's probability (N,), which is kept off 0 and 1 by the
    smallest step of a float, as scikit-learn does."""
    step = np.finfo(of_truth.dtype).eps
    return weighted_mean(-np.log(np.clip(of_truth, step, 1 - step)), weights)


def brier_score(probabilities: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Mean squared distance of the probabilities (N, K) from the truth (N, K), summed over classes (Brier 1950,
    equation 2; from 0 to 2); of two classes one is counted (from 0 to 1), as is usual."""
    distances = ((probabilities - positive) ** 2).sum(axis=1)
    return weighted_mean(distances / 2 if probabilities.shape[1] == 2 else distances, weights)


def classification_metrics(probabilities: Array, labels: NDArray[np.integer], weights: Array) -> Metrics:
    """AUC of each class against the rest, their mean, the AUC over all decisions together, accuracy, and how far the
    probabilities can be believed: log loss, Brier score, and the calibration error as others publish it."""
    num_classes = probabilities.shape[1]
    positive = labels[:, None] == np.arange(num_classes)
    by_class = [auc(probabilities[:, k], positive[:, k], weights) for k in range(num_classes)]
    correct = (probabilities.argmax(axis=1) == labels).astype(float)
    return {
        **{f"auc_{k}": value for k, value in enumerate(by_class)},
        "auc_macro": np.mean(by_class, axis=0),
        "auc_micro": auc(probabilities.ravel(), positive.ravel(), np.repeat(weights, num_classes, axis=1)),
        "accuracy": weighted_mean(correct, weights),
        "log_loss": log_loss(probabilities[np.arange(len(labels)), labels], weights),
        "brier": brier_score(probabilities, positive, weights),
        "ece": expected_calibration_error(probabilities.max(axis=1), correct, weights),
    }


def regression_metrics(predicted: Array, truth: Array, chance: float, weights: Array) -> Metrics:
    """Mean absolute and root mean square error, bias, and the mean absolute error of always saying `chance`."""
    error = predicted - truth
    return {
        "mae": weighted_mean(np.abs(error), weights),
        "rmse": np.sqrt(weighted_mean(error**2, weights)),
        "bias": weighted_mean(error, weights),
        "mae_chance": weighted_mean(np.abs(chance - truth), weights),
    }


def bootstrap_weights(num_samples: int, num_resamples: int, *, seed: int, block: int = 0) -> Array:
    """How often each sample is drawn in each resample, (R, N); `block` tells parts of one bootstrap apart."""
    generator = np.random.default_rng((seed, block, num_samples))
    return generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=num_resamples).astype(float)


def with_intervals(
    metrics: Callable[[Array], Metrics], num_samples: int, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Each metric with the 95 % percentile interval of the bootstrap over samples (Efron and Tibshirani 1993, section
    13.3)."""
    values = {name: float(row[0]) for name, row in metrics(np.ones((1, num_samples))).items()}
    draws = bootstrap_draws(metrics, num_samples, num_resamples=num_resamples, seed=seed)
    return {name: Estimate(value, *percentiles(draws[name])) for name, value in values.items()}


def bootstrap_draws(
    metrics: Callable[[Array], Metrics], num_samples: int, *, num_resamples: int = 1000, seed: int = 0
) -> Metrics:
    """Each metric on each resample of the samples (R,)."""
    parts = []
    for start in range(0, num_resamples, ROWS_AT_A_TIME):
        rows = min(ROWS_AT_A_TIME, num_resamples - start)
        parts.append(metrics(bootstrap_weights(num_samples, rows, seed=seed, block=start)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentiles(draws: Array) -> tuple[float, float]:
    """The 2.5 and 97.5 % points of those draws where the metric is defined."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def classification_report(
    probabilities: Array, labels: NDArray[np.integer], classes: tuple[str, ...], *, seed: int = 0
) -> dict[str, Any]:
    """All metrics of a classifier with intervals, under names of classes, the confusion matrix (rows: truth), and the
    calibration error as others publish it, which is too large by chance."""

    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"{(~np.isfinite(probabilities)).any(axis=1).sum()} outputs of the model are no finite numbers."
        )

    def metrics(weights: Array) -> Metrics:
        return classification_metrics(probabilities, labels, weights)

    estimates = with_intervals(metrics, len(labels), seed=seed)
    trials = perfect_trials(labels, len(classes))
    estimates = {name: widen_if_perfect(value, trials.get(name)) for name, value in estimates.items()}
    published = estimates["ece"].value
    correct = (probabilities.argmax(axis=1) == labels).astype(float)
    estimates["ece"] = Estimate(*calibration_error(probabilities.max(axis=1), correct, seed=seed))
    by_name = {f"auc_{name}": estimates.pop(f"auc_{k}") for k, name in enumerate(classes)}
    return {
        "metrics": {name: asdict(estimate) for name, estimate in (by_name | estimates).items()},
        "confusion": confusion_matrix(labels, probabilities.argmax(axis=1), len(classes)).tolist(),
        "ece_as_published": published,
    }


def perfect_trials(labels: NDArray[np.integer], num_classes: int) -> Mapping[str, int]:
    """How many independent trials each metric rests on at least: disjoint pairs of a positive and a negative, or
    samples."""
    counts = np.bincount(labels, minlength=num_classes)
    pairs = {f"auc_{k}": int(min(count, len(labels) - count)) for k, count in enumerate(counts)}
    return pairs | {"auc_macro": min(pairs.values()), "auc_micro": len(labels), "accuracy": len(labels)}


def widen_if_perfect(estimate: Estimate, num_trials: int | None) -> Estimate:
    """Where a score is exactly 1 every resample is perfect too, and the bootstrap would claim certainty.

    The lower end is then that of Clopper and Pearson (1934) for as many successes in as many trials: 0.025 ** (1 /
    trials).
    """
    if num_trials and estimate.value == 1.0:
        return Estimate(1.0, 0.025 ** (1 / num_trials), 1.0)
    return estimate


def confusion_matrix(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> NDArray[np.integer]:
    """Counts (K, K), truth by row."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def regression_report(predicted: Array, truth: Array, *, chance: float, seed: int = 0) -> dict[str, Any]:
    """All metrics of a regression with intervals."""

    def metrics(weights: Array) -> Metrics:
        return regression_metrics(predicted, truth, chance, weights)

    return {"metrics": {name: asdict(value) for name, value in with_intervals(metrics, len(truth), seed=seed).items()}}
