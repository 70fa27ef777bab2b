"""Which images a run has seen: its own, those used to pretrain its backbone, and those of the run from which its
initial weights were exported."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from deeplense.files import read_json
from jobs.data.part import Part, image_parts
from jobs.data.seen import SEEN_HASH, Seen, from_text, hashes_of, read_seen, same_on_all, write_seen
from jobs.frame.learner import Learner
from jobs.frame.settings import LearningSettings
from jobs.pretrain.settings import Settings as PretrainSettings
from jobs.ranks import announce, on_main
from jobs.runs.folder import SEEN
from jobs.runs.opening import Opened, open_run_for
from jobs.settings import from_plain, require
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings as TrainSettings


def note_seen(
    learner: Learner, settings: LearningSettings, record: Mapping[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """Write which images a training uses to its run folder, unless the file matches the checkpoint. Returns the entry
    for the next checkpoint record, on the main process."""
    known, path = record.get(SEEN_HASH), settings.run / SEEN
    if same_on_all(path, known, accelerator):
        return {SEEN_HASH: known}
    train = hashes_of([learner.train], accelerator)
    others = [part for part in learner.read if part is not learner.train]
    # Without a score, no images are used for model selection.
    chose = hashes_of(others if learner.score_name else [], accelerator)
    own = Seen(pretrained=train) if isinstance(settings, PretrainSettings) else Seen(trained=train, chose=chose)

    def write() -> tuple[str, list[str]]:
        before = Seen().and_all(seen_before(settings))
        return write_seen(path, own.and_all([before])), [*notes(own, before)]

    written = on_main(accelerator, write)
    if written is None:
        return {}
    for text in written[1]:
        announce(accelerator, f"note: {text}.")
    return {SEEN_HASH: written[0]}


def notes(own: Seen, before: Seen) -> Iterator[str]:
    """Yield what the user should know about the images that the initial weights have seen.

    Args:
        own: images of the training itself.
        before: images that the initial weights have seen.
    """
    for text in before.unknown:
        yield f"{text}; `deeplense evaluate` will report this, and needs --allow_pretrained_overlap 1"
    known = int(np.isin(own.chose, before.trained).sum())
    if known:
        yield (
            f"the initial weights were trained on {known} of the {len(own.chose)} validation images, so the validation "
            "scores are too good, and model selection prefers early weights; use the --seed and --val_fraction of "
            "the other run, or other images"
        )


def seen_of(opened: Opened[Any]) -> Seen:
    """Return which images a run has seen: from its own file, or else from its data set if that is unchanged. Raises
    ValueError if neither is available."""
    noted = read_seen(opened.run / SEEN, opened.record.get(SEEN_HASH))
    if noted is not None:
        return noted
    settings = opened.settings
    if isinstance(settings, PretrainSettings):
        train, _ = image_parts(settings)
        opened.require_data(train.split)
        return Seen(pretrained=hashes_of([train]))
    train, val = learning_parts(settings)
    opened.require_data(train.split)
    return seen_by(settings, train, val)


def seen_by(settings: LearningSettings, train: Part, val: Part) -> Seen:
    """Return the images that a training with labels on these parts has seen."""
    return Seen(trained=hashes_of([train]), chose=hashes_of([val])).and_all(seen_before(settings))


def seen_before(settings: LearningSettings) -> Iterator[Seen]:
    """Yield the images that the initial weights of a training have seen."""
    if not isinstance(settings, TrainSettings):
        return
    if settings.backbone:
        yield seen_by_run(settings.backbone, "pretrain", PretrainSettings)
    if settings.init_from:
        yield seen_by_run(settings.init_from, "train", TrainSettings)
    if settings.pretrained_file:
        yield seen_by_file(settings.pretrained_file)
    elif settings.pretrained:
        yield Seen(foreign=("initialised from weights published by timm",))


def seen_by_run(run: Path, job: str, kind: type[LearningSettings]) -> Seen:
    """Return the images that the run from which a training starts has seen, as far as known."""
    try:
        return seen_of(open_run_for(run, job, kind, which="last"))
    except (ValueError, OSError) as error:
        what = f"the pretraining of {run}" if job == "pretrain" else str(run)
        return Seen(unknown=(f"it is unknown which images {what} was trained on ({error})",))


def seen_by_file(path: Path) -> Seen:
    """Return the images that the weights in a file have seen, as far as known. Files of other programs have no such
    record."""
    told_by = path.with_name(f"{path.name}.json")
    if not told_by.is_file():
        return Seen(foreign=(f"initialised from the weights of {path}, which do not record their training images",))
    try:
        return seen_by_exported(read_json(told_by))
    except (ValueError, OSError, KeyError, TypeError) as error:
        return Seen(unknown=(f"it is unknown which images the weights of {path} were trained on ({error})",))


def seen_by_exported(told: Mapping[str, Any]) -> Seen:
    """Return the images that weights written by `deeplense export` have seen: from the file next to them, or, for older
    versions, from the data set they were trained on. Raises ValueError if neither is available."""
    if "seen" in told:
        return from_text(told["seen"])
    settings = from_plain(TrainSettings, told["settings"])
    train, val = learning_parts(settings)
    require(
        train.split.dataset_id == told["dataset_id"],
        f"{train.split.name} is not the data set that they were trained on; restore that one, or export them again",
    )
    return seen_by(settings, train, val)
