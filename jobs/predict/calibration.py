"""Calibration of an ensemble on the validation images of its runs. K classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense.data.dataset import evaluation_batches
from deeplense.evaluation.conformal import thresholds
from deeplense.evaluation.selection import few_images
from deeplense.evaluation.temperature import fit_temperature, mean_log_loss, probabilities_of
from deeplense.records import read_record, write_record
from jobs.console import say
from jobs.data.order import class_fractions
from jobs.data.part import Part
from jobs.predict.members import Member, precise
from jobs.predict.settings import Settings
from jobs.settings import require
from jobs.train.learner import class_counts

TEMPERATURE = "temperature.json"
"""File in a run folder with its temperatures, by weights, views and precision."""
FIT = 2
"""Version of the fit; a stored temperature of another version is not used."""
TINY = 1e-300
MEMBER_KIND = {"temperature": float, "validation_images": int, "log_loss_before": float, "log_loss_after": float}


@dataclass(frozen=True)
class Scored:
    """Logits (n, K) and labels (n,) of the validation images of a run, and which images they are."""

    logits: np.ndarray
    labels: np.ndarray
    dataset_id: str
    indices: np.ndarray


def calibrate(settings: Settings, members: Sequence[Member], device: torch.device) -> dict[str, Any]:
    """Return the temperature of each run, and the thresholds (K,) of the classes in conformal sets (None without
    coverage). The validation images are predicted where that is needed, and the temperatures are kept with the runs.

    Raises ValueError if a run has no validation image."""
    stored = [known_temperature(settings, each) for each in members]
    if not settings.calibrate:
        stored = [{"temperature": 1.0} for _ in members]
    needed = settings.coverage is not None
    scored = [
        score_validation(settings, each, device) if needed or known is None else None
        for each, known in zip(members, stored, strict=True)
    ]
    found = []
    for member, known, images in zip(members, stored, scored, strict=True):
        if known is None:
            assert images
            known = fitted(images, class_fractions(member.trained.settings, member.trained.train))
            keep(settings, member, known)
            tell(member, known)
        found.append(known)
    least = None
    if needed:
        temperatures = [each["temperature"] for each in found]
        least = pooled_thresholds([each for each in scored if each], temperatures, settings.coverage or 0)
        tell_unlimited(members[0], least)
    return {"runs": found, "thresholds": None if least is None else least.tolist()}


def score_validation(settings: Settings, member: Member, device: torch.device) -> Scored:
    """Return the logits of the validation images of a run."""
    part: Part = member.trained.val
    require(len(part) > 0, f"{member.trained.run} has no validation image to calibrate with; give --calibrate 0.")
    say(f"predicting the {len(part)} validation images of {member.trained.run}")
    batches = evaluation_batches(part.split, part.indices, batch_size=settings.batch_size, target=None)
    with precise(settings, device):
        logits = [member.outputs(batch.to(device).images, views=settings.views).cpu().numpy() for batch in batches]
    return Scored(np.concatenate(logits), part.labels, part.split.dataset_id, part.indices)


def fitted(images: Scored, trained_with: np.ndarray) -> dict[str, Any]:
    """Return the temperature that fits some images, and the log loss before and after, at the class fractions of these
    images. `trained_with` has the class fractions of the training, (K,)."""
    own = np.bincount(images.labels, minlength=len(trained_with)) / len(images.labels)
    offset = np.log(own + TINY) - np.log(trained_with + TINY)
    temperature = fit_temperature(images.logits, images.labels, offset=offset)
    return {
        "temperature": temperature,
        "validation_images": len(images.labels),
        "log_loss_before": mean_log_loss(images.logits, images.labels, offset=offset),
        "log_loss_after": mean_log_loss(images.logits, images.labels, temperature, offset=offset),
    }


def tell(member: Member, known: Mapping[str, Any]) -> None:
    """Print the temperature of a run, and whether it rests on few images."""
    few, count = few_images(class_counts(member.trained.val)), known["validation_images"]
    say(
        f"temperature of {member.trained.run}: {known['temperature']:.3g}, from {count} validation images"
        f"{f' (few: {few}; its probabilities are uncertain)' if few else ''}; log loss "
        f"{known['log_loss_before']:.4g} before, {known['log_loss_after']:.4g} after"
    )


def pooled_thresholds(scored: Sequence[Scored], temperatures: Sequence[float], coverage: float) -> np.ndarray:
    """Return the thresholds (K,) of conformal sets. Each validation image has the mean probability of the runs that it
    validated, which were not trained on it."""
    sums: dict[tuple[str, int], np.ndarray] = {}
    counts: dict[tuple[str, int], int] = {}
    labels: dict[tuple[str, int], int] = {}
    for images, temperature in zip(scored, temperatures, strict=True):
        rows = probabilities_of(images.logits, temperature)
        for index, label, row in zip(images.indices.tolist(), images.labels.tolist(), rows, strict=True):
            key = images.dataset_id, index
            sums[key] = sums.get(key, 0) + row
            counts[key] = counts.get(key, 0) + 1
            labels[key] = label
    if min(counts.values()) < len(scored):
        say(
            "note: the runs have different validation images, so the sets of their ensemble may contain the true class "
            "less often than --coverage"
        )
    means = np.stack([sums[key] / counts[key] for key in sums])
    return thresholds(means, np.array([labels[key] for key in sums]), coverage)


def tell_unlimited(member: Member, least: np.ndarray) -> None:
    """Report the classes that are in every set, because they have too few validation images."""
    classes = member.trained.train.split.schema.classes
    free = [name for name, value in zip(classes, least, strict=True) if value == 0]
    if free:
        say(f"note: too few validation images of {', '.join(free)} for this --coverage; it is in the set of each image")


def key_of(settings: Settings, member: Member) -> str:
    """Return the key of the temperature of a run: its weights, the views, the precision, and how it is fitted."""
    weights = member.trained.opened.files["model.safetensors"]
    return f"{weights} views={settings.views} precision={settings.precision} fit={FIT}"


def known_temperature(settings: Settings, member: Member) -> dict[str, Any] | None:
    """Return the stored temperature of a run for these settings; None if there is none."""
    found = stored_temperatures(member.trained.run / TEMPERATURE).get(key_of(settings, member))
    if not isinstance(found, Mapping) or not all(isinstance(found.get(k), kind) for k, kind in MEMBER_KIND.items()):
        return None
    return dict(found) if found["temperature"] > 0 else None


def stored_temperatures(path: Path) -> dict[str, Any]:
    """Return the stored temperatures of a run; none if the file is missing or damaged."""
    try:
        return dict(read_record(path, {"temperatures": dict})["temperatures"])
    except (ValueError, FileNotFoundError):
        return {}


def keep(settings: Settings, member: Member, found: Mapping[str, Any]) -> None:
    """Write the temperature of a run to its folder; if that is not possible, say so."""
    path = member.trained.run / TEMPERATURE
    try:
        write_record(path, {"temperatures": {**stored_temperatures(path), key_of(settings, member): dict(found)}})
    except OSError as error:
        say(f"note: the temperature is not kept in {path} ({error.strerror})")
