"""The metrics of trials on the same held-out images, and their problems."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from deeplense.evaluation.comparison import Predicted, Scores, score_predictions
from deeplense.evaluation.report import PREDICTIONS
from deeplense.files import replacing
from jobs.runs.attempts import ATTEMPTS, read_attempts
from jobs.settings import require
from jobs.trials.trials import Trial

Rows = TypeVar("Rows")
DRAWS = "resamples.npz"
KINDS = ("values", "draws", "trials")
RULES = 2
"""Number of the rules by which metrics are cached; it changes when metrics are added."""


def until_settled(trials: Sequence[Trial], write: Callable[[], Rows]) -> Rows:
    """Write a table, and repeat this if another process has finished a run meanwhile, so that the last table written is
    complete."""
    while True:
        seen = state_of(trials)
        rows = write()
        if state_of(trials) == seen:
            return rows


def common_images(trials: Sequence[Trial]) -> np.ndarray | None:
    """Return the indices of the images that all evaluated trials have in common; None if no trial is evaluated. Runs
    may have seen different images, but can only be compared on the same ones. Raises ValueError if there is no common
    image."""
    predicted = [predicted_by(trial) for trial in trials if trial.is_evaluated]
    if not predicted:
        return None
    found = functools.reduce(np.intersect1d, predicted)
    require(len(found) > 0, f"no test image of {trials[0].data.name} is unseen by all runs of the table; use others.")
    return found


def predicted_by(trial: Trial) -> np.ndarray:
    """Return the indices of the images of an evaluation."""
    with np.load(trial.report / PREDICTIONS) as stored:
        return stored["indices"]


def scores_of(trial: Trial, common: np.ndarray | None = None) -> Scores:
    """Return the metrics of a trial, with their values on each resample, on all its images or the `common` ones. They
    are cached beside its predictions, and removed with them."""
    path = trial.report / DRAWS
    images = predicted_by(trial) if common is None else common
    if not path.exists() or not are_of(path, images):
        found = compute_scores(trial, images)
        columns = {f"{kind}/{name}": value for kind in KINDS for name, value in getattr(found, kind).items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, rules=RULES, num_images=found.num_images, images=np.sort(images), **columns)
    with np.load(path) as stored:
        values, draws, trials = (
            {n.partition("/")[2]: stored[n] for n in stored if n.startswith(f"{k}/")} for k in KINDS
        )
        floats, counts = {k: float(v) for k, v in values.items()}, {k: int(v) for k, v in trials.items()}
        return Scores(floats, draws, counts, int(stored["num_images"]))


def are_of(path: Path, images: np.ndarray) -> bool:
    """Whether cached metrics are for these images and complete; those of older versions are not."""
    with np.load(path) as stored:
        known = "rules" in stored and int(stored["rules"]) == RULES
        return known and np.array_equal(stored["images"], np.sort(images))


def compute_scores(trial: Trial, images: np.ndarray) -> Scores:
    """Compute the metrics of a trial from its predictions for these images."""
    classes = trial.data.held_out.schema.classes if trial.target == "class" else ()
    with np.load(trial.report / PREDICTIONS) as stored:
        return score_predictions(Predicted.of(stored), images, classes)


def problems_of(trial: Trial) -> list[str]:
    """Return the unfinished runs of a trial with their state, each with its seed."""
    if trial.is_evaluated:
        return []
    missing = [training for training in trial.trainings if not training.is_done] or trial.trainings[:1]
    ends = {training.name: ends_of(training.run) for training in missing}
    return [f"seed {trial.seed}{name.removeprefix(trial.name).replace('-', ' ')}: {end}" for name, end in ends.items()]


def ends_of(run: Path) -> str:
    """Return how the last attempt at a run ended."""
    attempts = read_attempts(run)
    return str(attempts[-1]["ended"] or "running") if attempts else "not started"


def seconds_of(trial: Trial) -> list[float]:
    """Return the total seconds of each run of a trial over all attempts, without runs with a killed attempt."""
    of_runs = [[each for each in read_attempts(one.run) if each["first_step"] is not None] for one in trial.trainings]
    known = [attempts for attempts in of_runs if attempts and all("seconds" in each for each in attempts)]
    return [sum(each["seconds"] for each in attempts) for attempts in known]


def state_of(trials: Sequence[Trial]) -> list[int]:
    """Return values that change whenever a run starts, ends or is evaluated."""
    paths = [trial.report / PREDICTIONS for trial in trials]
    paths += [training.run / ATTEMPTS for trial in trials for training in trial.trainings]
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
