"""Combine the metrics of several trainings of one model, and compare models. S trainings (seeds), R resamples of the
images.

The metric of a training depends on its seed and on the test images. The interval of the mean over the seeds covers
both: Student's interval over the seeds and the bootstrap interval over the images are combined by the method of
variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27, equation 5). The bootstrap uses the same
resamples of images for all trainings, so that differences are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deeplense.evaluation.metrics import (
    Array,
    Estimate,
    Metrics,
    auc_names,
    bootstrap_draws,
    classification_metrics,
    log_odds,
    percentiles,
    perfect_trials,
    regression_metrics,
    softmax,
    tpr_at_fpr,
    widen_if_perfect,
)

BOUNDS: Mapping[str, tuple[float, float]] = {
    "mae": (0.0, np.inf),
    "mae_chance": (0.0, np.inf),
    "gain": (-np.inf, np.inf),
    "log_loss": (0.0, np.inf),
    "brier": (0.0, 2.0),
}
"""The bounds of metrics that are not limited to 0 and 1."""
OVERALL = ("auc_macro", "accuracy", "log_loss", "brier")
RATES, LEAST_EXPECTED = (1e-2, 1e-3), 10
"""False positive rates of comparisons, and the number of false positives that must be expected at a rate: with fewer,
resamples do not tell how uncertain the true positive rate is."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one training on `num_images` images: each value, its values on the resamples of the images (R,),
    and, for metrics that can be perfect, the number of independent trials."""

    values: Mapping[str, float]
    draws: Mapping[str, Array]
    trials: Mapping[str, int]
    num_images: int


def score_classes(
    probabilities: Array,
    labels: NDArray[np.integer],
    indices: NDArray[np.integer],
    *,
    classes: Sequence[str],
    num_samples: int,
    scores: Array | None = None,
) -> Scores:
    """Compute AUC per class, mean AUC, accuracy, log loss, Brier score and true positive rates of one training, on the
    samples with these indices of a split of `num_samples`. Resamples are always of the whole split, whichever samples
    were predicted. `scores` rank the samples in place of the probabilities, which may be rounded to 1."""
    ranking = probabilities if scores is None else scores
    rates = {name: (k, rate) for rate in RATES for k, name in rate_names(labels, classes, rate).items()}

    def metrics(weights: Array) -> Metrics:
        found = classification_metrics(probabilities, labels, weights)
        kept = {name: found[f"auc_{k}"] for k, name in enumerate(auc_names(classes))}
        kept |= {name: found[name] for name in OVERALL}
        return kept | {name: tpr_at_fpr(ranking[:, k], labels == k, weights, rate) for name, (k, rate) in rates.items()}

    trials = perfect_trials(labels, len(classes))
    by_name = {name: trials[f"auc_{k}"] for k, name in enumerate(auc_names(classes))}
    by_name |= {name: trials[f"auc_{k}"] for name, (k, _) in rates.items()}
    return score(metrics, indices, num_samples, by_name | {name: trials[name] for name in OVERALL if name in trials})


def rate_names(labels: NDArray[np.integer], classes: Sequence[str], rate: float) -> dict[int, str]:
    """Return the name of the true positive rate at a false positive rate, by the number of the class, for each class
    with enough images of other classes.

    Args:
        labels: indices of the true classes, (N,).
        classes: names of the classes.
        rate: false positive rate.

    Example:
        >>> rate_names(np.repeat([0, 1], [1000, 100]), ["other", "lens"], 0.01)
        {1: 'tpr_at_fpr_0.01_lens'}
    """
    counts = np.bincount(labels, minlength=len(classes))
    others = len(labels) - counts
    return {
        k: f"tpr_at_fpr_{rate:g}_{name}"
        for k, name in enumerate(classes)
        if counts[k] and others[k] * rate >= LEAST_EXPECTED
    }


def score_numbers(
    predicted: Array, truth: Array, indices: NDArray[np.integer], *, chance: float, num_samples: int
) -> Scores:
    """Compute the mean absolute error of one training, that of the constant guess `chance`, and the gain over it."""

    def metrics(weights: Array) -> Metrics:
        found = regression_metrics(predicted, truth, chance, weights)
        return {name: found[name] for name in ("mae", "mae_chance")} | {"gain": found["mae_chance"] - found["mae"]}

    return score(metrics, indices, num_samples, {})


@dataclass(frozen=True)
class Predicted:
    """What one training predicted for n samples of a split of `num_samples`.

    Args:
        outputs: logits (n, K), or numbers (n, 1).
        labels: indices of the true classes, (n,).
        truth: true numbers, (n,).
        indices: numbers of the samples in the split, (n,).
        num_samples: number of samples of the split.
        chance: the best constant guess of a number.
    """

    outputs: Array
    labels: NDArray[np.integer]
    truth: Array
    indices: NDArray[np.integer]
    num_samples: int
    chance: float = 0.0

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "Predicted":
        """Return the predictions in the arrays of `predictions.npz` of a report."""
        names = {"outputs": "outputs", "labels": "labels", "truth": "target", "indices": "indices"}
        columns = {name: arrays[stored] for name, stored in names.items()}
        chance = float(arrays["chance"]) if "chance" in arrays else 0.0
        return cls(**columns, num_samples=int(arrays["num_samples"]), chance=chance)


def score_predictions(predicted: Predicted, images: NDArray[np.integer], classes: Sequence[str]) -> Scores:
    """Compute the metrics of one training on some of the images that it predicted.

    Args:
        predicted: the predictions.
        images: numbers of the samples in the split, (m,).
        classes: names of the classes; empty for a regression.
    """
    kept = np.isin(predicted.indices, images)
    outputs, indices, size = predicted.outputs[kept], predicted.indices[kept], predicted.num_samples
    if classes:
        return score_classes(
            softmax(outputs),
            predicted.labels[kept],
            indices,
            classes=classes,
            num_samples=size,
            scores=log_odds(outputs),
        )
    numbers, truth = outputs[:, 0].astype(float), predicted.truth[kept].astype(float)
    return score_numbers(numbers, truth, indices, chance=predicted.chance, num_samples=size)


def score(
    metrics: Callable[[Array], Metrics], indices: NDArray[np.integer], num_samples: int, trials: Mapping[str, int]
) -> Scores:
    """Compute metrics on some samples of a split, and on each resample of the split."""
    values = {name: float(row[0]) for name, row in metrics(np.ones((1, len(indices)))).items()}
    return Scores(
        values, bootstrap_draws(lambda weights: metrics(weights[:, indices]), num_samples), trials, len(indices)
    )


def over_seeds(scores: Sequence[Scores], name: str) -> Estimate:
    """Return the mean of a metric over trainings with different seeds, with its 95 % interval; with a single training,
    the interval covers only the images."""
    values, draws = np.array([each.values[name] for each in scores]), [each.draws[name] for each in scores]
    value = float(values.mean())
    images = widen_if_perfect(Estimate(value, *percentiles(np.mean(draws, axis=0))), scores[0].trials.get(name))
    return put_together(images, seeds_half_width(values), bounds=BOUNDS.get(name, (0.0, 1.0)))


def difference(ours: Mapping[int, Scores], other: Mapping[int, Scores], name: str) -> Estimate | None:
    """Return the difference of a metric between two models, ours minus other, with its 95 % interval, on the same
    images and over the common seeds; None if there are no common seeds."""
    seeds = sorted(set(ours) & set(other))
    if not seeds:
        return None
    values = np.array([ours[seed].values[name] - other[seed].values[name] for seed in seeds])
    draws = np.mean([ours[seed].draws[name] - other[seed].draws[name] for seed in seeds], axis=0)
    images = Estimate(float(values.mean()), *percentiles(draws))
    low, high = BOUNDS.get(name, (0.0, 1.0))
    return put_together(images, seeds_half_width(values), bounds=(low - high, high - low))


def seeds_half_width(values: Array) -> float:
    """Half width of Student's 95 % interval of the mean of values (S,); 0 for one value, whose spread is unknown."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def put_together(images: Estimate, half_width: float, *, bounds: tuple[float, float]) -> Estimate:
    """Widen an interval on both sides by a second, independent source of error, within the bounds of the metric."""
    below, above = max(images.value - images.low, 0.0), max(images.high - images.value, 0.0)
    low, high = images.value - float(np.hypot(below, half_width)), images.value + float(np.hypot(above, half_width))
    return Estimate(images.value, max(low, bounds[0]), min(high, bounds[1]))
