"""Training and evaluation samples of a fine-tuning."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from jobs.console import say
from jobs.data.folders import find_datasets
from jobs.data.part import Part
from jobs.evaluate.folder import refuse_other_report
from jobs.evaluate.report import subject_of
from jobs.finetune.settings import SCRATCH, Settings
from jobs.pretrain.backbone import pretrain_settings
from jobs.runs.lineage import seen_by
from jobs.runs.stored import REPORT
from jobs.train.samples import known_part, open_part, refuse_unlabelled
from jobs.train.settings import Settings as TrainSettings
from jobs.train.stored import Unseen, refuse_other_kind, unseen_by

NOBODY = np.empty(0, dtype=np.int64)


def known_and_held(settings: Settings, trained: TrainSettings) -> tuple[Part, Part]:
    """Return all labelled samples, and those to evaluate on. Raises ValueError if these differ in kind."""
    known = known_part(trained)
    held = open_part(find_datasets(trained.dataset, trained.data_root), settings.split, trained)
    refuse_other_kind(known.split, held.split)
    refuse_unlabelled(held, trained)
    if settings.backbone != SCRATCH:
        tell_size(Path(settings.backbone), known)
    return known, held


def hold_out(settings: Settings, trained: TrainSettings, known: Part, held: Part) -> Unseen:
    """Return the samples to evaluate on: neither labelled for training nor seen by the pretraining of the backbone.
    Raises ValueError if none is left, or if it is unknown what the pretraining has seen."""
    allow = bool(settings.allow_pretrained_overlap)
    return unseen_by(held, lambda: seen_by(trained, known, known.only(NOBODY)), allow_pretrained=allow)


def on_report(settings: Settings, held: Part) -> None:
    """Raise ValueError if the report of the run would replace one about other images."""
    refuse_other_report(settings.run / REPORT, subject_of(held.split.dataset_id, settings.split, []))


def tell_size(backbone: Path, known: Part) -> None:
    """Report if a backbone was pretrained on central crops only and now gets larger images."""
    seen, size = pretrain_settings(backbone).image_size, known.split.schema.shape[-1]
    if seen not in (0, size):
        say(
            f"note: {backbone} was pretrained on {seen} x {seen} pixels, these images have {size} x {size}; "
            f"`deeplense pack --crop {seen}` crops them"
        )


def kept_settings(settings: Settings, trained: TrainSettings) -> Settings | TrainSettings:
    """Return the settings that the run folder stores: those of the training, if there is one."""
    return trained if settings.mode == "full" else binding(settings)


def binding(settings: Settings) -> Settings:
    """Return the settings without those of the training that do not affect numerical results."""
    free = {each.name for each in fields(TrainSettings) if each.metadata.get("free")}
    return replace(settings, training={name: value for name, value in settings.training.items() if name not in free})
