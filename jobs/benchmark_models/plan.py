"""Plan the trainings of a table of models: each model on each data set with each seed and, if there are folds, each
fold."""

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path

from deeplense.models.zoo import ARCHITECTURES, require_known
from jobs import command_line, conditions
from jobs.benchmark_models.page import lines_of, update_table
from jobs.benchmark_models.settings import Settings
from jobs.benchmark_models.table import costs_file
from jobs.data.folders import splits_of
from jobs.runs.stored import REPORT
from jobs.settings import plain, require
from jobs.train.settings import Settings as TrainSettings
from jobs.trials.trials import Data, Table, Training, Trial, find_all_data, refuse_begun

RECIPES = Path(__file__).parents[1] / "recipes" / "models"
FOLDS = 5
"""Number of folds for a data set without a split test."""


def make_table(settings: Settings) -> Table:
    """Return the table of models."""
    trials = make_plan(settings)
    return Table(
        trials,
        write=lambda: list(lines_of(update_table(settings.output, trials))),
        costs=lambda trial: costs_file(settings.output, trial),
    )


def make_plan(settings: Settings) -> list[Trial]:
    """Return all trials, model by model. Raises ValueError, or exits with a message on stderr, if a model, a data set
    or a setting is invalid, or if a run was started with different settings; nothing is written."""
    models = settings.names("models")
    for model in models:
        require_known(model)
    root = settings.training.get("data_root", TrainSettings.data_root)
    all_data = find_all_data(settings, root, num_folds=lambda folder: num_folds(settings, folder))
    trials = [
        make_trial(settings, model, data, seed)
        for model, data, seed in itertools.product(models, all_data, settings.all_seeds)
    ]
    refuse_begun(trials)
    return trials


def num_folds(settings: Settings, folder: Path) -> int:
    """Return the number of folds of a data set: as given, else 0 if it has a split test, else the default."""
    return settings.training.get("num_folds") or (0 if "test" in splits_of(folder) else FOLDS)


def make_trial(settings: Settings, model: str, data: Data, seed: int) -> Trial:
    """Return the trial of a model on a data set with a seed. Raises ValueError if the data set lacks the target."""
    name = f"{model}-{data.name}-{seed}"
    trainings = tuple(trainings_of(settings, model, data, seed, name=name))
    first = trainings[0]
    refuse_target(first.settings, data)
    pattern = f"{glob.escape(str(first.run.with_name(name)))}-fold*" if data.num_folds else str(first.run)
    evaluation = ("evaluate", f"--run={pattern}", f"--device={first.settings.device}")
    evaluation += (f"--output={first.run / REPORT}",)
    evaluation += (f"--dataset={data.given}",) if data.added else ()
    return Trial(name, model, data, seed, trainings, evaluation, first.settings.target)


def recipe_of(model: str) -> Path | None:
    """Return the recipe of a model's family; None for other timm models, which are trained with the defaults of
    `deeplense train`."""
    known = ARCHITECTURES.get(model)
    return RECIPES / f"{known.recipe}.yaml" if known else None


def trainings_of(settings: Settings, model: str, data: Data, seed: int, *, name: str) -> Iterator[Training]:
    """Yield the runs of a trial: one, or one per fold."""
    recipe = recipe_of(model)
    given = {name: value for name, value in settings.training.items() if name != "num_folds"}
    for fold in range(max(data.num_folds, 1)):
        own_name = name + (f"-fold{fold}" if data.num_folds else "")
        run = settings.output / "runs" / own_name
        own = {"run": run, "dataset": data.learnt_from, "model_name": model, "seed": seed}
        own |= {"num_folds": data.num_folds, "fold": fold} if data.num_folds else {}
        words = [f"--config={recipe}"] if recipe else []
        words += [f"--{key}={value}" for key, value in (given | own).items()]
        words += in_as_many_updates(command_line.parse("train", words), data.share)
        yield Training(own_name, run, ("train", *words), command_line.parse("train", words))


def in_as_many_updates(settings: TrainSettings, share: float) -> list[str]:
    """Return settings with which a training makes as many updates as on the given fraction of its samples."""
    if share == 1:
        return []
    counting = conditions.counting(TrainSettings, plain(settings))
    epochs = {name: value for name, value in counting.items() if name.endswith("epochs") and value is not None}
    return [f"--{name}={value * share}" for name, value in epochs.items()]


def refuse_target(settings: TrainSettings, data: Data) -> None:
    """Raise ValueError if a data set does not have the regression target."""
    known = data.held_out.schema.quantities
    right = not settings.regression or settings.target in known
    require(right, f"{data.given} has no target {settings.target!r}; its targets: {', '.join(known) or 'none'}.")
