"""Metrics with confidence intervals. N samples, K classes, R resamples.

Every metric takes weights (R, N), the number of times that each sample is counted, and returns (R,): a row of ones
gives the estimate, multinomial rows give bootstrap resamples. Agreement with scikit-learn is tested.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from deeplense.evaluation.calibration import calibration_error, expected_calibration_error

Array = NDArray[np.floating]
Metrics = dict[str, Array]
ROWS_AT_A_TIME, ROUNDING = 50, 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def softmax(logits: Array) -> Array:
    """Return the probabilities (N, K) of logits (N, K), in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def log_odds(logits: Array) -> Array:
    """Return ln(p / (1 - p)) of the probability p of each class. It ranks images as p does, but also those whose p
    is rounded to 1.

    Args:
        logits: (N, K), finite.

    Example:
        >>> log_odds(np.array([[50.0, 0.0], [60.0, 0.0]]))[:, 0].tolist()
        [50.0, 60.0]
    """
    values = logits.astype(np.float64)
    others = [special.logsumexp(np.delete(values, k, axis=1), axis=1) for k in range(values.shape[1])]
    return values - np.stack(others, axis=1)


def auc(scores: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half. NaN if
    there are no positives or no negatives."""
    order = np.argsort(scores, kind="stable")
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
    of_positives = np.add.reduceat(np.where(positive, weights, 0.0)[:, order], starts, axis=1)
    of_negatives = np.add.reduceat(np.where(positive, 0.0, weights)[:, order], starts, axis=1)
    below = np.cumsum(of_negatives, axis=1) - of_negatives / 2
    pairs = of_positives.sum(axis=1) * of_negatives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (of_positives * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)


def tpr_at_fpr(scores: Array, positive: NDArray[np.bool_], weights: Array, rate: float) -> Array:
    """True positive rate above the lowest threshold with at most this false positive rate, which lies between two
    different scores. NaN if there are no positives or no negatives."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    true, false = (
        np.add.reduceat(np.where(kind, weights, 0.0)[:, order], starts, axis=1).cumsum(axis=1)
        for kind in (positive, ~positive)
    )
    enough = (false <= rate * false[:, -1:] + ROUNDING).sum(axis=1, keepdims=True)
    found = np.take_along_axis(true, np.maximum(enough - 1, 0), axis=1)[:, 0] * (enough[:, 0] > 0)
    known = (true[:, -1] > 0) & (false[:, -1] > 0)
    return np.where(known, found, np.nan) / np.where(known, true[:, -1], 1)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of values (N,) for each row of weights."""
    return weights @ values / weights.sum(axis=1)


def log_loss(of_truth: Array, weights: Array) -> Array:
    """Mean of minus the natural logarithm of the probability of the true class (N,), which is clipped to [eps, 1 - eps]
    as in scikit-learn."""
    step = np.finfo(of_truth.dtype).eps
    return weighted_mean(-np.log(np.clip(of_truth, step, 1 - step)), weights)


def brier_score(probabilities: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Mean squared difference between the probabilities (N, K) and the truth (N, K), summed over classes (Brier 1950,
    equation 2; from 0 to 2). For two classes, only one is counted (from 0 to 1), as is usual."""
    distances = ((probabilities - positive) ** 2).sum(axis=1)
    return weighted_mean(distances / 2 if probabilities.shape[1] == 2 else distances, weights)


@dataclass(frozen=True)
class Classified:
    """Probabilities (N, K) of samples, their labels (N,), and resamples of them: weights (R, N)."""

    probabilities: Array
    labels: NDArray[np.integer]
    weights: Array

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Whether each sample is of each class, (N, K)."""
        return self.labels[:, None] == np.arange(self.probabilities.shape[1])

    @cached_property
    def correct(self) -> Array:
        """1 for each sample whose most probable class is the true one, else 0, (N,)."""
        return (self.probabilities.argmax(axis=1) == self.labels).astype(float)

    @cached_property
    def auc_by_class(self) -> list[Array]:
        """AUC of each class against the rest, (R,) each."""
        scores, positive = self.probabilities.T, self.positive.T
        return [auc(*pair, self.weights) for pair in zip(scores, positive, strict=True)]


def auc_of_all(found: Classified) -> Array:
    """Micro-averaged AUC, over all pairs of sample and class."""
    weights = np.repeat(found.weights, found.probabilities.shape[1], axis=1)
    return auc(found.probabilities.ravel(), found.positive.ravel(), weights)


CLASSIFICATION: Mapping[str, Callable[[Classified], Array]] = {
    "auc_macro": lambda found: np.mean(found.auc_by_class, axis=0),
    "auc_micro": auc_of_all,
    "accuracy": lambda found: weighted_mean(found.correct, found.weights),
    "log_loss": lambda found: log_loss(found.probabilities[np.arange(len(found.labels)), found.labels], found.weights),
    "brier": lambda found: brier_score(found.probabilities, found.positive, found.weights),
    "ece": lambda found: expected_calibration_error(found.probabilities.max(axis=1), found.correct, found.weights),
}
"""The metrics of a classification by name, (R,) each. A new one is a function and a line here."""


def classification_metrics(probabilities: Array, labels: NDArray[np.integer], weights: Array) -> Metrics:
    """AUC of each class against the rest, and all metrics of `CLASSIFICATION`, (R,) each.

    Args:
        probabilities: (N, K), each row with the sum 1.
        labels: (N,), from 0 to K - 1.
        weights: (R, N), number of times that each sample occurs in each resample; ones (1, N) for the samples
            themselves.
    """
    found = Classified(probabilities, labels, weights)
    by_class = {f"auc_{k}": value for k, value in enumerate(found.auc_by_class)}
    return by_class | {name: metric(found) for name, metric in CLASSIFICATION.items()}


def auc_names(classes: Sequence[str]) -> list[str]:
    """Return the name of the metric AUC of each class. A class that is called like a metric of all classes gets another
    name.

    Args:
        classes: names of the classes.

    Example:
        >>> auc_names(["cdm", "macro"])
        ['auc_cdm', 'auc_class_macro']
    """
    return [f"auc_class_{name}" if f"auc_{name}" in CLASSIFICATION else f"auc_{name}" for name in classes]


@dataclass(frozen=True)
class Regressed:
    """Predictions (N,) of samples, the truth (N,), the best constant guess, and resamples: weights (R, N)."""

    predicted: Array
    truth: Array
    chance: float
    weights: Array

    @cached_property
    def error(self) -> Array:
        """Predicted minus true, (N,)."""
        return self.predicted - self.truth


REGRESSION: Mapping[str, Callable[[Regressed], Array]] = {
    "mae": lambda found: weighted_mean(np.abs(found.error), found.weights),
    "rmse": lambda found: np.sqrt(weighted_mean(found.error**2, found.weights)),
    "bias": lambda found: weighted_mean(found.error, found.weights),
    "mae_chance": lambda found: weighted_mean(np.abs(found.chance - found.truth), found.weights),
}
"""The metrics of a regression by name, (R,) each: mean absolute and root mean square error, bias, and the mean absolute
error of the constant guess. A new one is a function and a line here."""


def regression_metrics(predicted: Array, truth: Array, chance: float, weights: Array) -> Metrics:
    """All metrics of `REGRESSION`, (R,) each.

    Args:
        predicted: (N,).
        truth: (N,), in the same unit.
        chance: the constant that a model without images would predict.
        weights: (R, N), number of times that each sample occurs in each resample.
    """
    found = Regressed(predicted, truth, chance, weights)
    return {name: metric(found) for name, metric in REGRESSION.items()}


def bootstrap_weights(num_samples: int, num_resamples: int, *, seed: int, block: int = 0) -> Array:
    """Number of times that each sample occurs in each bootstrap resample, (R, N); `block` distinguishes the parts of
    one bootstrap."""
    generator = np.random.default_rng((seed, block, num_samples))
    return generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=num_resamples).astype(float)


def with_intervals(
    metrics: Callable[[Array], Metrics], num_samples: int, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Compute each metric with its 95 % percentile interval from the bootstrap over samples (Efron and Tibshirani 1993,
    section 13.3)."""
    values = {name: float(row[0]) for name, row in metrics(np.ones((1, num_samples))).items()}
    draws = bootstrap_draws(metrics, num_samples, num_resamples=num_resamples, seed=seed)
    return {name: Estimate(value, *percentiles(draws[name])) for name, value in values.items()}


def bootstrap_draws(
    metrics: Callable[[Array], Metrics], num_samples: int, *, num_resamples: int = 1000, seed: int = 0
) -> Metrics:
    """Compute each metric on each bootstrap resample, (R,)."""
    parts = []
    for start in range(0, num_resamples, ROWS_AT_A_TIME):
        rows = min(ROWS_AT_A_TIME, num_resamples - start)
        parts.append(metrics(bootstrap_weights(num_samples, rows, seed=seed, block=start)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentiles(draws: Array) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % quantiles of the resamples for which the metric is defined."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def classification_report(
    probabilities: Array, labels: NDArray[np.integer], classes: tuple[str, ...], *, seed: int = 0
) -> dict[str, Any]:
    """Return all metrics of a classifier with intervals, by class name, the confusion matrix (rows: true class), and
    the usual expected calibration error, which is biased upwards for finite samples."""

    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"{(~np.isfinite(probabilities)).any(axis=1).sum()} outputs of the model are not finite; check the run."
        )

    def metrics(weights: Array) -> Metrics:
        return classification_metrics(probabilities, labels, weights)

    estimates = with_intervals(metrics, len(labels), seed=seed)
    trials = perfect_trials(labels, len(classes))
    estimates = {name: widen_if_perfect(value, trials.get(name)) for name, value in estimates.items()}
    published = estimates["ece"].value
    correct = (probabilities.argmax(axis=1) == labels).astype(float)
    estimates["ece"] = Estimate(*calibration_error(probabilities.max(axis=1), correct, seed=seed))
    by_class = [estimates.pop(f"auc_{k}") for k in range(len(classes))]
    named = dict(zip(auc_names(classes), by_class, strict=True)) | estimates
    return {
        "metrics": {name: asdict(estimate) for name, estimate in named.items()},
        "confusion": confusion_matrix(labels, probabilities.argmax(axis=1), len(classes)).tolist(),
        "ece_as_published": published,
    }


def perfect_trials(labels: NDArray[np.integer], num_classes: int) -> Mapping[str, int]:
    """Return the minimum number of independent trials behind each metric: disjoint pairs of a positive and a negative,
    or samples."""
    counts = np.bincount(labels, minlength=num_classes)
    pairs = {f"auc_{k}": int(min(count, len(labels) - count)) for k, count in enumerate(counts)}
    return pairs | {"auc_macro": min(pairs.values()), "auc_micro": len(labels), "accuracy": len(labels)}


def widen_if_perfect(estimate: Estimate, num_trials: int | None) -> Estimate:
    """Replace the lower end of the interval if a score is exactly 1, because then all bootstrap resamples are 1 too.

    The lower end is then that of Clopper and Pearson (1934) for only successes: 0.025 ** (1 / trials).
    """
    if num_trials and estimate.value == 1.0:
        return Estimate(1.0, 0.025 ** (1 / num_trials), 1.0)
    return estimate


def confusion_matrix(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> NDArray[np.integer]:
    """Return the confusion matrix (K, K) of counts; rows are true classes."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def regression_report(predicted: Array, truth: Array, *, chance: float, seed: int = 0) -> dict[str, Any]:
    """Return all metrics of a regression with intervals."""

    def metrics(weights: Array) -> Metrics:
        return regression_metrics(predicted, truth, chance, weights)

    return {"metrics": {name: asdict(value) for name, value in with_intervals(metrics, len(truth), seed=seed).items()}}
