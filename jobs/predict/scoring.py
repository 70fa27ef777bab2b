"""The rows of the table for a range of images. b images of a batch, n images of a range, K classes, D features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash

from deeplense.evaluation.conformal import CrossCalibration, cross_sets, sets
from deeplense.evaluation.temperature import at_fractions, fractions_at, probabilities_of
from deeplense.training.loop import make_accelerator
from jobs.data.images import Images, Loaded
from jobs.predict.images import open_images
from jobs.predict.members import Member, features_kept, make_members, open_runs, precise
from jobs.predict.settings import Settings
from jobs.predict.table import PROBLEM, class_columns, embedding_column, known_columns, make_table, set_columns, without
from jobs.runs.lineage import seen_of
from jobs.settings import require
from jobs.train.stored import TrainedRun

TINY = 1e-300
"""Added to probabilities before their logarithm is taken."""


@dataclass(frozen=True)
class Scorer:
    """The images and the networks of one process, ready to predict."""

    settings: Settings
    images: Images
    members: Sequence[Member]
    device: torch.device
    seen: np.ndarray
    """hashes of the images that a run was trained on or selected with"""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for a regression."""
        return () if self.members[0].trained.settings.regression else self.schema.classes

    @property
    def schema(self) -> Any:
        """The properties of the training images."""
        return self.members[0].trained.train.split.schema


@cache
def scorer_of(settings: Settings) -> Scorer:
    """Load the networks and open the images, once per process. Raises ValueError if they do not fit together."""
    device = make_accelerator(device=settings.device, precision="fp32").device
    if device.type == "cpu":
        # So that the bits of an output do not depend on the number of cores. Other processes use the other cores.
        torch.set_num_threads(1)
    images, runs = open_images(settings), open_runs(settings)
    refuse_other_images(images, runs[0])
    seen = [seen_of(each.opened) for each in runs]
    hashes = np.unique(np.concatenate([part for each in seen for part in (each.trained, each.chose)]))
    return Scorer(settings, images, make_members(runs, device), device, hashes)


def refuse_other_images(images: Images, trained: TrainedRun) -> None:
    """Raise ValueError if the images differ in shape or bands from those that a run was trained on."""
    schema = trained.train.split.schema
    for name in ("shape", "bands"):
        right, given = getattr(schema, name), getattr(images, name)
        told = f"{images.name} has {name} {given}, but {trained.run} was trained on {right}"
        same = right == given or (name == "bands" and not given)
        require(same, f"{told}; give images of the same kind, for example with --crop or --bands.")


def one_process(settings: Settings) -> Settings:
    """Return settings without those that do not affect the rows, so that a process loads the networks once."""
    return replace(settings, part=None, num_workers=0)


def make_rows(rows: range, settings: Settings, facts: Mapping[str, Any]) -> pa.Table:
    """Return the part of the table for a range of images. Its bytes depend on nothing but the arguments (and on the
    kind of the processor)."""
    scorer = scorer_of(one_process(settings))
    size = settings.batch_size
    blocks = [range(k, min(k + size, rows.stop)) for k in range(rows.start, rows.stop, size)]
    found = [score(scorer, block) for block in blocks]
    outputs = [np.concatenate([each.outputs[m] for each in found]) for m in range(len(scorer.members))]
    known = {name: np.concatenate([each.loaded.known[name] for each in found]) for name in found[0].loaded.known}
    problems = [each.loaded.problems.get(k) for each in found for k in range(len(each.seen))]
    numbers = columns_of_classes(scorer, outputs, facts) if scorer.classes else columns_of_numbers(scorer, outputs)
    columns = known_columns(known, rows, np.concatenate([each.seen for each in found]))
    columns |= {PROBLEM: pa.array(problems, pa.string()), **without(numbers, problems)}
    if settings.embeddings:
        columns["embedding"] = embedding_column(np.concatenate([each.features for each in found]), problems)
    return make_table(columns, facts)


@dataclass(frozen=True)
class Block:
    """A batch, the outputs (b, K) of each network, the features (b, D) of the first (D = 0 if they are not needed), and
    which images were used in training, (b,)."""

    loaded: Loaded
    outputs: Sequence[np.ndarray]
    features: np.ndarray
    seen: np.ndarray


def score(scorer: Scorer, rows: range) -> Block:
    """Return the outputs of all networks for a batch of images."""
    settings, loaded = scorer.settings, scorer.images.read(rows)
    images = torch.from_numpy(loaded.images).to(scorer.device)
    features = np.empty((len(rows), 0), dtype=np.float32)
    with precise(settings, scorer.device):
        first, *others = scorer.members
        if settings.embeddings:
            with features_kept(first.network) as take:
                outputs = [first.outputs(images, views=settings.views)]
                features = take().cpu().numpy()
        else:
            outputs = [first.outputs(images, views=settings.views)]
        outputs += [each.outputs(images, views=settings.views) for each in others]
    hashes = np.array([xxhash.xxh3_64_intdigest(image.tobytes()) for image in loaded.images], dtype=np.uint64)
    arrays, problems = finite_only([each.cpu().numpy() for each in outputs])
    return Block(
        replace(loaded, problems={**problems, **loaded.problems}), arrays, features, np.isin(hashes, scorer.seen)
    )


def finite_only(outputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[int, str]]:
    """Return outputs (b, K) of each run with 0 for an image with outputs that are not finite, and its problem by its
    place."""
    bad = ~np.all([np.isfinite(each).all(axis=1) for each in outputs], axis=0)
    told = "the outputs of the network are not finite; its pixels may be far outside the range of the training images"
    return [np.where(bad[:, None], 0, each) for each in outputs], {int(k): told for k in np.flatnonzero(bad)}


def columns_of_classes(scorer: Scorer, logits: Sequence[np.ndarray], facts: Mapping[str, Any]) -> dict[str, pa.Array]:
    """Return the columns of a classification from the logits (n, K) of each run. The probabilities of an ensemble are
    means over its runs (Lakshminarayanan et al. 2017), and its logits their logarithms."""
    runs, settings = facts["runs"], scorer.settings
    calibrated = [probabilities_of(each, run["temperature"]) for each, run in zip(logits, runs, strict=True)]
    shifted = calibrated
    if settings.prevalence is not None:
        shifted = [shift(each, run, facts) for each, run in zip(calibrated, runs, strict=True)]
    mean = np.mean(shifted, axis=0)
    one = len(runs) == 1 and settings.prevalence is None
    found = class_columns(
        scorer.classes,
        logits=logits[0] / runs[0]["temperature"] if one else np.log(mean + TINY),
        probabilities=mean,
        spread=np.std(shifted, axis=0, ddof=1) if len(runs) > 1 else None,
    )
    return found | set_columns(scorer.classes, chosen_sets(calibrated, facts))


def chosen_sets(probabilities: Sequence[np.ndarray], facts: Mapping[str, Any]) -> np.ndarray | None:
    """Return which classes are in the set of each image, (n, K), from the probabilities of each run; None without
    coverage."""
    if facts["thresholds"] is not None:
        return sets(np.mean(probabilities, axis=0), np.array(facts["thresholds"]))
    # Tables that an older version has begun have no such entry.
    cross = facts.get("cross")
    if cross is None:
        return None
    lowest = [[np.array(values) for values in group] for group in cross["lowest"]]
    return cross_sets(probabilities, CrossCalibration(cross["networks"], lowest, cross["needed"]))


def shift(probabilities: np.ndarray, run: Mapping[str, Any], facts: Mapping[str, Any]) -> np.ndarray:
    """Return probabilities (n, K) at the stated prevalence instead of the class fractions of the training images."""
    before = np.array(run["class_fractions"])
    positive = facts["classes"].index(facts["class_name"])
    return at_fractions(probabilities, before, fractions_at(facts["prevalence"], positive, before))


def columns_of_numbers(scorer: Scorer, outputs: Sequence[np.ndarray]) -> dict[str, pa.Array]:
    """Return the columns of a regression from the outputs (n, 1) of each run: mean and, for several, spread."""
    name = scorer.members[0].trained.settings.target
    values = np.stack([each[:, 0] for each in outputs])
    found = {f"prediction_{name}": pa.array(values.mean(axis=0).astype(np.float32))}
    if len(values) > 1:
        found[f"spread_{name}"] = pa.array(values.std(axis=0, ddof=1).astype(np.float32))
    return found


Make = Callable[[range], pa.Table]
