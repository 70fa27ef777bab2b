"""What a table is made of: runs, and trials of one run each, or of one for each fold."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.dataset import splits_of
from deeplense.data.shards import Manifest
from deeplense.evaluation.report import PREDICTIONS
from jobs.attempts import has_begun
from jobs.comparing.settings import TableSettings
from jobs.config import require
from jobs.experiment import find_dataset
from jobs.runs import CONFIG, FINISHED, REPORT, refuse_differences, stored_config

OVERLAP = "allow_pretrained_overlap"


@dataclass(frozen=True)
class Data:
    """A data set: what the user calls it, its name here, what is held out of it (a split, or each of the folds of
    train in turn), the manifest of the split that has it, and what is learnt from beside it."""

    given: str
    name: str
    num_folds: int
    held_out: Manifest
    added: tuple[str, ...] = ()
    share: float = 1.0
    """of the samples that are learnt from, those that are its own"""

    @property
    def learnt_from(self) -> str:
        """All data sets that are learnt from, as settings name them."""
        return ",".join([self.given, *self.added])

    @property
    def kind(self) -> str:
        """Of which images it is: Model_I, Model_II, Model_III, gsoc, lens-finding; empty where its provenance does not
        say, as of any images in npz files."""
        made = self.held_out.schema.provenance
        return str(made.get("model") or made.get("layout") or "").replace("npz", "")


@dataclass(frozen=True)
class Training:
    """One run: its name, folder, the command line that does it, and the settings that it keeps."""

    name: str
    run: Path
    words: tuple[str, ...]
    settings: Any

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""
        return (self.run / FINISHED).exists()


@dataclass(frozen=True)
class Trial:
    """A model on a data set with a seed: one run, or one for each fold, that are evaluated together by a command
    line."""

    name: str
    model: str
    data: Data
    seed: int
    trainings: tuple[Training, ...]
    evaluation: tuple[str, ...]
    target: str = "class"

    @property
    def report(self) -> Path:
        """The folder of its evaluation."""
        return self.trainings[0].run / REPORT

    @property
    def is_trained(self) -> bool:
        """Whether all its runs are finished."""
        return all(training.is_done for training in self.trainings)

    @property
    def is_evaluated(self) -> bool:
        """Whether its evaluation is there, and is one of the images that are meant."""
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
        """The folds that are held out, if they are."""
        return list(range(self.data.num_folds))


@dataclass(frozen=True)
class Table:
    """Trials, what writes their table anew and gives it as text, and, where runs are measured before, the file for what
    those of a trial cost."""

    trials: Sequence[Trial]
    write: Callable[[], Sequence[str]]
    costs: Callable[[Trial], Path] | None = None


def find_all_data(settings: TableSettings, data_root: Path, *, num_folds: Callable[[Path], int]) -> list[Data]:
    """The data sets of a table; how many folds each is divided into is a function of its folder. Raises ValueError
    where one is not there, or two have the same name."""
    found = [find_data(given.split("+"), data_root, num_folds=num_folds) for given in settings.names("datasets")]
    names = [data.name for data in found]
    require(len(set(names)) == len(names), f"two of the data sets {names} have the same name; rename a folder.")
    return found


def find_data(given: Sequence[str], data_root: Path, *, num_folds: Callable[[Path], int]) -> Data:
    """A data set, with others that are only learnt from behind it. Raises ValueError where there is nothing to learn
    from, or to test on."""
    folders = [find_dataset(each, data_root) for each in given]
    folder, folds = folders[0], num_folds(folders[0])
    held_out = "train" if folds else "test"
    for place, split in [*((each, "train") for each in folders), (folder, held_out)]:
        splits = splits_of(place)
        require(split in splits, f"{place} has no split {split!r}; it has {', '.join(splits)}.")
    require(
        not (folds and len(folders) > 1),
        f"{'+'.join(given)}: folds of {folder} would be held out, and what is added with them; give it a split test.",
    )
    sizes = [Manifest.read(each / "train").schema.num_samples for each in folders]
    name = "+".join(each.resolve().name for each in folders)
    return Data(given[0], name, folds, Manifest.read(folder / held_out), tuple(given[1:]), sizes[0] / sum(sizes))


def chosen(trials: Sequence[Trial], only: str) -> list[tuple[Trial, Training]]:
    """The run of this name, or all where there is no name. Raises ValueError, naming the nearest, for another name, and
    where two runs have the same."""
    pairs = [(trial, training) for trial in trials for training in trial.trainings]
    found = {training.name: (trial, training) for trial, training in pairs}
    require(len(found) == len(pairs), "two runs would have the same name; rename the folder of a data set.")
    near = difflib.get_close_matches(only, found, n=1, cutoff=0)
    require(not only or only in found, f"only={only} is none of the {len(found)} runs. Did you mean {''.join(near)}?")
    return [found[only]] if only else list(found.values())


def left(trials: Sequence[Trial], only: str) -> dict[str, Path]:
    """Names and folders of the runs that are not finished."""
    return {training.name: training.run for _, training in chosen(trials, only) if not training.is_done}


def refuse_begun(trials: Sequence[Trial]) -> None:
    """Raise ValueError where a run has been begun with other settings."""
    for _, training in chosen(trials, ""):
        if has_begun(training.run) and (training.run / CONFIG).exists():
            refuse_differences(training.run, stored_config(training.run), training.settings)
