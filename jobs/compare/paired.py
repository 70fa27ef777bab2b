"""Paired differences of the metrics of two runs, from the predictions of their reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplense.evaluation.comparison import Scores, difference, score_classes, score_numbers
from deeplense.evaluation.metrics import Estimate, softmax
from deeplense.evaluation.report import PREDICTIONS
from deeplense.files import read_json
from jobs.runs.stored import DOCUMENT
from jobs.settings import require


@dataclass(frozen=True)
class Paired:
    """Differences of metrics by name, on `num_images` images."""

    differences: Mapping[str, Estimate]
    num_images: int


@dataclass(frozen=True)
class Predicted:
    """The predictions of a report: the images (n,) by index, what was predicted for them, and the truth."""

    subject: Mapping[str, object]
    classes: tuple[str, ...]
    target: str
    outputs: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    indices: np.ndarray
    chance: float
    num_samples: int


def paired_differences(first: Path, other: Path) -> Paired | str:
    """Return the differences of the metrics of two reports, other minus first, on the images that both have; or why
    they cannot be compared.

    Args:
        first: folder of a report.
        other: folder of a report.
    """
    lacking = [folder for folder in (first, other) if not (folder / PREDICTIONS).is_file()]
    if lacking:
        return f"no report: {', '.join(map(str, lacking))}"
    ours, theirs = read_predictions(first), read_predictions(other)
    for name, what in (("subject", "other images"), ("classes", "other classes"), ("target", "another target")):
        if getattr(ours, name) != getattr(theirs, name):
            return f"the two reports are on {what}"
    common = np.intersect1d(ours.indices, theirs.indices)
    if not len(common):
        return "no image is held out for both runs"
    scores = [scores_on(each, common) for each in (theirs, ours)]
    found = {
        name: difference({0: scores[0]}, {0: scores[1]}, name) for name in scores[0].values if name != "mae_chance"
    }
    return Paired({name: value for name, value in found.items() if value is not None}, len(common))


def read_predictions(folder: Path) -> Predicted:
    """Read the predictions of a report. Raises ValueError if they are not those of a trained run."""
    document = read_json(folder / DOCUMENT)
    require(
        isinstance(document, dict) and "of" in document, f"{folder} is a report of an older version; evaluate again."
    )
    with np.load(folder / PREDICTIONS, allow_pickle=False) as stored:
        classes = tuple(document.get("classes", ()))
        return Predicted(
            subject=document["of"],
            classes=classes,
            target="class" if classes else str(document.get("settings", {}).get("target", "")),
            outputs=stored["outputs"],
            labels=stored["labels"],
            truth=stored["target"],
            indices=stored["indices"],
            chance=float(stored["chance"]),
            num_samples=int(stored["num_samples"]),
        )


def scores_on(predicted: Predicted, images: np.ndarray) -> Scores:
    """Return the metrics on these images, with their values on each resample."""
    kept = np.isin(predicted.indices, images)
    outputs, indices, size = predicted.outputs[kept], predicted.indices[kept], predicted.num_samples
    if predicted.classes:
        labels = predicted.labels[kept]
        return score_classes(softmax(outputs), labels, indices, classes=predicted.classes, num_samples=size)
    numbers, truth = outputs[:, 0].astype(float), predicted.truth[kept].astype(float)
    return score_numbers(numbers, truth, indices, chance=predicted.chance, num_samples=size)
