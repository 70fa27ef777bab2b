"""The parts of a table: data sets, runs, and trials (one run, or one run per fold)."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.shards import Manifest
from deeplense.evaluation.report import PREDICTIONS
from jobs.data.folders import find_dataset, splits_of
from jobs.runs.attempts import has_begun
from jobs.runs.folder import FINISHED
from jobs.runs.stored import CONFIG, REPORT, refuse_differences, stored_config
from jobs.settings import require
from jobs.trials.settings import TableSettings

OVERLAP = "allow_pretrained_overlap"


@dataclass(frozen=True)
class Data:
    """A data set of a table: as given by the user, its name in the table, the number of folds (0 if a split is held
    out), the manifest of the held-out split, and the data sets that are added for training."""

    given: str
    name: str
    num_folds: int
    held_out: Manifest
    added: tuple[str, ...] = ()
    share: float = 1.0
    """fraction of the training samples that are from the data set itself"""

    @property
    def learnt_from(self) -> str:
        """All data sets that are trained on, comma-separated as in settings."""
        return ",".join([self.given, *self.added])

    @property
    def kind(self) -> str:
        """The kind of its images: Model_I, Model_II, Model_III, gsoc, lens-finding; empty if its provenance does not
        name it, as for images from npz files."""
        made = self.held_out.schema.provenance
        return str(made.get("model") or made.get("layout") or "").replace("npz", "")


@dataclass(frozen=True)
class Training:
    """One run: its name, folder, command line and settings."""

    name: str
    run: Path
    words: tuple[str, ...]
    settings: Any

    @property
    def is_done(self) -> bool:
        """Whether the run is finished."""
        return (self.run / FINISHED).exists()


@dataclass(frozen=True)
class Trial:
    """A model on a data set with a seed: one run, or one run per fold, evaluated together by one command line."""

    name: str
    model: str
    data: Data
    seed: int
    trainings: tuple[Training, ...]
    evaluation: tuple[str, ...]
    target: str = "class"

    @property
    def report(self) -> Path:
        """The folder of the evaluation report."""
        return self.trainings[0].run / REPORT

    @property
    def is_trained(self) -> bool:
        """Whether all its runs are finished."""
        return all(training.is_done for training in self.trainings)

    @property
    def is_evaluated(self) -> bool:
        """Whether the evaluation exists and is on the intended images."""
        path = self.report / PREDICTIONS
        if not path.exists():
            return False
        with np.load(path) as stored:
            of_data = "dataset_id" in stored and str(stored["dataset_id"]) == self.data.held_out.dataset_id
            folds = stored["folds"].tolist() if "folds" in stored else self.folds
            allowed = bool(stored[OVERLAP]) if OVERLAP in stored else False
            return of_data and folds == self.folds and allowed == (f"--{OVERLAP}=1" in self.evaluation)

    @property
    def folds(self) -> list[int]:
        """The held-out folds; empty if a split is held out."""
        return list(range(self.data.num_folds))


@dataclass(frozen=True)
class Table:
    """Trials, a function that rewrites their table and returns it as text and, if the cost of runs is measured, a
    function that returns the file for the cost of a trial."""

    trials: Sequence[Trial]
    write: Callable[[], Sequence[str]]
    costs: Callable[[Trial], Path] | None = None


def find_all_data(settings: TableSettings, data_root: Path, *, num_folds: Callable[[Path], int]) -> list[Data]:
    """Find the data sets of a table; `num_folds` returns the number of folds for a folder. Raises ValueError if a data
    set does not exist, or if two have the same name."""
    found = [find_data(given.split("+"), data_root, num_folds=num_folds) for given in settings.names("datasets")]
    names = [data.name for data in found]
    require(len(set(names)) == len(names), f"two of the data sets {names} have the same name; rename a folder.")
    return found


def find_data(given: Sequence[str], data_root: Path, *, num_folds: Callable[[Path], int]) -> Data:
    """Find a data set; those after the first are used for training only. Raises ValueError if a training or test split
    is missing."""
    folders = [find_dataset(each, data_root) for each in given]
    folder, folds = folders[0], num_folds(folders[0])
    held_out = "train" if folds else "test"
    for place, split in [*((each, "train") for each in folders), (folder, held_out)]:
        splits = splits_of(place)
        require(split in splits, f"{place} has no split {split!r}; it has {', '.join(splits)}.")
    require(
        not (folds and len(folders) > 1),
        f"{'+'.join(given)}: data cannot be added to a data set that is tested by folds; give {folder} a split test.",
    )
    sizes = [Manifest.read(each / "train").schema.num_samples for each in folders]
    name = "+".join(each.resolve().name for each in folders)
    return Data(given[0], name, folds, Manifest.read(folder / held_out), tuple(given[1:]), sizes[0] / sum(sizes))


def chosen(trials: Sequence[Trial], only: str) -> list[tuple[Trial, Training]]:
    """Return the run with this name, or all runs if it is empty. Raises ValueError, naming the closest, for an unknown
    name, or if two runs have the same name."""
    pairs = [(trial, training) for trial in trials for training in trial.trainings]
    found = {training.name: (trial, training) for trial, training in pairs}
    require(len(found) == len(pairs), "two runs would have the same name; rename the folder of a data set.")
    near = difflib.get_close_matches(only, found, n=1, cutoff=0)
    require(not only or only in found, f"only={only} is not one of {len(found)} runs. Did you mean {''.join(near)}?")
    return [found[only]] if only else list(found.values())


def left(trials: Sequence[Trial], only: str) -> dict[str, Path]:
    """Return the names and folders of the runs that are not finished."""
    return {training.name: training.run for _, training in chosen(trials, only) if not training.is_done}


def refuse_begun(trials: Sequence[Trial]) -> None:
    """Raise ValueError if a run was started with different settings."""
    for _, training in chosen(trials, ""):
        if has_begun(training.run) and (training.run / CONFIG).exists():
            refuse_differences(training.run, stored_config(training.run), training.settings)
