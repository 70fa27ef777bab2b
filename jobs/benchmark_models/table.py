"""The table of models: one row per model and data set, from the finished runs; rewritten after each run."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.evaluation.comparison import Scores, difference, over_seeds
from deeplense.evaluation.metrics import Estimate
from deeplense.files import read_json
from jobs.trials.scores import common_images, problems_of, scores_of, seconds_of
from jobs.trials.trials import Trial


@dataclass
class Row:
    """A model on a data set, over its seeds. `best` marks the model that differences refer to; `change` is the
    difference to the same model without the data that were added to the data set."""

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
        """The published numbers of the model on images of this kind."""
        return [one for one in self.published if one["dataset"] == self.kind]

    @property
    def main(self) -> str:
        """The metric by which models are ranked."""
        return "auc_macro" if self.target == "class" else "mae"

    @property
    def rank(self) -> tuple[float, str]:
        """The sort key: smallest for the best model; models without a number come last."""
        found = self.metrics.get(self.main)
        value = np.inf if found is None else found.value if self.main == "mae" else -found.value
        return value, self.model


def make_rows(output: Path, trials: Sequence[Trial]) -> list[Row]:
    """Return all rows, data set by data set, the best model first."""
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
    """Return the difference to the same model without the added data; None if no data were added, or if it is not known
    yet."""
    ours = [trial for trial in trials if (trial.model, trial.data.name) == (row.model, row.dataset)]
    if not ours[0].data.added:
        return None
    alone = [each for each in trials if each.model == row.model and each.data.learnt_from == ours[0].data.given]
    common = common_images([*ours, *alone])
    scores = [{each.seed: scores_of(each, common) for each in some if each.is_evaluated} for some in (ours, alone)]
    return difference(scores[0], scores[1], row.main)


def rows_of_data(output: Path, by_model: Sequence[Sequence[Trial]]) -> list[Row]:
    """Return the rows of one data set from the trials of each model, the best model first."""
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
    """Return one row from the finished trials."""
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


def costs_file(output: Path, trial: Trial) -> Path:
    """Return the file of the measured cost of a trial."""
    return output / "costs" / f"{trial.model}-{trial.data.name}.json"


def published(model: str, target: str) -> list[dict[str, str]]:
    """Return the published numbers of a model, on any images."""
    text = resources.files("jobs.benchmark_models").joinpath("published.csv").read_text()
    return [row for row in csv.DictReader(io.StringIO(text)) if row["model"] == model and row["target"] == target]
