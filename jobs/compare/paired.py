"""Paired differences of the metrics of two runs, from the predictions of their reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplense.evaluation.comparison import Predicted, difference, score_predictions
from deeplense.evaluation.metrics import Estimate
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
class Report:
    """A report: which samples it is on, the classes (none for a regression), the target, and the predictions."""

    subject: Mapping[str, object]
    classes: tuple[str, ...]
    target: str
    predicted: Predicted


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
    ours, theirs = read_report(first), read_report(other)
    for name, what in (("subject", "other images"), ("classes", "other classes"), ("target", "another target")):
        if getattr(ours, name) != getattr(theirs, name):
            return f"the two reports are on {what}"
    common = np.intersect1d(ours.predicted.indices, theirs.predicted.indices)
    if not len(common):
        return "no image is held out for both runs"
    scores = [score_predictions(each.predicted, common, each.classes) for each in (theirs, ours)]
    found = {
        name: difference({0: scores[0]}, {0: scores[1]}, name) for name in scores[0].values if name != "mae_chance"
    }
    return Paired({name: value for name, value in found.items() if value is not None}, len(common))


def read_report(folder: Path) -> Report:
    """Read a report. Raises ValueError if it is not one of a trained run."""
    document = read_json(folder / DOCUMENT)
    known = isinstance(document, dict) and "of" in document
    require(known, f"{folder} is a report of an older version; evaluate the run again.")
    classes = tuple(document.get("classes", ()))
    target = "class" if classes else str(document.get("settings", {}).get("target", ""))
    with np.load(folder / PREDICTIONS, allow_pickle=False) as stored:
        return Report(document["of"], classes, target, Predicted.of(stored))
