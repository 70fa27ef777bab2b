"""The work behind `deeplense finetune`: a training that starts from a backbone, or a probe of its features; then the
report on held-out images."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from deeplense.data.dataset import Batch
from deeplense.data.scaling import Scaling
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.probes import knn_probabilities, linear_probabilities
from deeplense.models.registry import Network
from deeplense.records import write_record
from deeplense.training.loop import make_accelerator
from jobs import train
from jobs.attempts import add_to_attempt, begin_attempt, end_attempt, read_attempts
from jobs.claim import Claim
from jobs.config import plain, require
from jobs.evaluate import Settings as EvaluateSettings
from jobs.evaluation_run import evaluate
from jobs.experiment import (
    Part,
    find_datasets,
    known_part,
    learning_parts,
    make_network,
    open_part,
    predict_part,
    refuse_unlabelled,
)
from jobs.finetune import SCRATCH, Settings
from jobs.lineage import seen_by
from jobs.pretrained import load_encoder, pretrain_settings, read_pretrained
from jobs.progress import say
from jobs.report_folder import refuse_other_report
from jobs.reports import Evaluated, report, subject_of
from jobs.runs import FINISHED, REPORT, is_finished
from jobs.statistics import find_statistics
from jobs.train import Settings as TrainSettings
from jobs.trained_run import Unseen, refuse_other_kind, unseen_by

PROBES = {"knn": knn_probabilities, "linear": linear_probabilities}
EVALUATION_BATCH = 256
EVALUATIONS = 20
WARM_UP = 0.05
"""Part of the updates in which the learning rate rises."""
NOBODY = np.empty(0, dtype=np.int64)
TINY = 1e-12
"""Added to probabilities, whose logarithms a report is made of."""


def finetune(settings: Settings) -> int:
    """Learn and evaluate; returns the exit code."""
    require(
        os.environ.get("WORLD_SIZE", "1") == "1",
        "finetune runs as one process; leave --num_processes out. Several can share `deeplense train --backbone RUN`.",
    )
    trained = training_of(settings)
    if settings.mode != "full":
        return probe(settings, trained)
    known, held = known_and_held(settings, trained)
    hold_out(settings, trained, known, held)
    on_report(settings, held)
    code = train.run(trained)
    return code or evaluate_kept(settings, trained)


def training_of(settings: Settings) -> TrainSettings:
    """The settings of the training; of a probe, those that say what the network is and what it gets."""
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
        f"batch_size={trained.batch_size} is more than the {num_train} samples to learn from; give a smaller one.",
    )
    return settings.trained_with(asked | duration(settings, batch_size=trained.batch_size, num_train=num_train))


def duration(settings: Settings, *, batch_size: int, num_train: int) -> dict[str, float]:
    """How long to learn, in epochs, and what depends on it."""
    # Half a sample more, for the number of updates is rounded down.
    epochs = max((settings.num_updates * batch_size + 0.5) / num_train, settings.min_epochs)
    return {
        "epochs": epochs,
        "warmup_epochs": WARM_UP * epochs,
        "evaluate_epochs": max(epochs / EVALUATIONS, 1.0),
    }


def known_and_held(settings: Settings, trained: TrainSettings) -> tuple[Part, Part]:
    """All samples whose labels are known, and those to evaluate on. Raises ValueError where these are of another
    kind."""
    known = known_part(trained)
    held = open_part(find_datasets(trained.dataset, trained.data_root), settings.split, trained)
    refuse_other_kind(known.split, held.split)
    refuse_unlabelled(held, trained)
    if settings.backbone != SCRATCH:
        tell_size(Path(settings.backbone), known)
    return known, held


def hold_out(settings: Settings, trained: TrainSettings, known: Part, held: Part) -> Unseen:
    """The samples to evaluate on: those that are not known, and that the pretraining of the backbone has not seen.
    Raises ValueError where none is left, or nobody can tell what the pretraining has seen."""
    allow = bool(settings.allow_pretrained_overlap)
    return unseen_by(held, lambda: seen_by(trained, known, known.only(NOBODY)), allow_pretrained=allow)


def on_report(settings: Settings, held: Part) -> None:
    """Raise ValueError where the report of the run would replace one of other images."""
    refuse_other_report(settings.run / REPORT, subject_of(held.split.dataset_id, settings.split, []))


def tell_size(backbone: Path, known: Part) -> None:
    """Say so where a backbone was pretrained on the middle of images alone, and gets all of them now."""
    seen, size = pretrain_settings(backbone).image_size, known.split.schema.shape[-1]
    if seen not in (0, size):
        say(f"{backbone} was pretrained on {seen} pixels a side, and gets {size}; `deeplense pack --crop {seen}` crops")


def evaluate_kept(settings: Settings, trained: TrainSettings) -> int:
    """Evaluate the weights that a training kept, as a part of its attempt."""
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


def probe(settings: Settings, trained: TrainSettings) -> int:
    """Fit a probe to frozen features, and report what it says of held-out images; nothing of it is kept half."""
    accelerator = make_accelerator(device=trained.device, precision="fp32")
    known, held = known_and_held(settings, trained)
    unseen = hold_out(settings, trained, known, held)
    on_report(settings, held)
    pretrained = read_pretrained(Path(settings.backbone))
    network = make_network(trained, known.split, load_pretrained=False)
    load_encoder(network, pretrained)
    network.to(accelerator.device)
    with Claim(binding(settings), take_over=bool(trained.take_over)) as claim:
        claim.check()
        if is_finished(settings.run):
            say(f"{settings.run} is finished; its report is {settings.run / 'report'}")
            return 0
        claim.open()
        learnt, asked = (features_of(network, each, known, trained, accelerator) for each in (known, unseen.part))
        said = PROBES[settings.mode](learnt.outputs, learnt.labels, asked.outputs, len(known.split.schema.classes))
        predictions = Predictions(np.log(said + TINY).astype(np.float32), asked.labels, asked.target, asked.indices)
        weights = f"those of the backbone, of step {pretrained.opened.step}"
        write_probe(settings, Evaluated(settings.run, trained, unseen, predictions, weights, extent=None))
    return 0


def kept_settings(settings: Settings, trained: TrainSettings) -> Settings | TrainSettings:
    """What the folder of the run holds as its settings: those of the training, where there is one."""
    return trained if settings.mode == "full" else binding(settings)


def binding(settings: Settings) -> Settings:
    """The settings without those of the training that change no number."""
    free = {each.name for each in fields(TrainSettings) if each.metadata.get("free")}
    return replace(settings, training={name: value for name, value in settings.training.items() if name not in free})


def write_probe(settings: Settings, found: Evaluated) -> None:
    """Report what a probe says, as an attempt."""
    number = begin_attempt(settings.run, first_step=0, num_processes=1)
    report(settings.split, [found], settings.run / REPORT, shown=plain(settings))
    write_record(settings.run / FINISHED, {"step": 0})
    end_attempt(settings.run, number, reason="finished", last_step=0)


def features_of(
    network: nn.Module, part: Part, known: Part, trained: TrainSettings, accelerator: Accelerator
) -> Predictions:
    """Features (n, D) of a part, with the mean and standard deviation of the samples that are known."""
    scaling = Scaling(find_statistics(known, trained.stretch, accelerator), trained.stretch)

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        return cast(Network, network).backbone(cast(Network, network).input_size(scaling.scaled(batch.images)))

    return predict_part(network, forward, part, accelerator, batch_size=EVALUATION_BATCH)
