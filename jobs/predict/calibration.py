"""Calibration of an ensemble on images that its runs were not trained on. K classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense.data.dataset import evaluation_batches
from deeplense.evaluation.conformal import cross_calibration, thresholds
from deeplense.evaluation.selection import few_images
from deeplense.evaluation.temperature import fit_temperature, mean_log_loss, probabilities_of
from deeplense.records import read_record, write_record
from jobs.console import say
from jobs.data.folders import find_datasets
from jobs.data.order import class_fractions
from jobs.data.part import HELD_OUT, Part
from jobs.predict.members import Member, precise
from jobs.predict.settings import Settings
from jobs.runs.lineage import seen_of
from jobs.settings import require
from jobs.train.samples import held_out_part

TEMPERATURE = "temperature.json"
"""File in a run folder with its temperatures, by weights, views and precision."""
FIT = 3
"""Version of the fit; a stored temperature of another version is not used."""
TINY = 1e-300
MEMBER_KIND = {"temperature": float, "validation_images": int, "log_loss_before": float, "log_loss_after": float}


@dataclass(frozen=True)
class Scored:
    """Logits (n, K) and labels (n,) of images that a run was not trained on, and which images they are."""

    logits: np.ndarray
    labels: np.ndarray
    dataset_id: str
    indices: np.ndarray


def calibrate(settings: Settings, members: Sequence[Member], device: torch.device) -> dict[str, Any]:
    """Return the temperature of each run and, with a coverage, what decides which classes are in a set (`decisions`).
    Images are predicted where that is needed, and the temperatures are kept with the runs.

    Raises ValueError if a run has no image to calibrate it with."""
    if settings.calibrate or settings.coverage is not None:
        tell_unknown(members)
    found = []
    for member in members:
        known = known_temperature(settings, member) if settings.calibrate else {"temperature": 1.0}
        if known is None:
            images = scored(settings, member, validation_part(member), device)
            known = fitted(images, class_fractions(member.trained.settings, member.trained.train))
            keep(settings, member, known)
            tell(member, known, images)
        found.append(known)
    sets = {"thresholds": None, "cross": None}
    if settings.coverage is not None:
        parts = calibration_parts(members)
        images = [scored(settings, member, part, device) for member, part in zip(members, parts, strict=True)]
        sets = decisions(images, [each["temperature"] for each in found], settings.coverage, members)
    return {"runs": found, **sets}


def validation_part(member: Member) -> Part:
    """Return the validation images of a run. Raises ValueError if there is none."""
    part: Part = member.trained.val
    require(len(part) > 0, f"{member.trained.run} has no validation image to calibrate with; give --calibrate 0.")
    return part


def calibration_parts(members: Sequence[Member]) -> list[Part]:
    """Return the images that calibrate the sets of each run: its held-out fold if there are several runs and all have
    one, otherwise its validation images."""
    kept = [each.trained.settings for each in members]
    if len(kept) == 1 or not all(each.num_folds for each in kept):
        return [validation_part(each) for each in members]
    return [held_out_part(each, find_datasets(each.dataset, each.data_root), HELD_OUT) for each in kept]


def scored(settings: Settings, member: Member, part: Part, device: torch.device) -> Scored:
    """Return the logits of a run for those images of a part that neither it nor its initial weights were trained on."""
    part = unseen(settings, member, part)
    say(f"predicting {len(part)} images that {member.trained.run} was not trained on, to calibrate it")
    batches = evaluation_batches(part.split, part.indices, batch_size=settings.batch_size, target=None)
    with precise(settings, device):
        logits = [member.outputs(batch.to(device).images, views=settings.views).cpu().numpy() for batch in batches]
    return Scored(np.concatenate(logits), part.labels, part.split.dataset_id, part.indices)


def unseen(settings: Settings, member: Member, part: Part) -> Part:
    """Return the images of a part that neither a run nor its initial weights were trained on. Images seen without
    labels in pretraining are left out unless allowed. Raises ValueError if none is left."""
    seen, hashes = seen_of(member.trained.opened), part.split.hashes(part.indices)
    trained = np.isin(hashes, seen.trained)
    pretrained = np.isin(hashes, seen.pretrained) & ~trained & (not settings.allow_pretrained_overlap)
    out = trained | pretrained
    if not out.any():
        return part
    told = (
        f"{int(out.sum())} of the {len(part)} images to calibrate {member.trained.run} with were seen before by its "
        f"initial weights: {int(trained.sum())} trained on, {int(pretrained.sum())} without labels in pretraining"
    )
    remedy = "give --allow_pretrained_overlap 1 to use those of the pretraining, or " if pretrained.any() else ""
    require(
        not out.all(),
        f"{told}. Images that the weights have not seen are needed, or the probabilities are too sure; {remedy}start "
        "the run from weights that have not seen its held-out images (for a fold, those of the same fold), or give "
        "--calibrate 0 and no --coverage.",
    )
    say(f"note: {told}; they are left out")
    return part.only(~out)


def tell_unknown(members: Sequence[Member]) -> None:
    """Print a note for each run whose initial weights may have been trained on the images that calibrate it."""
    for member in members:
        for text in seen_of(member.trained.opened).unknown:
            say(f"note: {text}; if on those that calibrate {member.trained.run}, its calibration is wrong")


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


def tell(member: Member, known: Mapping[str, Any], images: Scored) -> None:
    """Print the temperature of a run, and whether it rests on few images."""
    classes = member.trained.val.split.schema.classes
    counts = np.bincount(images.labels, minlength=len(classes)).tolist()
    few, count = few_images(dict(zip(classes, counts, strict=True))), known["validation_images"]
    say(
        f"temperature of {member.trained.run}: {known['temperature']:.3g}, from {count} validation images"
        f"{f' (few: {few}; its probabilities are uncertain)' if few else ''}; log loss "
        f"{known['log_loss_before']:.4g} before, {known['log_loss_after']:.4g} after"
    )


def decisions(
    images: Sequence[Scored], temperatures: Sequence[float], coverage: float, members: Sequence[Member]
) -> dict[str, Any]:
    """Return what decides which classes are in a set: `thresholds` (K,) if all runs have the same calibration images,
    otherwise the fields of a `CrossCalibration` as `cross`. Says which classes are in every set."""
    groups = groups_of(images, temperatures)
    found = cross_calibration(groups, coverage)
    classes = members[0].trained.train.split.schema.classes
    free = [name for name, need in zip(classes, found.needed, strict=True) if need == 0]
    if free:
        say(
            f"note: too few calibration images of {', '.join(free)} for this --coverage; it is in the set of each image"
        )
    if len(groups) == 1:
        ((_, given, labels),) = groups
        return {"thresholds": thresholds(given, labels, coverage).tolist(), "cross": None}
    bound = f"; in theory about {max(2 * coverage - 1, 0):.3g} or more for many images" if are_folds(groups) else ""
    say(
        "note: each calibration image was held out by some of the runs only, so the sets are cross-conformal: they "
        f"contain the true class with a probability near {coverage:g}{bound}"
    )
    lowest = [[values.tolist() for values in group] for group in found.lowest]
    return {"thresholds": None, "cross": {"networks": found.networks, "lowest": lowest, "needed": found.needed}}


def are_folds(groups: Sequence[tuple[tuple[int, ...], np.ndarray, np.ndarray]]) -> bool:
    """Whether each calibration image was held out by one run only, and by no run twice, as in cross-validation. The
    coverage of CV+ has a lower bound for such images (Barber et al. 2021, theorem 4), and none is known for others."""
    return all(len(those) == 1 for those, _, _ in groups)


def groups_of(
    images: Sequence[Scored], temperatures: Sequence[float]
) -> list[tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
    """Return calibration images by the runs that were not trained on them: the numbers of the runs, the mean of their
    probabilities (n, K), and the labels (n,)."""
    runs: dict[tuple[str, int], list[int]] = {}
    rows: dict[tuple[str, int], list[np.ndarray]] = {}
    labels: dict[tuple[str, int], int] = {}
    for m, (each, temperature) in enumerate(zip(images, temperatures, strict=True)):
        given = probabilities_of(each.logits, temperature)
        for index, label, row in zip(each.indices.tolist(), each.labels.tolist(), given, strict=True):
            key = each.dataset_id, index
            runs.setdefault(key, []).append(m)
            rows.setdefault(key, []).append(row)
            labels[key] = label
    groups: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for key, those in runs.items():
        groups.setdefault(tuple(those), []).append(key)
    return [
        (those, np.stack([np.mean(rows[key], axis=0) for key in keys]), np.array([labels[key] for key in keys]))
        for those, keys in sorted(groups.items())
    ]


def key_of(settings: Settings, member: Member) -> str:
    """Return the key of the temperature of a run: its weights, the views, the precision, and how it is fitted."""
    weights = member.trained.opened.files["model.safetensors"]
    overlap = " allow_pretrained_overlap=1" if settings.allow_pretrained_overlap else ""
    return f"{weights} views={settings.views} precision={settings.precision}{overlap} fit={FIT}"


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
