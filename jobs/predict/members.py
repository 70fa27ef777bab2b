"""The trained networks that predict together. Shapes: b images, C bands, S pixels per side, K outputs, D features."""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeplense.data.transforms import flip_and_turn
from deeplense.models.registry import Network
from deeplense.training.finite import NotFinite
from jobs.predict.settings import Settings
from jobs.runs.folder import find_run
from jobs.runs.stored import CONFIG
from jobs.settings import require
from jobs.train.objective import Objective
from jobs.train.stored import TrainedRun, open_trained, refuse_other_kind


@dataclass(frozen=True)
class Member:
    """A trained network on its device, in evaluation mode, with its preprocessing."""

    trained: TrainedRun
    network: Network
    objective: Objective

    @torch.no_grad()
    def outputs(self, images: Tensor, *, views: int) -> Tensor:
        """Return the outputs (b, K) of images (b, C, S, S) in the unit of the data set, averaged over views: the
        orientations 0 to views - 1 of `flip_and_turn`. Those of some images may be not finite. Raises NotFinite if
        those of all are."""
        inputs = self.objective.scaling.scaled(images)
        total = torch.zeros(0)
        for way in range(views):
            ways = torch.full((len(inputs),), way, device=inputs.device)
            outputs = self.network(inputs if views == 1 else flip_and_turn(inputs, ways)).float()
            total = outputs if way == 0 else total + outputs
        found = total / views
        if len(found) > 1 and not bool(found.isfinite().all(dim=1).any()):
            raise NotFinite(
                f"the outputs of {self.trained.run} are not finite for {len(found)} images; its training has diverged, "
                "or the pixels are far outside the range of the training images."
            )
        center, scale = self.objective.target_scale
        return found * scale + center if self.trained.settings.regression else found


def precise(settings: Settings, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which networks compute with the precision of the settings."""
    return torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()


@contextmanager
def features_kept(network: Network) -> Iterator[Callable[[], Tensor]]:
    """Yield a function that returns the features (b, D) before the last linear layer, averaged over the calls of the
    network since it was last called."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    kept: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach().float()))  # type: ignore[arg-type]

    def take() -> Tensor:
        found = torch.stack(kept).mean(dim=0)
        kept.clear()
        return found

    try:
        yield take
    finally:
        handle.remove()


def find_runs(settings: Settings) -> list[Path]:
    """Return the run folders that the setting `run` names. Raises ValueError if there is none, or one comes twice."""
    found: list[Path] = []
    for each in filter(None, (text.strip() for text in settings.run.split(","))):
        if any(sign in each for sign in "*?["):
            matching = [Path(path) for path in sorted(glob.glob(each)) if (Path(path) / CONFIG).exists()]
            require(bool(matching), f"no run folder matches {each}; correct --run.")
            found += matching
        else:
            found.append(find_run(each, settings.runs_root))
    twice = [path for path in found if found.count(path) > 1]
    require(not twice, f"the run {twice[0] if twice else ''} is given twice; give each run once.")
    return found


def open_runs(settings: Settings) -> list[TrainedRun]:
    """Open all runs. Raises ValueError if one has no intact weights, or they predict different things."""
    runs = [open_trained(path, which=settings.weights) for path in find_runs(settings)]
    first = runs[0]
    for other in runs[1:]:
        targets = first.settings.target, other.settings.target
        require(
            targets[0] == targets[1],
            f"{first.run} predicts {targets[0]}, but {other.run} predicts {targets[1]}; give runs with the same "
            "target, or predict with each of them separately.",
        )
        refuse_other_kind(first.train.split, other.train.split)
    return runs


def make_members(runs: Sequence[TrainedRun], device: torch.device) -> list[Member]:
    """Return the networks of the runs, ready to predict on a device."""
    return [Member(each, each.network().to(device).eval(), each.objective()) for each in runs]
