"""Which images a run has seen, with all that it starts from: its own, those of the pretraining of its backbone, those
of the run that a file of weights was exported from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deeplense.files import read_json
from jobs.config import from_plain, require
from jobs.experiment import Part, image_parts, learning_parts
from jobs.learner import Learner
from jobs.learning import LearningSettings
from jobs.opening import Opened, open_run_for
from jobs.pretrain import Settings as PretrainSettings
from jobs.ranks import announce, on_main
from jobs.runs import SEEN
from jobs.seen import SEEN_HASH, Seen, from_text, hashes_of, read_seen, same_on_all, write_seen
from jobs.train import Settings as TrainSettings


def note_seen(
    learner: Learner, settings: LearningSettings, record: Mapping[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """Write what a training sees into the folder of its run, unless it is there as the record of the checkpoint says;
    returns what the record of the next one is to say, on the main process."""
    known, path = record.get(SEEN_HASH), settings.run / SEEN
    if same_on_all(path, known, accelerator):
        return {SEEN_HASH: known}
    train = hashes_of([learner.train], accelerator)
    others = [part for part in learner.read if part is not learner.train]
    # Only where there is a score do images choose among the weights.
    chose = hashes_of(others if learner.score_name else [], accelerator)
    own = Seen(pretrained=train) if isinstance(settings, PretrainSettings) else Seen(trained=train, chose=chose)

    def write() -> tuple[str, tuple[str, ...]]:
        seen = own.and_all(seen_before(settings))
        return write_seen(path, seen), seen.unknown

    written = on_main(accelerator, write)
    if written is None:
        return {}
    for text in written[1]:
        announce(accelerator, f"note: {text}; `deeplense evaluate` will say so, and refuse unless it is allowed.")
    return {SEEN_HASH: written[0]}


def seen_of(opened: Opened[Any]) -> Seen:
    """Which images a run has seen: what it noted when it began, or, where that is not there, what its data set has, if
    it is still that one. Raises ValueError where nobody can tell."""
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
    """What a training with labels on these parts has seen."""
    return Seen(trained=hashes_of([train]), chose=hashes_of([val])).and_all(seen_before(settings))


def seen_before(settings: LearningSettings) -> Iterator[Seen]:
    """What the weights have seen that a training starts from."""
    if not isinstance(settings, TrainSettings):
        return
    if settings.backbone:
        yield seen_by_backbone(settings.backbone)
    if settings.pretrained_file:
        yield seen_by_file(settings.pretrained_file)
    elif settings.pretrained:
        yield Seen(foreign=("starts from weights that timm publishes",))


def seen_by_backbone(run: Path) -> Seen:
    """What the pretraining of a backbone has seen, as far as it can be known."""
    try:
        return seen_of(open_run_for(run, "pretrain", PretrainSettings, which="last"))
    except (ValueError, OSError) as error:
        return Seen(unknown=(f"it cannot be checked which images the pretraining of {run} has seen ({error})",))


def seen_by_file(path: Path) -> Seen:
    """What the weights in a file have seen, as far as it can be known; those of other programs say nothing of it."""
    told_by = path.with_name(f"{path.name}.json")
    if not told_by.is_file():
        return Seen(foreign=(f"starts from the weights of {path}, which say nothing of what they have seen",))
    try:
        return seen_by_exported(read_json(told_by))
    except (ValueError, OSError, KeyError, TypeError) as error:
        return Seen(unknown=(f"it cannot be checked which images the weights of {path} have seen ({error})",))


def seen_by_exported(told: Mapping[str, Any]) -> Seen:
    """What the weights of `deeplense export` have seen: as it wrote beside them, or, of an older version, what the data
    set has that they were trained on. Raises ValueError where nobody can tell."""
    if "seen" in told:
        return from_text(told["seen"])
    settings = from_plain(TrainSettings, told["settings"])
    train, val = learning_parts(settings)
    require(
        train.split.dataset_id == told["dataset_id"],
        f"{train.split.name} is not the data set that they were trained on; bring that one back, or export them again",
    )
    return seen_by(settings, train, val)
