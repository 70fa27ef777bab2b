"""The table over numbers of labels: one row per backbone, mode and number of labels, from the finished runs."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby

import numpy as np

from deeplense.evaluation.comparison import Scores, difference, over_seeds
from deeplense.evaluation.metrics import Estimate
from jobs.trials.scores import common_images, problems_of, scores_of
from jobs.trials.trials import Trial

SUPERVISED = "supervised"
LENS_FINDING = "lens-finding"
COMPARED = ("auc_macro", "accuracy")
NETWORKS = {"vit_small": "ViT-S/8", "vit_base": "ViT-B/8"}
"""Names of the networks in the published numbers."""
BETTER, WORSE, UNKNOWN, ONE_SEED = "better", "worse", "not significant", "not significant (one seed)"


@dataclass(frozen=True)
class Backbone:
    """Initial weights of a run: name, pretraining method, network, stretch of its input, the pretraining run (or
    scratch), and the name of the baseline that it is compared with (itself for scratch)."""

    name: str
    method: str
    model_name: str
    stretch: str
    given: str
    baseline: str


@dataclass(frozen=True)
class Cell:
    """One run of the table: its backbone, mode and number of labels."""

    backbone: Backbone
    mode: str
    num_labels: int
    trial: Trial


@dataclass
class Row:
    """A backbone in one mode with one number of labels of a data set, over its seeds."""

    dataset: str
    kind: str
    mode: str
    num_labels: int
    backbone: Backbone
    seeds: list[int]
    num_seeds: int
    num_images: int = 0
    num_left_out: int = 0
    """number of test images excluded, because a run of the table has seen them or because they have no label"""
    metrics: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    num_paired: int = 0
    published: list[dict[str, str]] = field(default_factory=list)
    problem: str = ""

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.backbone.baseline == self.backbone.name

    def verdict(self, name: str) -> str:
        """Say whether it is better than training from scratch; empty for the baseline, or if it is not known yet."""
        found = self.differences.get(name)
        if found is None:
            return ""
        if self.num_paired < 2:
            return ONE_SEED
        return BETTER if found.low > 0 else WORSE if found.high < 0 else UNKNOWN


def make_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return all rows, sorted by data set, mode (full first), number of labels and backbone (scratch first)."""
    modes = list(dict.fromkeys(cell.mode for cell in cells))
    names = list(dict.fromkeys(cell.backbone.name for cell in cells))

    def row_of(cell: Cell) -> tuple[str, int, int, int]:
        return cell.trial.data.name, modes.index(cell.mode), cell.num_labels, names.index(cell.backbone.name)

    found = {key: list(some) for key, some in groupby(sorted(cells, key=row_of), key=row_of)}
    common = {
        data: common_images([cell.trial for cell in some])
        for data, some in groupby(sorted(cells, key=data_of), key=data_of)
    }
    scores = {key: scores_by_seed(some, common[key[0]]) for key, some in found.items()}
    return [
        make_row(some, scores[key], scores[key[0], 0, key[2], names.index(some[0].backbone.baseline)])
        for key, some in found.items()
    ]


def data_of(cell: Cell) -> str:
    """Return the name of the data set of a cell."""
    return cell.trial.data.name


def scores_by_seed(cells: Sequence[Cell], common: np.ndarray | None) -> dict[int, Scores]:
    """Return the scores of the finished cells of a row, by seed, on the images that all runs were tested on."""
    return {cell.trial.seed: scores_of(cell.trial, common) for cell in cells if cell.trial.is_evaluated}


def make_row(cells: Sequence[Cell], scores: Mapping[int, Scores], of_baseline: Mapping[int, Scores]) -> Row:
    """Return one row from the finished cells."""
    first = cells[0]
    data = first.trial.data
    row = Row(data.name, data.kind, first.mode, first.num_labels, first.backbone, sorted(scores), len(cells))
    row.problem = "; ".join(text for cell in cells for text in problems_of(cell.trial))
    row.published = published(row)
    if scores:
        found = list(scores.values())
        row.metrics = {name: over_seeds(found, name) for name in found[0].values}
        row.num_images = found[0].num_images
        row.num_left_out = data.held_out.schema.num_samples - row.num_images
    if not row.is_baseline:
        paired = {name: difference(scores, of_baseline, name) for name in COMPARED}
        row.differences = {name: estimate for name, estimate in paired.items() if estimate is not None}
        row.num_paired = len(set(scores) & set(of_baseline))
    return row


def published(row: Row) -> list[dict[str, str]]:
    """Return the published numbers of this method, network and number of labels, on images of this kind."""
    if row.kind != LENS_FINDING or row.mode != "full":
        return []
    asked = row.backbone.method, NETWORKS.get(row.backbone.model_name), str(row.num_labels)
    return [one for one in all_published() if (one["method"], one["network"], one["num_labels"]) == asked]


def all_published() -> list[dict[str, str]]:
    """Return all published numbers on lens finding with few labels."""
    text = resources.files("jobs.benchmark_labels").joinpath("published.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))
