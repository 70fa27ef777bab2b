"""An existing run of `deeplense train`: its network, its training data, and the samples that it has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deeplense.data.dataset import Split
from deeplense.data.order import num_steps
from deeplense.evaluation.selection import few_images
from deeplense.models.registry import Network
from deeplense.training.fitting import put_into
from deeplense.training.loop import from_main
from jobs.console import say
from jobs.data.part import Part
from jobs.data.seen import LeftOut, Seen, without_seen
from jobs.ranks import on_main
from jobs.runs.checkpoints import Which
from jobs.runs.lineage import seen_of
from jobs.runs.opening import Extent, Opened, extent_of, open_run_for
from jobs.settings import require
from jobs.train.learner import class_counts
from jobs.train.network import make_network
from jobs.train.objective import Objective, make_objective
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings as TrainSettings


@dataclass(frozen=True)
class TrainedRun:
    """A run with its training and validation samples."""

    opened: Opened[TrainSettings]
    train: Part
    val: Part

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.opened.run

    @property
    def settings(self) -> TrainSettings:
        """The settings that it was trained with."""
        return self.opened.settings

    @property
    def extent(self) -> Extent:
        """The progress of the training."""
        settings = self.settings
        return extent_of(
            self.opened, num_steps(settings.epochs, num_samples=len(self.train), batch_size=settings.batch_size)
        )

    @property
    def weights(self) -> str:
        """Description of the weights used: kind, step, and whether they were selected on few validation images."""
        told = f"{self.opened.which}, from step {self.opened.step}"
        if self.opened.which == "last":
            return told
        few = "" if self.settings.regression else few_images(class_counts(self.val))
        return f"{told}, selected on {len(self.val)} validation images" + (f" (few: {few})" if few else "")

    def network(self) -> Network:
        """Return the network with the weights of the checkpoint. Raises ValueError if they do not fit."""
        network = make_network(self.settings, self.train.split, load_pretrained=False)
        put_into(network, self.opened.load("model"), path=self.opened.checkpoint)
        return network

    def objective(self) -> Objective:
        """Return the objective, which scales network inputs and outputs."""
        return make_objective(self.settings, self.train, self.opened.progress["statistics"])

    def refuse_other_kind(self, split: Split) -> None:
        """Raise ValueError if the images differ in kind from the training images."""
        refuse_other_kind(self.train.split, split)


def refuse_other_kind(trained_on: Split, split: Split) -> None:
    """Raise ValueError if the shape, classes or bands of a split differ from those trained on."""
    for name in ("shape", "classes", "bands"):
        right, given = getattr(trained_on.schema, name), getattr(split.schema, name)
        require(right == given, f"{split.name} has {name} {given}, but the run was trained on {right}.")


def open_trained(
    run: Path, *, which: Which, accelerator: Accelerator | None = None, may_fall_back: bool = True
) -> TrainedRun:
    """Open a run on all ranks. Raises ValueError if it is not a run of `deeplense train`, has no intact weights, its
    `config.yaml` was edited, or its data set has changed."""

    def open_it() -> Opened[TrainSettings]:
        return open_run_for(run, "train", TrainSettings, which=which, may_fall_back=may_fall_back)

    opened: Any = open_it() if accelerator is None else from_main(accelerator, on_main(accelerator, open_it))
    train, val = learning_parts(opened.settings)
    opened.require_data(train.split)
    return TrainedRun(opened, train, val)


def tell_unfinished(runs: Sequence[TrainedRun]) -> None:
    """Report which runs are not finished."""
    for each in runs:
        if not each.extent.finished:
            say(f"note: {each.run} is {each.extent}; its {each.opened.which} weights are from step {each.opened.step}")


@dataclass(frozen=True)
class Unseen:
    """The samples of a split that a run has not seen, the number of excluded images by reason, and weights whose
    training images are unknown. `allowed`: images seen without labels are included in the samples."""

    part: Part
    left_out: LeftOut
    unknown: Sequence[str]
    foreign: Sequence[str]
    allowed: bool


def unseen(held: Part, trained: TrainedRun, *, allow_pretrained: bool, accelerator: Accelerator) -> Unseen:
    """Return the held-out samples that a run has not seen, the same on all ranks. Raises ValueError if none is left, or
    if it is unknown what the initial weights have seen."""
    look = partial(unseen_by, held, lambda: seen_of(trained.opened), allow_pretrained=allow_pretrained)
    found = on_main(accelerator, look)
    told = None if found is None else (found.part.indices, found.left_out, found.unknown, found.foreign)
    indices, *rest = from_main(accelerator, told)
    return Unseen(Part(held.split, indices, held.target), *rest, allowed=allow_pretrained)


def unseen_by(held: Part, seen_by: Callable[[], Seen], *, allow_pretrained: bool) -> Unseen:
    """Return the held-out samples that were not seen."""
    seen = seen_by()
    refuse_unknown(seen, allow=allow_pretrained)
    part, left_out = without_seen(held, seen, keep_pretrained=allow_pretrained)
    return Unseen(part, left_out, seen.unknown, seen.foreign, allowed=allow_pretrained)


def refuse_unknown(seen: Seen, *, allow: bool) -> None:
    """Raise ValueError if it is unknown what the initial weights of a run have seen."""
    require(
        allow or not seen.unknown,
        f"{'; '.join(seen.unknown)}. Restore what is missing, or give --allow_pretrained_overlap 1: then some of the "
        "held-out images may have been seen in training, and the report states this.",
    )
