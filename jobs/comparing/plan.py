"""Which trainings a table of models is made of: each model on each data set with each seed, and each fold."""

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path

from deeplense.data.dataset import splits_of
from deeplense.models.zoo import ARCHITECTURES, require_known
from jobs import config
from jobs.benchmark_models import Settings
from jobs.comparing.page import lines_of, update_table
from jobs.comparing.table import costs_file
from jobs.comparing.trials import Data, Table, Training, Trial, find_all_data, refuse_begun
from jobs.config import plain, require
from jobs.runs import REPORT
from jobs.train import Settings as TrainSettings

RECIPES = Path(__file__).parents[1] / "recipes" / "models"
FOLDS = 5
"""Into how many a data set is divided that has no split test."""


def make_table(settings: Settings) -> Table:
    """The table of models, of which nothing is done yet."""
    trials = make_plan(settings)
    return Table(
        trials,
        write=lambda: list(lines_of(update_table(settings.output, trials))),
        costs=lambda trial: costs_file(settings.output, trial),
    )


def make_plan(settings: Settings) -> list[Trial]:
    """All trials, model by model. Raises ValueError, or exits with a line on stderr, where a model, a data set or a
    setting is not what can be trained, or a run has been begun with other settings; nothing is written."""
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
    """Into how many parts a data set is divided: as it is given, else 0 where it has a split test."""
    return settings.training.get("num_folds") or (0 if "test" in splits_of(folder) else FOLDS)


def make_trial(settings: Settings, model: str, data: Data, seed: int) -> Trial:
    """A model on a data set with a seed. Raises ValueError where the data set does not know what is to be learnt."""
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
    """The recipe of a model's family; None for a name of timm alone, which is trained by the defaults of `deeplense
    train`."""
    known = ARCHITECTURES.get(model)
    return RECIPES / f"{known.recipe}.yaml" if known else None


def trainings_of(settings: Settings, model: str, data: Data, seed: int, *, name: str) -> Iterator[Training]:
    """The runs of a trial: one, or one for each fold."""
    recipe = recipe_of(model)
    given = {name: value for name, value in settings.training.items() if name != "num_folds"}
    for fold in range(max(data.num_folds, 1)):
        own_name = name + (f"-fold{fold}" if data.num_folds else "")
        run = settings.output / "runs" / own_name
        own = {"run": run, "dataset": data.learnt_from, "model_name": model, "seed": seed}
        own |= {"num_folds": data.num_folds, "fold": fold} if data.num_folds else {}
        words = [f"--config={recipe}"] if recipe else []
        words += [f"--{key}={value}" for key, value in (given | own).items()]
        words += in_as_many_updates(config.parse("train", words), data.share)
        yield Training(own_name, run, ("train", *words), config.parse("train", words))


def in_as_many_updates(settings: TrainSettings, share: float) -> list[str]:
    """Settings by which a training makes as many updates as it would by those given on a share of its samples."""
    if share == 1:
        return []
    counting = config.counting(TrainSettings, plain(settings))
    epochs = {name: value for name, value in counting.items() if name.endswith("epochs") and value is not None}
    return [f"--{name}={value * share}" for name, value in epochs.items()]


def refuse_target(settings: TrainSettings, data: Data) -> None:
    """Raise ValueError where a data set does not know what is to be learnt."""
    known = sorted(data.held_out.schema.targets)
    right = not settings.regression or settings.target in known
    require(right, f"{data.given} has no target {settings.target!r}; it has {known}.")
