"""A run of `deeplense train` that is used: its network, what it was trained on, and what it has not seen."""

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
from jobs.config import require
from jobs.experiment import Objective, Part, learning_parts, make_network, make_objective
from jobs.lineage import seen_of
from jobs.opening import Extent, Opened, Which, extent_of, open_run_for
from jobs.progress import say
from jobs.ranks import on_main
from jobs.seen import LeftOut, Seen, without_seen
from jobs.supervised import class_counts
from jobs.train import Settings as TrainSettings


@dataclass(frozen=True)
class TrainedRun:
    """A run, what it was trained on, and what chose its weights."""

    opened: Opened[TrainSettings]
    train: Part
    val: Part

    @property
    def run(self) -> Path:
        """Its folder."""
        return self.opened.run

    @property
    def settings(self) -> TrainSettings:
        """What it was trained with."""
        return self.opened.settings

    @property
    def extent(self) -> Extent:
        """How much of the training is done."""
        settings = self.settings
        return extent_of(
            self.opened, num_steps(settings.epochs, num_samples=len(self.train), batch_size=settings.batch_size)
        )

    @property
    def weights(self) -> str:
        """Which weights are used, of which step, and whether few validation images chose them."""
        told = f"{self.opened.which}, of step {self.opened.step}"
        if self.opened.which == "last":
            return told
        few = "" if self.settings.regression else few_images(class_counts(self.val))
        return f"{told}, chosen by {len(self.val)} validation images" + (f" (few: {few})" if few else "")

    def network(self) -> Network:
        """The network with the weights that count. Raises ValueError where they are of another."""
        network = make_network(self.settings, self.train.split, load_pretrained=False)
        put_into(network, self.opened.load("model"), path=self.opened.checkpoint)
        return network

    def objective(self) -> Objective:
        """How images reach the network, and what its outputs are."""
        return make_objective(self.settings, self.train, self.opened.progress["statistics"])

    def refuse_other_kind(self, split: Split) -> None:
        """Raise ValueError where images are of another kind than those that it was trained on."""
        refuse_other_kind(self.train.split, split)


def refuse_other_kind(trained_on: Split, split: Split) -> None:
    """Raise ValueError where a split has images of another kind than those that are trained on."""
    for name in ("shape", "classes", "bands"):
        right, given = getattr(trained_on.schema, name), getattr(split.schema, name)
        require(right == given, f"{split.name} has {name} {given}, but the run was trained on {right}.")


def open_trained(
    run: Path, *, which: Which, accelerator: Accelerator | None = None, may_fall_back: bool = True
) -> TrainedRun:
    """Open a run, on all ranks. Raises ValueError where it is none of `deeplense train`, has no good weights, its
    `config.yaml` was edited, or its data set is another one now."""

    def open_it() -> Opened[TrainSettings]:
        return open_run_for(run, "train", TrainSettings, which=which, may_fall_back=may_fall_back)

    opened: Any = open_it() if accelerator is None else from_main(accelerator, on_main(accelerator, open_it))
    train, val = learning_parts(opened.settings)
    opened.require_data(train.split)
    return TrainedRun(opened, train, val)


def tell_unfinished(runs: Sequence[TrainedRun]) -> None:
    """Say which runs are not finished."""
    for each in runs:
        if not each.extent.finished:
            say(f"note: {each.run} is {each.extent}; its {each.opened.which} weights are of step {each.opened.step}")


@dataclass(frozen=True)
class Unseen:
    """The samples of a split that a run has not seen, how many others there are by why, and what nobody can tell.
    `allowed`: those that were seen without label are among the samples."""

    part: Part
    left_out: LeftOut
    unknown: Sequence[str]
    foreign: Sequence[str]
    allowed: bool


def unseen(held: Part, trained: TrainedRun, *, allow_pretrained: bool, accelerator: Accelerator) -> Unseen:
    """The held-out samples that a run has not seen, the same on all ranks. Raises ValueError where none is left, or
    nobody can tell what the weights that it started from have seen."""
    look = partial(unseen_by, held, lambda: seen_of(trained.opened), allow_pretrained=allow_pretrained)
    found = on_main(accelerator, look)
    told = None if found is None else (found.part.indices, found.left_out, found.unknown, found.foreign)
    indices, *rest = from_main(accelerator, told)
    return Unseen(Part(held.split, indices, held.target), *rest, allowed=allow_pretrained)


def unseen_by(held: Part, seen_by: Callable[[], Seen], *, allow_pretrained: bool) -> Unseen:
    """The held-out samples that were not seen."""
    seen = seen_by()
    refuse_unknown(seen, allow=allow_pretrained)
    part, left_out = without_seen(held, seen, keep_pretrained=allow_pretrained)
    return Unseen(part, left_out, seen.unknown, seen.foreign, allowed=allow_pretrained)


def refuse_unknown(seen: Seen, *, allow: bool) -> None:
    """Raise ValueError where nobody can tell what the weights that a run started from have seen."""
    require(
        allow or not seen.unknown,
        f"{'; '.join(seen.unknown)}. Bring back what is missing; or give --allow_pretrained_overlap 1: then some of "
        "the held-out images may have been seen, and the report says so.",
    )
