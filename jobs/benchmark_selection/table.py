"""The table of `deeplense benchmark selection`: the weights selected by each rule, judged on held-out images, from all
existing curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.evaluation.comparison import Scores, difference, over_seeds, score
from deeplense.evaluation.metrics import Array, Estimate, Metrics, classification_metrics, softmax, weighted_mean
from deeplense.evaluation.selection import RULES, Curve, log_loss
from deeplense.files import replacing
from jobs.trials.forms import with_ends, write_csv

MEAN_OF_WEIGHTS = "running mean of the weights"
METRICS = {"auc_macro": "AUC", "accuracy": "accuracy", "ece": "calibration error", "log_loss": "log loss"}
LOWER = ("ece", "log_loss")
TINY = 1e-12
WORST = 0.9
"""A rule fails a case if its accuracy is below this fraction of the best rule's."""


@dataclass
class Line:
    """A rule in a case: its metrics over the seeds, and their differences to the rule with the best accuracy."""

    case: str
    rule: str
    num_seeds: int
    num_train: int
    num_val: int
    rarest_val: int
    metrics: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    lowest_share: float = 1.0
    """accuracy as a fraction of that of the best rule, for the worst seed"""


def write_table(output: Path) -> list[str]:
    """Write the table of all curves as CSV and Markdown, and return the lines of the Markdown."""
    lines = [line for case, paths in curves_in(output).items() for line in lines_of(case, paths)]
    write_csv(output / "selection.csv", [as_values(line) for line in lines])
    text = markdown(lines)
    with replacing(output / "selection.md") as temporary:
        temporary.write_text("\n".join(text) + "\n")
    return text


def curves_in(output: Path) -> dict[str, dict[int, Path]]:
    """Return the files of curves, by case and seed."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((output / "curves").glob("*.npz")):
        case, _, seed = path.stem.rpartition("-")
        found.setdefault(case, {})[int(seed)] = path
    return found


def lines_of(case: str, paths: Mapping[int, Path]) -> list[Line]:
    """Return the lines of one case, one per rule."""
    scores: dict[str, dict[int, Scores]] = {}
    for seed, path in paths.items():
        for rule, found in scores_of(path).items():
            scores.setdefault(rule, {})[seed] = found
    accuracy = {rule: np.mean([each.values["accuracy"] for each in found.values()]) for rule, found in scores.items()}
    best = max(accuracy, key=lambda rule: accuracy[rule])
    with np.load(next(iter(paths.values()))) as stored:
        train, val = stored["train_counts"].sum(), np.bincount(stored["val_labels"])
    return [
        Line(
            case,
            rule,
            len(found),
            int(train),
            int(val.sum()),
            int(val.min()),
            {name: over_seeds(list(found.values()), name) for name in METRICS},
            {name: change for name in METRICS if (change := difference(found, scores[best], name)) and rule != best},
            min(found[seed].values["accuracy"] / scores[best][seed].values["accuracy"] for seed in found),
        )
        for rule, found in scores.items()
    ]


def scores_of(path: Path) -> dict[str, Scores]:
    """Return the held-out scores of the weights that each rule selects in one training."""
    with np.load(path) as stored:
        curve, held, labels = curve_of(stored), stored["held_outputs"], stored["held_labels"]
        mean = stored["mean_outputs"]

    @cache
    def judged(number: int) -> Scores:
        return judge(softmax(held[number] if number >= 0 else mean), labels)

    return {rule: judged(choose(curve)) for rule, choose in RULES.items()} | {MEAN_OF_WEIGHTS: judged(-1)}


def curve_of(stored: Mapping[str, Any]) -> Curve:
    """Return the validation results of the evaluations of a training."""
    labels, outputs = stored["val_labels"], stored["val_outputs"]
    weights, losses = np.ones((1, len(labels))), [log_loss(each, labels) for each in outputs]
    return Curve(
        scores=np.array([classification_metrics(softmax(each), labels, weights)["auc_macro"][0] for each in outputs]),
        log_losses=np.array([loss.mean for loss in losses]),
        errors=np.array([loss.error for loss in losses]),
    )


def judge(probabilities: Array, labels: np.ndarray) -> Scores:
    """Return the metrics of one training, and their values on each resample of the images."""
    return score(metrics_of(probabilities, labels), np.arange(len(labels)), len(labels), {})


def metrics_of(probabilities: Array, labels: np.ndarray) -> Any:
    """Return the metrics as a function of the weights of the images."""
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY))

    def metrics(weights: Array) -> Metrics:
        return classification_metrics(probabilities, labels, weights) | {"log_loss": weighted_mean(losses, weights)}

    return metrics


def as_values(line: Line) -> dict[str, Any]:
    """Return a row of the CSV file."""
    told = {name: getattr(line, name) for name in ("case", "rule", "num_seeds", "num_train", "num_val", "rarest_val")}
    changes = {f"{name}_minus_best": change for name, change in line.differences.items()}
    return told | with_ends(line.metrics) | with_ends(changes) | {"lowest_share_of_accuracy": line.lowest_share}


def markdown(lines: Sequence[Line]) -> list[str]:
    """Return the lines of a Markdown table: accuracy with its difference to the best, other metrics without
    intervals."""
    text = [
        "| case (training / validation images) | rule | AUC | accuracy | accuracy minus the best rule's | "
        "calibration error | log loss | lowest fraction of best accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        numbers = [f"{line.metrics[name].value:.3f}" for name in METRICS]
        change = line.differences.get("accuracy")
        told = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" if change else "best"
        case = f"{line.case} ({line.num_train} / {line.num_val}), {line.num_seeds} seeds"
        cells = [case, line.rule, *numbers[:2], told, *numbers[2:], f"{line.lowest_share:.2f}"]
        text.append(f"| {' | '.join(cells)} |")
    return text
