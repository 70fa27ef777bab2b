"""Predict images with trained runs, and write a table of predictions."""

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deeplense.files import read_json, remove_leftovers, sole_writer
from jobs.bounds import read_part
from jobs.console import say, track
from jobs.data.order import class_fractions
from jobs.data.predictions import FORMAT, positive_class
from jobs.predict.calibration import calibrate
from jobs.predict.images import with_layout
from jobs.predict.members import Member
from jobs.predict.output import (
    MANIFEST,
    agreed_plan,
    complete,
    ranges_of,
    rows_per_file,
    write_files,
)
from jobs.predict.scoring import Scorer, make_rows, one_process, scorer_of
from jobs.predict.settings import Settings
from jobs.predict.table import PROBLEM
from jobs.runs.environment import num_cores
from jobs.runs.lineage import seen_of
from jobs.settings import require
from jobs.train.stored import tell_unfinished

SAME_SIDE = 0.01
"""Relative difference of the sides of pixels that counts as none."""
IN_MEMORY = ("npz", "parquet")
"""Layouts whose images are held in memory."""
FEW_IMAGES = 4096
"""With fewer images, more processes take longer to start than to predict."""


def run(settings: Settings) -> int:
    """Predict all images whose predictions are missing."""
    settings = with_layout(settings)
    scorer = scorer_of(one_process(settings))
    facts, folder = facts_of(settings, scorer), settings.output
    tell_unfinished([each.trained for each in scorer.members])
    part = read_part(settings.part) if settings.part else (1, 1)
    with sole_writer(folder, shared=settings.part is not None):
        if not settings.part and folder.is_dir():
            remove_leftovers(folder)
        plan = agreed_plan(folder, facts, partial(measured, settings, scorer, facts))
        tell_start(settings, scorer, plan)
        tell_pooled(plan, folder)
        total = sum(map(len, ranges_of(plan)[part[0] - 1 :: part[1]]))
        done = write_files(
            folder,
            plan,
            partial(make_rows, settings=one_process(settings), facts=plan),
            part=part,
            num_workers=settings.num_workers or default_workers(scorer),
            preload=make_rows.__module__,
        )
        track(done, total=total, unit="images")
        missing = complete(folder, plan)
    if settings.part and not missing:
        # Of other parts that were killed. If one is at work, it has its own end.
        with contextlib.suppress(ValueError), sole_writer(folder):
            remove_leftovers(folder)
    rest = f"part {settings.part} is done; {missing} files of other parts are still missing. The part that ends last, "
    say(f"{rest}or the command without --part, completes the table" if missing else summary_of(folder))
    return 0


def summary_of(folder: Path) -> str:
    """Describe a complete table."""
    files = read_json(folder / MANIFEST)["files"]
    problems = sum(line["num_problems"] for line in files)
    bad = f"; {problems} of them could not be predicted, see the column {PROBLEM}" if problems else ""
    return f"{folder / MANIFEST} is complete: {sum(line['num_images'] for line in files)} images{bad}"


def default_workers(scorer: Scorer) -> int:
    """Return the number of processes: one for a GPU, for few images, or for a file that each process would hold in
    memory; otherwise one per core."""
    alone = scorer.device.type != "cpu" or scorer.settings.layout in IN_MEMORY
    return 1 if alone or len(scorer.images) < FEW_IMAGES else num_cores()


def facts_of(settings: Settings, scorer: Scorer) -> dict[str, Any]:
    """Return everything known before a prediction that the table depends on. Raises ValueError if prevalence or
    coverage is given for a regression, or the class is unknown."""
    images, classes, target = scorer.images, scorer.classes, scorer.members[0].trained.settings.target
    for name in ("prevalence", "coverage"):
        given = getattr(settings, name) is not None
        require(bool(classes) or not given, f"--{name} is for classifications, but the runs predict {target}.")
    rows = rows_per_file(len(images), batch_size=settings.batch_size, asked=settings.images_per_file)
    return {
        "format": FORMAT,
        **images.where,
        "dataset_id": images.identity,
        "num_images": len(images),
        "images_per_file": rows,
        "shape": list(images.shape),
        "bands": list(images.bands or scorer.schema.bands),
        "classes": list(classes),
        "target": None if classes else {"name": target, "unit": scorer.schema.targets[target]},
        "runs": [run_facts(each) for each in scorer.members],
        "class_name": None
        if settings.prevalence is None
        else positive_class(classes, settings.class_name, told="--prevalence"),
        **{name: getattr(settings, name) for name in ("prevalence", "coverage", "views", "embeddings")},
        **{name: getattr(settings, name) for name in ("calibrate", "precision", "batch_size")},
        # Older tables have no such entry.
        **({"allow_pretrained_overlap": 1} if settings.allow_pretrained_overlap else {}),
        "versions": {name: importlib.metadata.version(name) for name in ("deeplense", "torch", "pyarrow")},
    }


def run_facts(member: Member) -> dict[str, Any]:
    """Return the facts about a run: its weights, and the class fractions that it was trained with."""
    trained = member.trained
    found: dict[str, Any] = {
        "run": str(trained.run),
        "model_name": trained.settings.model_name,
        "weights": trained.opened.which,
        "step": trained.opened.step,
        "xxh3_128": trained.opened.files["model.safetensors"],
        "trained_on": trained.train.split.dataset_id,
    }
    if not trained.settings.regression:
        found["class_fractions"] = class_fractions(trained.settings, trained.train).tolist()
    return found


def measured(settings: Settings, scorer: Scorer, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts with what is measured on validation images: temperatures, and what
    decides which classes are in a set."""
    if not scorer.classes:
        return {**facts, "thresholds": None, "cross": None}
    found = calibrate(settings, scorer.members, scorer.device)
    runs = [{**run, **known} for run, known in zip(facts["runs"], found["runs"], strict=True)]
    return {**facts, **found, "runs": runs}


def tell_start(settings: Settings, scorer: Scorer, plan: dict[str, Any]) -> None:
    """Print what is about to be predicted."""
    members, images = scorer.members, scorer.images
    told = str(members[0].trained.run) if len(members) == 1 else f"an ensemble of {len(members)} runs"
    views = f", {settings.views} views of each" if settings.views > 1 else ""
    part = f"part {settings.part}: " if settings.part else ""
    say(f"{part}predicting {len(images)} images of {images.name} with {told}{views}, into {settings.output}")
    for line in (*differing_pixels(scorer), *unknown_past(scorer)):
        say(line)
    if plan["prevalence"] is not None:
        say(f"probabilities are for a fraction of {plan['prevalence']:g} of the class {plan['class_name']}")


def tell_pooled(plan: Mapping[str, Any], folder: Path) -> None:
    """Print a note if an earlier version has begun a table of several runs: it pooled their calibration images, also
    those that some of the runs were trained on."""
    if len(plan["runs"]) > 1 and plan.get("thresholds") is not None and "cross" not in plan:
        say(
            f"note: an earlier version began {folder}; unless its runs have the same validation images, its sets "
            "contain the true class less often than --coverage says; give a new --output"
        )


def differing_pixels(scorer: Scorer) -> Iterator[str]:
    """Yield a note if the pixels of the images are not of the size or the unit of the training images."""
    schema, (unit, side), name = scorer.schema, scorer.images.pixels, scorer.images.name
    trained = schema.pixel_scale_arcsec
    if side and trained and abs(side / trained - 1) > SAME_SIDE:
        yield (
            f"note: a pixel of {name} is {side:g} arcsec wide, but {trained:g} arcsec in the training images; the "
            "network has not seen lenses of this size in pixels"
        )
    if unit and schema.unit and unit != schema.unit:
        yield f"note: the pixels of {name} are in {unit}, but those of the training images in {schema.unit}"


def unknown_past(scorer: Scorer) -> Iterator[str]:
    """Yield a note for weights whose training images are unknown, so that `seen` does not cover them."""
    told = dict.fromkeys(text for each in scorer.members for text in seen_of(each.trained.opened).unknown)
    yield from (f"note: {text}; the column seen does not cover its training images" for text in told)
