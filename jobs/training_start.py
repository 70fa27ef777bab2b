"""What an attempt at a training works with, made anew or taken over from the last good checkpoint."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from deeplense.data.order import key, num_steps
from deeplense.models.registry import Network
from deeplense.training import checkpoint
from deeplense.training.loop import (
    from_main,
    make_accelerator,
    prepare,
)
from deeplense.training.tracking import Tracker
from jobs.attempts import begin_attempt
from jobs.config import plain, require
from jobs.experiment import Objective, Part, learning_parts, make_network, make_objective
from jobs.progress import say
from jobs.ranks import announce, on_main
from jobs.runs import FINISHED, STOPPED, open_run
from jobs.staged import Copies
from jobs.train import Settings
from jobs.watchdog import Watchdog


@dataclass
class Progress:
    """How far a training is: all that is not weights."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    statistics: dict[str, list[float]] = field(default_factory=dict)
    dataset_id: str = ""

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        vars(self).update(state)


@dataclass
class TrainingRun:
    """What one attempt works with."""

    settings: Settings
    accelerator: Accelerator
    train: Part
    val: Part
    network: Network
    model: nn.Module
    optimizer: Optimizer
    objective: Objective
    progress: Progress
    num_steps: int
    tracker: Tracker | None
    attempt: int
    ema: ModelEmaV3 | None
    watchdog: Watchdog

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.settings.run / "checkpoints"

    @property
    def evaluated(self) -> nn.Module:
        """The network whose weights count: the running mean, if there is one."""
        return self.ema.module if self.ema is not None else self.network

    def states(self) -> dict[str, dict[str, Any]]:
        """Everything that must survive."""
        parts: dict[str, Any] = {"model": self.network, "optimizer": self.optimizer, "progress": self.progress}
        if self.ema is not None:
            parts["ema"] = self.ema.module
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return {name: part.state_dict() for name, part in parts.items()}


def begin(settings: Settings, watchdog: Watchdog, copies: Copies) -> TrainingRun | None:
    """Make or continue a run; None where it is finished."""
    accelerator = make_accelerator(device=settings.device, precision=settings.precision)
    on_main(accelerator, lambda: open_run(settings.run, settings))
    if from_main(accelerator, (settings.run / FINISHED).exists()):
        announce(accelerator, f"{settings.run} is finished; evaluate it, or give another --run.")
        return None
    train, val = learning_parts(settings)
    check_batch(settings, train, accelerator.num_processes)
    torch.manual_seed(int(key(settings.seed)[0] >> np.uint64(1)))
    saved = resume_from(settings.run / "checkpoints", accelerator)
    network = make_network(settings, train.split, load_pretrained=saved is None).to(accelerator.device)
    optimizer = make_optimizer(settings, network)
    ema = ModelEmaV3(network, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
    progress = Progress(dataset_id=train.split.manifest.dataset_id)
    if saved is not None:
        restore(saved, network, optimizer, progress, ema)
        same = progress.dataset_id == train.split.manifest.dataset_id
        require(
            same, f"{train.split.folder} is not the data set that the run began with; give that one, or another --run."
        )
    where = copies.stage([train.split, val.split], settings.stage, accelerator)
    if saved is None:
        progress.statistics = train.split.statistics(train.indices)
    model, prepared = prepare(accelerator, network, optimizer)
    if saved is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    attempt, tracker = start_record(settings, accelerator, progress.step)
    announce_beginning(settings, accelerator, train, val, network, progress, where=where)
    return TrainingRun(
        settings=settings,
        accelerator=accelerator,
        train=train,
        val=val,
        network=network,
        model=model,
        optimizer=prepared,
        objective=make_objective(settings, train, progress.statistics),
        progress=progress,
        num_steps=num_steps(settings.epochs, num_samples=len(train), batch_size=settings.batch_size),
        tracker=tracker,
        attempt=attempt,
        ema=ema,
        watchdog=watchdog,
    )


def announce_beginning(
    settings: Settings,
    accelerator: Accelerator,
    train: Part,
    val: Part,
    network: Network,
    progress: Progress,
    *,
    where: str,
) -> None:
    """What is about to happen."""
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    size = network.input_size
    fitted = "" if size.way == "native" else f", images {size.way}ed to {size.size} pixels"
    announce(
        accelerator,
        f"training {settings.model_name} ({parameters:.2f} M parameters{fitted}) on {len(train)} images of "
        f"{train.split.folder} ({where}), choosing by {len(val)}; "
        f"{accelerator.num_processes} processes on {accelerator.device.type}",
    )
    if progress.step:
        announce(accelerator, f"continuing after step {progress.step}")


def check_batch(settings: Settings, train: Part, num_processes: int) -> None:
    """Raise ValueError where the batch does not divide among the ranks, or a rank's part among the pieces."""
    size, parts = settings.batch_size, num_processes * settings.gradient_accumulation
    pieces = f"{num_processes} ranks" + (
        f" of {settings.gradient_accumulation} pieces" if settings.gradient_accumulation > 1 else ""
    )
    require(size % parts == 0, f"batch_size={size} does not divide among {pieces}; use a multiple of {parts}.")
    require(size <= len(train), f"batch_size={size} is more than the {len(train)} training samples; use a smaller one.")


def resume_from(checkpoints: Path, accelerator: Accelerator) -> dict[str, Any] | None:
    """The newest good checkpoint, the same on all ranks, or None; damaged ones are reported."""

    def find() -> Path | None:
        path, reports = checkpoint.newest_good(checkpoints)
        for report in reports:
            say(report)
        return path

    path = from_main(accelerator, on_main(accelerator, find))
    return checkpoint.load(path) if path is not None else None


def restore(
    saved: dict[str, Any], network: Network, optimizer: Optimizer, progress: Progress, ema: ModelEmaV3 | None
) -> None:
    """Take over a checkpoint."""
    network.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    progress.load_state_dict(saved["progress"])
    if ema is not None:
        ema.module.load_state_dict(saved["ema"])


def make_optimizer(settings: Settings, network: Network) -> Optimizer:
    """timm's optimizer of the parameters that learn."""
    return create_optimizer_v2(
        network, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, momentum=settings.momentum
    )


def start_record(settings: Settings, accelerator: Accelerator, step: int) -> tuple[int, Tracker | None]:
    """Begin the attempt's line and its metrics, on the main process; returns the attempt's number, 0 elsewhere."""
    if not accelerator.is_main_process:
        return 0, None
    number = begin_attempt(settings.run, first_step=step, num_processes=accelerator.num_processes)
    (settings.run / STOPPED).unlink(missing_ok=True)
    return number, Tracker(
        settings.run, mode=settings.wandb, project=settings.wandb_project, config=plain(settings), last_step=step
    )
