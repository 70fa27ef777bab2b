"""The trainings of `deeplense benchmark selection`: the outputs at each evaluation on the validation images, by which a
rule selects weights, and on the held-out images, by which the rule is judged. E evaluations, K classes."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from deeplense.evaluation.predict import Predictions
from deeplense.files import replacing
from deeplense.random.draws import permutation
from jobs import command_line
from jobs.benchmark.made import begun_learning
from jobs.benchmark_selection.settings import Case, Settings
from jobs.data.folders import find_datasets
from jobs.data.part import Part
from jobs.frame.predict import predict_part
from jobs.frame.start import Training
from jobs.frame.updates import updates
from jobs.settings import plain, require
from jobs.train.learner import EVALUATION_BATCH, Supervised, SupervisedTrainee
from jobs.train.samples import held_out_part, known_part
from jobs.train.settings import Settings as TrainSettings

TOLD = "settings"


@dataclass
class Curves:
    """Outputs of the weights at each evaluation of a training: logits of the validation images (E, V, K) and of the
    held-out images (E, H, K), and the final logits of the EMA of the weights (H, K)."""

    steps: list[int] = field(default_factory=list)
    val_outputs: list[np.ndarray] = field(default_factory=list)
    held_outputs: list[np.ndarray] = field(default_factory=list)
    mean_outputs: np.ndarray = field(default_factory=lambda: np.empty(0))
    val_labels: np.ndarray = field(default_factory=lambda: np.empty(0))
    held_labels: np.ndarray = field(default_factory=lambda: np.empty(0))
    train_counts: np.ndarray = field(default_factory=lambda: np.empty(0))


def make_curves(settings: Settings, case: Case, seed: int) -> Path:
    """Return the file of the curves of one training, after training if it does not exist. Raises ValueError if it was
    made with different settings."""
    name = f"{case.name}-{seed}"
    path = settings.output / "curves" / f"{name}.npz"
    trained = training_of(settings, case, seed)
    told = {key: value for key, value in plain(trained).items() if key not in ("run", "label_file")}
    if path.exists():
        with np.load(path) as stored:
            known = json.loads(str(stored[TOLD]))
        require(known == told, f"{path} was made with different settings; use those, or give another --output.")
        return path
    with tempfile.TemporaryDirectory() as folder:
        curves = follow(settings, training_of(settings, case, seed, run=Path(folder) / "run"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        arrays = {key: np.array(value) for key, value in (vars(curves) | {TOLD: json.dumps(told)}).items()}
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def training_of(settings: Settings, case: Case, seed: int, *, run: Path = Path("run")) -> TrainSettings:
    """Return the settings of one training; its labelled images are sampled with its seed."""
    given: dict[str, Any] = {"run": run, "dataset": case.folder, "seed": seed, "ema_decay": settings.mean_decay}
    if len(case.counts) == 1:
        given["num_labels"] = case.counts[0]
    elif case.counts:
        given["label_file"] = write_names(settings, case, seed)
    words = given | dict(settings.training)
    trained = command_line.parse("train", [f"--{name}={value}" for name, value in words.items()])
    evaluate_epochs = max(trained.epochs / settings.num_evaluations, 1.0)
    return command_line.parse(
        "train", [f"--{name}={value}" for name, value in (words | {"evaluate_epochs": evaluate_epochs}).items()]
    )


def write_names(settings: Settings, case: Case, seed: int) -> Path:
    """Write a file with the names of the labelled images: the given number per class, sampled with the seed."""
    part = known_part(TrainSettings(run=Path("run"), dataset=case.folder))
    require(
        len(case.counts) == len(part.split.schema.classes),
        f"{case.name} has {len(case.counts)} counts for {len(part.split.schema.classes)} classes; give one per class.",
    )
    names = []
    for label, count in enumerate(case.counts):
        members = np.flatnonzero(part.labels == label)
        require(count <= len(members), f"{case.name}: only {len(members)} images of class {label}; give fewer.")
        chosen = members[permutation(len(members), seed, label + 1)][:count]
        names += [part.split.ids[part.indices[k]] for k in chosen]
    path = settings.output / "labels" / f"{case.name}-{seed}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def follow(settings: Settings, trained: TrainSettings) -> Curves:
    """Train to the end, and record the outputs at each evaluation."""
    training = begun_learning(trained, lambda: Supervised.of(trained))
    learner = training.learner
    held = held_out_part(trained, find_datasets(trained.dataset, trained.data_root), settings.split)
    num_classes = len(held.split.schema.classes)
    curves = Curves(held_labels=held.labels, val_labels=learner.read[1].labels)
    curves.train_counts = np.bincount(learner.train.labels, minlength=num_classes)
    plan = training.plan
    for update in updates(training):
        training.progress.step = update.step
        if plan.is_evaluated(update.step):
            curves.steps.append(update.step)
            curves.val_outputs.append(said(training, training.weights.network, learner.read[1]).outputs)
            curves.held_outputs.append(said(training, training.weights.network, held).outputs)
    curves.mean_outputs = said(training, training.weights.counted, held).outputs
    training.attempt.close()
    return curves


def said(training: Training, network: nn.Module, part: Part) -> Predictions:
    """Return the outputs of a network for the images of a part."""
    assert isinstance(training.trainee, SupervisedTrainee)
    objective = training.trainee.objective
    return predict_part(network, objective.forward, part, training.weights.accelerator, batch_size=EVALUATION_BATCH)
