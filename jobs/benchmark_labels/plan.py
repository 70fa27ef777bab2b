"""Plan the runs of a table over numbers of labels: each backbone, and each network from scratch, with each number of
labels and each seed."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs import command_line, conditions
from jobs.benchmark_labels.page import lines_of, update_table
from jobs.benchmark_labels.settings import ALL, Settings
from jobs.benchmark_labels.table import SUPERVISED, Backbone, Cell
from jobs.finetune.held_out import kept_settings
from jobs.finetune.settings import SCRATCH
from jobs.finetune.settings import Settings as FinetuneSettings
from jobs.finetune.work import training_of
from jobs.pretrain.backbone import pretrain_settings
from jobs.settings import require
from jobs.train.samples import known_part
from jobs.train.settings import Settings as TrainSettings
from jobs.trials.trials import OVERLAP, Data, Table, Training, Trial, find_all_data, refuse_begun


def make_table(settings: Settings) -> Table:
    """Return the table over numbers of labels."""
    cells = make_plan(settings)
    return Table([cell.trial for cell in cells], write=lambda: lines_of(update_table(settings.output, cells)))


def make_plan(settings: Settings) -> list[Cell]:
    """Return all runs. Raises ValueError, or exits with a message on stderr, if a backbone, a data set or a setting is
    invalid, or if a run was started with different settings; nothing is written."""
    data_root = settings.training.get("data_root", TrainSettings.data_root)
    require("+" not in settings.datasets, f"datasets={settings.datasets}: data sets cannot be combined with + here.")
    backbones = [*read_backbones(settings.names("backbones"))]
    used = itertools.product(backbones, settings.names("modes"))
    starts = [*((each, "full") for each in baselines_of(backbones)), *used]
    cells = [
        make_cell(settings, backbone, mode, data, count, seed)
        for data in find_all_data(settings, data_root, num_folds=lambda folder: 0)
        for count, seed, (backbone, mode) in itertools.product(settings.names("num_labels"), settings.all_seeds, starts)
    ]
    refuse_same_labels(cells)
    refuse_begun([cell.trial for cell in cells])
    return cells


def refuse_same_labels(cells: Sequence[Cell]) -> None:
    """Raise ValueError if `all` equals one of the other numbers of labels."""
    for name, some in itertools.groupby(cells, key=lambda cell: cell.trial.data.given):
        of_one = Counter((cell.num_labels, cell.mode, cell.backbone.name, cell.trial.seed) for cell in some)
        twice = [count for (count, *_), number in of_one.items() if number > 1]
        require(not twice, f"num_labels: {max(twice, default=0)} is the same as `all` for {name}; leave out one.")


def read_backbones(runs: Sequence[str]) -> Iterator[Backbone]:
    """Read the backbones of runs of `deeplense pretrain`. Raises ValueError if a run is not a pretraining, or if two
    have the same name."""
    found = {run: pretrain_settings(Path(run)) for run in runs}
    names = [Path(run).resolve().name for run in runs]
    twice = [name for name in names if names.count(name) > 1 or name.startswith(SCRATCH)]
    require(not twice, f"backbones: the name {', '.join(twice)} is not unique or reserved; rename a folder.")
    networks = {(each.model_name, each.stretch) for each in found.values()}
    for name, (run, told) in zip(names, found.items(), strict=True):
        baseline = SCRATCH if len(networks) == 1 else f"{SCRATCH}-{told.model_name}-{told.stretch}"
        yield Backbone(name, told.method, told.model_name, told.stretch, run, baseline)


def baselines_of(backbones: Sequence[Backbone]) -> list[Backbone]:
    """Return the networks of the backbones for training from scratch, each once."""
    first = {each.baseline: each for each in backbones}
    return [Backbone(name, SUPERVISED, each.model_name, each.stretch, SCRATCH, name) for name, each in first.items()]


def make_cell(settings: Settings, backbone: Backbone, mode: str, data: Data, count: str, seed: int) -> Cell:
    """Return one run. Raises ValueError if it cannot be trained with this number of labels."""
    name = f"{backbone.name}-{mode}-{count}-{data.name}-{seed}"
    run = settings.output / "runs" / name
    own: dict[str, object] = {"run": run, "dataset": data.given, "backbone": backbone.given, "mode": mode, "seed": seed}
    own |= {OVERLAP: 1} if settings.allow_pretrained_overlap else {}
    own |= {} if count == ALL else {"num_labels": count}
    network = {name: getattr(backbone, name) for name in ("model_name", "stretch")}
    own |= network if backbone.given == SCRATCH else {}
    training = {name: getattr(settings, name) for name in ("num_updates", "min_epochs")} | dict(settings.training)
    counting = conditions.counting(FinetuneSettings, {**training, "mode": mode})
    words = ("finetune", *(f"--{name}={value}" for name, value in (own | counting).items()))
    asked = command_line.parse(words[0], words[1:])
    trained = training_of(asked)
    training = Training(name, run, words, kept_settings(asked, trained))
    num_labels = len(known_part(trained)) if count == ALL else int(count)
    return Cell(backbone, mode, num_labels, Trial(name, backbone.name, data, seed, (training,), words))
