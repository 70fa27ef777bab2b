"""Which trainings a table of models is made of: each model on each data set with each seed, and each fold."""

import difflib
import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm

from deeplense.data.dataset import splits_of
from deeplense.data.shards import Manifest
from deeplense.evaluation.report import PREDICTIONS
from deeplense.models.zoo import ARCHITECTURES, nearest
from jobs import config
from jobs.attempts import has_begun
from jobs.benchmark_models import Settings
from jobs.config import require
from jobs.experiment import find_dataset
from jobs.runs import CONFIG, FINISHED, refuse_differences, stored_config
from jobs.train import Settings as TrainSettings

RECIPES = Path(__file__).parents[1] / "recipes" / "models"
FOLDS = 5
"""Into how many a data set is divided that has no split test."""


@dataclass(frozen=True)
class Data:
    """A data set: what the user calls it, its name here, what is held out of it (a split, or each of the folds of
    train in turn), and the manifest of the split that has it."""

    given: str
    name: str
    num_folds: int
    held_out: Manifest

    @property
    def kind(self) -> str:
        """Of which images it is: Model_I, Model_II, Model_III, gsoc; empty where its provenance does not say."""
        made = self.held_out.schema.provenance
        return str(made.get("model") or made.get("layout") or "")


@dataclass(frozen=True)
class Training:
    """One run: its name, folder, the command line that trains it, and the settings that this gives."""

    name: str
    run: Path
    words: tuple[str, ...]
    settings: TrainSettings

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""
        return (self.run / FINISHED).exists()


@dataclass(frozen=True)
class Trial:
    """A model on a data set with a seed: one run, or one for each fold, that are evaluated together."""

    model: str
    data: Data
    seed: int
    trainings: tuple[Training, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.model}-{self.data.name}-{self.seed}"

    @property
    def report(self) -> Path:
        """The folder of its evaluation."""
        return self.trainings[0].run / "report"

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
            return "dataset_id" in stored and str(stored["dataset_id"]) == self.data.held_out.dataset_id

    @property
    def pattern(self) -> str:
        """What `deeplense evaluate` is told."""
        run = self.trainings[0].run
        return f"{glob.escape(str(run.with_name(self.name)))}-fold*" if self.data.num_folds else str(run)


def make_plan(settings: Settings) -> list[Trial]:
    """All trials, model by model. Raises ValueError, or exits with a line on stderr, where a model, a data set or a
    setting is not what can be trained, or a run has been begun with other settings; nothing is written."""
    models = settings.names("models")
    for model in models:
        refuse_unknown(model)
    all_data = [find_data(given, settings) for given in settings.names("datasets")]
    names = [data.name for data in all_data]
    require(len(set(names)) == len(names), f"two of the data sets {names} have the same name; rename a folder.")
    trials = [
        Trial(model, data, seed, tuple(trainings_of(settings, model, data, seed)))
        for model, data, seed in itertools.product(models, all_data, settings.all_seeds)
    ]
    for trial, training in chosen(trials, ""):
        refuse_target(training.settings, trial.data)
        if has_begun(training.run) and (training.run / CONFIG).exists():
            refuse_differences(training.run, stored_config(training.run), training.settings)
    return trials


def recipe_of(model: str) -> Path | None:
    """The recipe of a model's family; None for a name of timm alone, which is trained by the defaults of `deeplense
    train`."""
    known = ARCHITECTURES.get(model)
    return RECIPES / f"{known.recipe}.yaml" if known else None


def refuse_unknown(model: str) -> None:
    """Raise ValueError, naming the nearest, unless there is such a model."""
    known = model in ARCHITECTURES or timm.is_model(model)
    require(known, f"there is no model {model!r}. Nearest: {nearest(model, timm.list_models())}.")


def find_data(given: str, settings: Settings) -> Data:
    """A data set by its folder, or its name below data_root. Raises ValueError where there is none to learn from."""
    data_root = settings.training.get("data_root", TrainSettings.data_root)
    folder = find_dataset(given, data_root)
    splits = splits_of(folder)
    require("train" in splits, f"{folder} has no split 'train'; it has {', '.join(splits)}.")
    num_folds = settings.training.get("num_folds") or (0 if "test" in splits else FOLDS)
    held_out = Manifest.read(folder / ("train" if num_folds else "test"))
    return Data(given, folder.resolve().name, num_folds, held_out)


def trainings_of(settings: Settings, model: str, data: Data, seed: int) -> Iterator[Training]:
    """The runs of a trial: one, or one for each fold."""
    recipe = recipe_of(model)
    given = {name: value for name, value in settings.training.items() if name != "num_folds"}
    for fold in range(max(data.num_folds, 1)):
        name = f"{model}-{data.name}-{seed}" + (f"-fold{fold}" if data.num_folds else "")
        run = settings.output / "runs" / name
        own = {"run": run, "dataset": data.given, "model_name": model, "seed": seed}
        own |= {"num_folds": data.num_folds, "fold": fold}
        words = [f"--config={recipe}"] if recipe else []
        words += [f"--{key}={value}" for key, value in (given | own).items()]
        yield Training(name, run, tuple(words), config.parse("train", words))


def refuse_target(settings: TrainSettings, data: Data) -> None:
    """Raise ValueError where a data set does not know what is to be learnt."""
    known = sorted(data.held_out.schema.targets)
    right = not settings.regression or settings.target in known
    require(right, f"{data.given} has no target {settings.target!r}; it has {known}.")


def chosen(trials: Sequence[Trial], only: str) -> list[tuple[Trial, Training]]:
    """The run of this name, or all where there is no name. Raises ValueError, naming the nearest, for another name, and
    where two runs have the same."""
    pairs = [(trial, training) for trial in trials for training in trial.trainings]
    found = {training.name: (trial, training) for trial, training in pairs}
    require(len(found) == len(pairs), "two runs would have the same name; rename the folder of a data set.")
    near = difflib.get_close_matches(only, found, n=1, cutoff=0)
    require(not only or only in found, f"only={only} is none of the {len(found)} runs. Did you mean {''.join(near)}?")
    return [found[only]] if only else list(found.values())
