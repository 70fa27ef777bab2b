"""Work of `deeplense finetune`: a training that starts from a backbone, or a probe of its features, and the report on
held-out images."""

import os
from pathlib import Path

from jobs.evaluate.runs import evaluate
from jobs.evaluate.settings import Settings as EvaluateSettings
from jobs.finetune.held_out import hold_out, known_and_held, on_report
from jobs.finetune.probe import probe
from jobs.finetune.settings import SCRATCH, Settings
from jobs.pretrain.backbone import pretrain_settings
from jobs.runs.attempts import add_to_attempt, end_attempt, read_attempts
from jobs.runs.stored import REPORT
from jobs.settings import require
from jobs.train import work as train_work
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings as TrainSettings

EVALUATIONS = 20
WARM_UP = 0.05
"""Fraction of the updates in which the learning rate rises."""


def run(settings: Settings) -> int:
    """Train and evaluate. Returns the exit code."""
    require(
        os.environ.get("WORLD_SIZE", "1") == "1",
        "finetune runs as one process; leave out --num_processes, or use `deeplense train --backbone RUN`.",
    )
    trained = training_of(settings)
    if settings.mode != "full":
        return probe(settings, trained)
    known, held = known_and_held(settings, trained)
    hold_out(settings, trained, known, held)
    on_report(settings, held)
    code = train_work.run(trained)
    return code or evaluate_kept(settings, trained)


def training_of(settings: Settings) -> TrainSettings:
    """Return the settings of the training. For a probe, only those of the network and its images matter."""
    asked: dict[str, object] = {}
    if settings.backbone != SCRATCH:
        run = Path(settings.backbone)
        pretrained = pretrain_settings(run)
        asked = {"backbone": run, "model_name": pretrained.model_name, "stretch": pretrained.stretch}
    trained = settings.trained_with(asked)
    if settings.mode != "full":
        return trained
    num_train = len(learning_parts(trained)[0])
    require(
        trained.batch_size <= num_train,
        f"batch_size={trained.batch_size} exceeds the {num_train} training samples; give a smaller one.",
    )
    return settings.trained_with(asked | duration(settings, batch_size=trained.batch_size, num_train=num_train))


def duration(settings: Settings, *, batch_size: int, num_train: int) -> dict[str, float]:
    """Return the number of epochs, and the settings that depend on it."""
    # Half a sample is added because the number of updates is rounded down.
    epochs = max((settings.num_updates * batch_size + 0.5) / num_train, settings.min_epochs)
    return {
        "epochs": epochs,
        "warmup_epochs": WARM_UP * epochs,
        "evaluate_epochs": max(epochs / EVALUATIONS, 1.0),
    }


def evaluate_kept(settings: Settings, trained: TrainSettings) -> int:
    """Evaluate the weights that a training kept, as part of its attempt."""
    evaluation = EvaluateSettings(
        run=str(settings.run),
        split=settings.split,
        device=trained.device,
        output=settings.run / REPORT,
        allow_pretrained_overlap=settings.allow_pretrained_overlap,
    )
    number, reason = len(read_attempts(settings.run)), "finished"
    add_to_attempt(settings.run, number, {"ended": None})
    try:
        return evaluate(evaluation)
    except BaseException as error:
        reason = f"error: {type(error).__name__}: {error}"
        raise
    finally:
        end_attempt(settings.run, number, reason=reason)
