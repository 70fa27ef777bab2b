"""The table of models: one row for each model on each data set, from what is finished; written anew after each run."""

import csv
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deeplense.evaluation.comparison import Scores, difference, over_seeds, score_classes, score_numbers
from deeplense.evaluation.metrics import Estimate, softmax
from deeplense.evaluation.report import PREDICTIONS
from deeplense.files import read_json, replacing
from jobs.attempts import ATTEMPTS, read_attempts
from jobs.comparing.trials import Trial
from jobs.config import require

Rows = TypeVar("Rows")
DRAWS = "resamples.npz"
KINDS = ("values", "draws", "trials")


@dataclass
class Row:
    """A model on a data set, over its seeds. `best` is the one that the differences are to; `change` is the difference
    to the same model without what was added to the data set."""

    model: str
    dataset: str
    kind: str
    target: str
    seeds: list[int]
    num_seeds: int
    num_images: int = 0
    metrics: dict[str, Estimate] = field(default_factory=dict)
    difference: Estimate | None = None
    change: Estimate | None = None
    best: bool = False
    above_chance: bool | None = None
    costs: dict[str, Any] = field(default_factory=dict)
    train_seconds: float | None = None
    published: list[dict[str, str]] = field(default_factory=list)
    problem: str = ""

    @property
    def published_here(self) -> list[dict[str, str]]:
        """What was published of the model on images of this kind."""
        return [one for one in self.published if one["dataset"] == self.kind]

    @property
    def main(self) -> str:
        """The metric by which models are ranked."""
        return "auc_macro" if self.target == "class" else "mae"

    @property
    def rank(self) -> tuple[float, str]:
        """Smallest for the best; models without a number come last."""
        found = self.metrics.get(self.main)
        value = np.inf if found is None else found.value if self.main == "mae" else -found.value
        return value, self.model


def until_settled(trials: Sequence[Trial], write: Callable[[], Rows]) -> Rows:
    """Write a table; once more where another process has finished a run meanwhile, so that the last to write has seen
    all."""
    while True:
        seen = state_of(trials)
        rows = write()
        if state_of(trials) == seen:
            return rows


def state_of(trials: Sequence[Trial]) -> list[int]:
    """What changes whenever a run begins, ends or is evaluated."""
    paths = [trial.report / PREDICTIONS for trial in trials]
    paths += [training.run / ATTEMPTS for trial in trials for training in trial.trainings]
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


def make_rows(output: Path, trials: Sequence[Trial]) -> list[Row]:
    """All rows, data set by data set, the best model first."""
    rows: list[Row] = []
    in_order = sorted(trials, key=lambda trial: trial.data.name)
    for _, found in groupby(in_order, key=lambda trial: trial.data.name):
        of_data = list(found)
        models = list(dict.fromkeys(trial.model for trial in of_data))
        rows += rows_of_data(output, [[trial for trial in of_data if trial.model == model] for model in models])
    for row in rows:
        row.change = change_of(row, trials)
    return rows


def change_of(row: Row, trials: Sequence[Trial]) -> Estimate | None:
    """How much more a model has than without what was added to its data set; None where nothing was, or where that is
    not known."""
    ours = [trial for trial in trials if (trial.model, trial.data.name) == (row.model, row.dataset)]
    if not ours[0].data.added:
        return None
    alone = [each for each in trials if each.model == row.model and each.data.learnt_from == ours[0].data.given]
    common = common_images([*ours, *alone])
    scores = [{each.seed: scores_of(each, common) for each in some if each.is_evaluated} for some in (ours, alone)]
    return difference(scores[0], scores[1], row.main)


def rows_of_data(output: Path, by_model: Sequence[Sequence[Trial]]) -> list[Row]:
    """The rows of one data set, the best model first, from the trials of each model."""
    common = common_images([trial for of in by_model for trial in of])
    scores = {
        of[0].model: {trial.seed: scores_of(trial, common) for trial in of if trial.is_evaluated} for of in by_model
    }
    rows = sorted((make_row(output, of, scores[of[0].model]) for of in by_model), key=lambda row: row.rank)
    best = rows[0]
    best.best = bool(best.metrics)
    for row in rows[1:] if best.best else ():
        row.difference = difference(scores[row.model], scores[best.model], row.main)
    return rows


def make_row(output: Path, trials: Sequence[Trial], scores: Mapping[int, Scores]) -> Row:
    """One row, as far as its trials are done."""
    first = trials[0]
    data = first.data
    row = Row(first.model, data.name, data.kind, first.target, sorted(scores), len(trials))
    row.problem = "; ".join(text for trial in trials for text in problems_of(trial))
    row.published = published(first.model, first.target)
    path = costs_file(output, first)
    row.costs = read_json(path) if path.exists() else {}
    seconds = [each for trial in trials if trial.is_trained for each in seconds_of(trial)]
    row.train_seconds = float(np.mean(seconds)) if seconds else None
    if scores:
        found = list(scores.values())
        row.metrics = {name: over_seeds(found, name) for name in found[0].values}
        row.num_images = found[0].num_images
        row.above_chance = row.metrics["gain"].low > 0 if row.main == "mae" else row.metrics["auc_macro"].low > 0.5
    return row


def common_images(trials: Sequence[Trial]) -> np.ndarray | None:
    """The images that all evaluations of some trials are of, by their numbers; None where nothing is evaluated. Runs
    may have seen different ones, and only on the same images can they be compared. Raises ValueError where there is no
    such image."""
    predicted = [predicted_by(trial) for trial in trials if trial.is_evaluated]
    if not predicted:
        return None
    found = functools.reduce(np.intersect1d, predicted)
    require(len(found) > 0, f"each test image of {trials[0].data.name} was seen by a run of the table; test on others.")
    return found


def predicted_by(trial: Trial) -> np.ndarray:
    """The images that an evaluation is of, by their numbers."""
    with np.load(trial.report / PREDICTIONS) as stored:
        return stored["indices"]


def scores_of(trial: Trial, common: np.ndarray | None = None) -> Scores:
    """The metrics of a trial on each resample, on all its images or those that are `common`; they are kept beside its
    predictions, and go when these do."""
    path = trial.report / DRAWS
    images = predicted_by(trial) if common is None else common
    if not path.exists() or not are_of(path, images):
        found = compute_scores(trial, images)
        columns = {f"{kind}/{name}": value for kind in KINDS for name, value in getattr(found, kind).items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, num_images=found.num_images, images=np.sort(images), **columns)
    with np.load(path) as stored:
        values, draws, trials = (
            {n.partition("/")[2]: stored[n] for n in stored if n.startswith(f"{k}/")} for k in KINDS
        )
        floats, counts = {k: float(v) for k, v in values.items()}, {k: int(v) for k, v in trials.items()}
        return Scores(floats, draws, counts, int(stored["num_images"]))


def are_of(path: Path, images: np.ndarray) -> bool:
    """Whether metrics that are kept are of these images; those of older versions are of all that were predicted."""
    with np.load(path) as stored:
        if "images" not in stored:
            return int(stored["num_images"]) == len(images)
        return np.array_equal(stored["images"], np.sort(images))


def compute_scores(trial: Trial, images: np.ndarray) -> Scores:
    """The metrics of a trial from its predictions for these images."""
    with np.load(trial.report / PREDICTIONS) as stored:
        kept = np.isin(stored["indices"], images)
        outputs, indices, num_samples = stored["outputs"][kept], stored["indices"][kept], int(stored["num_samples"])
        if trial.target != "class":
            predicted, truth, chance = (
                outputs[:, 0].astype(float),
                stored["target"][kept].astype(float),
                float(stored["chance"]),
            )
            return score_numbers(predicted, truth, indices, chance=chance, num_samples=num_samples)
        classes, labels = trial.data.held_out.schema.classes, stored["labels"][kept]
        return score_classes(softmax(outputs), labels, indices, classes=classes, num_samples=num_samples)


def problems_of(trial: Trial) -> list[str]:
    """What is missing of a trial, and why, each with its seed."""
    if trial.is_evaluated:
        return []
    missing = [training for training in trial.trainings if not training.is_done] or trial.trainings[:1]
    ends = {training.name: ends_of(training.run) for training in missing}
    return [f"seed {trial.seed}{name.removeprefix(trial.name).replace('-', ' ')}: {end}" for name, end in ends.items()]


def ends_of(run: Path) -> str:
    """How the last attempt at a run ended."""
    attempts = read_attempts(run)
    return str(attempts[-1]["ended"] or "under way") if attempts else "not begun"


def seconds_of(trial: Trial) -> list[float]:
    """How long each run of a trial took, over all attempts; without those of which an attempt was killed."""
    of_runs = [[each for each in read_attempts(one.run) if each["first_step"] is not None] for one in trial.trainings]
    known = [attempts for attempts in of_runs if attempts and all("seconds" in each for each in attempts)]
    return [sum(each["seconds"] for each in attempts) for attempts in known]


def costs_file(output: Path, trial: Trial) -> Path:
    """Where it is kept what the trainings of a trial cost."""
    return output / "costs" / f"{trial.model}-{trial.data.name}.json"


def published(model: str, target: str) -> list[dict[str, str]]:
    """What others have published of a model, on whatever images."""
    text = resources.files("jobs.comparing").joinpath("published.csv").read_text()
    return [row for row in csv.DictReader(io.StringIO(text)) if row["model"] == model and row["target"] == target]
