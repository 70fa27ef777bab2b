"""The trainings of `deeplense benchmark selection`: what the weights of each evaluation say of the validation images,
by which a rule chooses, and of the held-out images, by which the rule is judged. E evaluations, K classes."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from deeplense.data.order import permutation
from deeplense.evaluation.predict import Predictions
from deeplense.files import replacing
from jobs import config
from jobs.benchmark_selection import Case, Settings
from jobs.config import plain
from jobs.experiment import Part, find_datasets, held_out_part, known_part, predict_part
from jobs.measuring.made import begun_learning
from jobs.supervised import EVALUATION_BATCH, Supervised
from jobs.train import Settings as TrainSettings
from jobs.training_run import steps_between, updates
from jobs.training_start import TrainingRun

TOLD = "settings"


@dataclass
class Curves:
    """What the weights of each evaluation of a training say: logits of the validation images (E, V, K) and of the
    held-out images (E, H, K), and at the end those of a running mean of the weights (H, K)."""

    steps: list[int] = field(default_factory=list)
    val_outputs: list[np.ndarray] = field(default_factory=list)
    held_outputs: list[np.ndarray] = field(default_factory=list)
    mean_outputs: np.ndarray = field(default_factory=lambda: np.empty(0))
    val_labels: np.ndarray = field(default_factory=lambda: np.empty(0))
    held_labels: np.ndarray = field(default_factory=lambda: np.empty(0))
    train_counts: np.ndarray = field(default_factory=lambda: np.empty(0))


def make_curves(settings: Settings, case: Case, seed: int) -> Path:
    """The file of the curves of one training, made unless it is there. Raises ValueError where it is of other
    settings."""
    name = f"{case.name}-{seed}"
    path = settings.output / "curves" / f"{name}.npz"
    trained = training_of(settings, case, seed)
    told = {key: value for key, value in plain(trained).items() if key not in ("run", "label_file")}
    if path.exists():
        with np.load(path) as stored:
            known = json.loads(str(stored[TOLD]))
        config.require(known == told, f"{path} is of other settings; give those, or another --output.")
        return path
    with tempfile.TemporaryDirectory() as folder:
        curves = follow(settings, training_of(settings, case, seed, run=Path(folder) / "run"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        arrays = {key: np.array(value) for key, value in (vars(curves) | {TOLD: json.dumps(told)}).items()}
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def training_of(settings: Settings, case: Case, seed: int, *, run: Path = Path("run")) -> TrainSettings:
    """The settings of one training; the labels that it knows are drawn by its seed."""
    given: dict[str, Any] = {"run": run, "dataset": case.folder, "seed": seed, "ema_decay": settings.mean_decay}
    if len(case.counts) == 1:
        given["num_labels"] = case.counts[0]
    elif case.counts:
        given["label_file"] = write_names(settings, case, seed)
    words = given | dict(settings.training)
    trained = config.parse("train", [f"--{name}={value}" for name, value in words.items()])
    evaluate_epochs = max(trained.epochs / settings.num_evaluations, 1.0)
    return config.parse(
        "train", [f"--{name}={value}" for name, value in (words | {"evaluate_epochs": evaluate_epochs}).items()]
    )


def write_names(settings: Settings, case: Case, seed: int) -> Path:
    """A file with the names of so many images of each class, drawn by the seed."""
    part = known_part(TrainSettings(run=Path("run"), dataset=case.folder))
    config.require(
        len(case.counts) == len(part.split.schema.classes),
        f"{case.name}: gives {len(case.counts)} numbers for {len(part.split.schema.classes)} classes.",
    )
    names = []
    for label, count in enumerate(case.counts):
        members = np.flatnonzero(part.labels == label)
        config.require(count <= len(members), f"{case.name}: there are {len(members)} images of class {label}.")
        chosen = members[permutation(len(members), seed, label + 1)][:count]
        names += [part.split.ids[part.indices[k]] for k in chosen]
    path = settings.output / "labels" / f"{case.name}-{seed}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def follow(settings: Settings, trained: TrainSettings) -> Curves:
    """Train to the end, and keep what the weights of each evaluation say."""
    training = begun_learning(trained, lambda: Supervised(trained))
    learner = training.learner
    held = held_out_part(trained, find_datasets(trained.dataset, trained.data_root), settings.split)
    num_classes = len(held.split.schema.classes)
    curves = Curves(held_labels=held.labels, val_labels=learner.read[1].labels)
    curves.train_counts = np.bincount(learner.train.labels, minlength=num_classes)
    between = steps_between(training)
    for update in updates(training):
        training.progress.step = update.step
        if update.step % between == 0 or update.step == training.num_steps:
            curves.steps.append(update.step)
            curves.val_outputs.append(said(training, training.network, learner.read[1]).outputs)
            curves.held_outputs.append(said(training, training.network, held).outputs)
    curves.mean_outputs = said(training, training.counted, held).outputs
    if training.tracker is not None:
        training.tracker.close(exit_code=0)
    return curves


def said(training: TrainingRun, network: nn.Module, part: Part) -> Predictions:
    """What a network says of the images of a part."""
    objective = training.learner.objective  # type: ignore[attr-defined]
    return predict_part(network, objective.forward, part, training.accelerator, batch_size=EVALUATION_BATCH)
