"""What an attempt at a training works with, made anew or taken over from the last good checkpoint."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from deeplense.data.dataset import Split
from deeplense.data.order import key, num_steps
from deeplense.evaluation.selection import Loss, is_kept
from deeplense.files import checksum
from deeplense.training import fsdp
from deeplense.training.finite import LossWatch, is_finite, tensors_in
from deeplense.training.loop import (
    from_main,
    make_accelerator,
    prepare,
)
from deeplense.training.saving import Saver
from deeplense.training.tracking import Tracker, read_wandb_id, write_wandb_id
from jobs.attempts import begin_attempt, settle_finished
from jobs.claim import Claim
from jobs.config import plain, require
from jobs.experiment import Part
from jobs.learner import Learner
from jobs.learning import LearningSettings
from jobs.lineage import note_seen
from jobs.progress import say
from jobs.ranks import announce, on_all, on_main
from jobs.resuming import OF_KEPT, best_of, resume_from, why_unfit
from jobs.runs import (
    CONFIG,
    CONFIG_HASH,
    PACKAGES,
    STOPPED,
    code_version,
    is_finished,
    refuse_differences,
    version_of,
)
from jobs.staged import Copies
from jobs.statistics import find_statistics, unit_notes
from jobs.watchdog import Watchdog


@dataclass
class Progress:
    """How far a training is: all that is not weights."""

    step: int = 0
    best: float = -math.inf
    """score of the weights that are kept"""
    best_step: int = 0
    least_loss: float = math.inf
    least_error: float = 0.0
    """least loss so far on the validation samples, and its standard error"""
    highest: float = -math.inf
    highest_step: int = 0
    undefined: int = 0
    """steps since the highest score in which it was not defined, and patience does not count"""
    statistics: dict[str, list[float]] = field(default_factory=dict)
    dataset_id: str = ""

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state. Older versions kept the weights of the highest score."""
        before = {"highest": state["best"], "highest_step": state["best_step"]}
        vars(self).update(before | state)

    def judge(self, score: float, loss: Loss | None) -> bool:
        """Note an evaluation; returns whether its weights are kept."""
        if score > self.highest:
            self.highest, self.highest_step, self.undefined = score, self.step, 0
        # An attempt that was killed may have been here before, and its weights are on the disk.
        if self.step <= self.best_step:
            return False
        kept = score > self.best if loss is None else is_kept(loss, Loss(self.least_loss, self.least_error))
        if kept:
            self.best, self.best_step = score, self.step
        if loss is not None and loss.mean < self.least_loss:
            self.least_loss, self.least_error = loss.mean, loss.error
        return kept


@dataclass
class TrainingRun:
    """What one attempt works with."""

    settings: LearningSettings
    accelerator: Accelerator
    learner: Learner
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    progress: Progress
    num_steps: int
    tracker: Tracker | None
    attempt: int
    ema: ModelEmaV3 | None
    watchdog: Watchdog
    record: dict[str, Any]
    unsharded: nn.Module | None = None
    """with fsdp, a copy of the network from before its weights were spread"""
    saver: Saver = field(default_factory=Saver)
    losses: LossWatch = field(default_factory=LossWatch)

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.settings.run / "checkpoints"

    @property
    def counted(self) -> nn.Module:
        """The network whose weights count: the running mean, if there is one."""
        return self.ema.module if self.ema is not None else self.network

    def evaluated(self) -> nn.Module:
        """The network whose weights count, to be used by each process on its own. All must call it."""
        if self.unsharded is None:
            return self.counted
        return fsdp.whole_copy(self.counted, self.unsharded, self.accelerator.device)

    def states(self) -> dict[str, dict[str, Any]]:
        """Everything that must survive, and what tells later where it came from, on the main process. All must call
        it."""
        parts: dict[str, Any] = {"model": self.network, "optimizer": self.optimizer, "progress": self.progress}
        if self.ema is not None:
            parts["ema"] = self.ema.module
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return self.whole({name: part.state_dict() for name, part in parts.items()}) | {"record": self.record_now}

    @property
    def not_finite(self) -> list[str]:
        """Which of the states hold numbers that are not finite, of this rank's part."""
        parts: dict[str, Any] = {"the weights": self.network, "the states of the optimizer": self.optimizer}
        if self.ema is not None:
            parts["the running mean of the weights"] = self.ema.module
        return [name for name, part in parts.items() if not is_finite(tensors_in(part.state_dict()))]

    def best_states(self) -> dict[str, dict[str, Any]]:
        """The weights that were evaluated, on the main process. All must call it."""
        states = self.whole({"model": self.counted.state_dict()})
        return states | {"progress": self.progress.state_dict(), "record": self.record_now}

    @property
    def record_now(self) -> dict[str, Any]:
        """What a checkpoint tells of the run, and when it was written."""
        metrics = {"metrics": self.tracker.mark()} if self.tracker else {}
        return self.record | metrics | {"time": datetime.now(UTC).isoformat(timespec="seconds")}

    def whole(self, states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """States, put together on the main process where they are spread over all."""
        return states if self.unsharded is None else fsdp.gathered(states, keep=self.accelerator.is_main_process)

    @property
    def best_names(self) -> dict[str, str]:
        """What is called how among `states`, of `best_states`."""
        return {"model": "model" if self.ema is None else "ema", "progress": "progress", "record": "record"}


def begin(
    settings: LearningSettings, make_learner: Callable[[], Learner], watchdog: Watchdog, copies: Copies, claim: Claim
) -> TrainingRun | None:
    """Make or continue a run; None where it is finished."""
    accelerator = make_accelerator(device=settings.device, precision=settings.precision)
    on_main(accelerator, claim.check)
    if from_main(accelerator, is_finished(settings.run)):
        on_main(accelerator, lambda: settle_finished(settings.run))
        announce(accelerator, f"{settings.run} is finished; evaluate it, or give another --run.")
        return None
    learner = make_learner()
    check_batch(settings, learner.train, accelerator.num_processes)
    on_main(accelerator, claim.open)
    network, saved = network_and_saved(settings, learner, accelerator)
    if saved is not None:
        refuse_other_data(saved, learner.train.split)
    where = prepare_reading(learner.read, settings.stage, accelerator, copies)
    network = network.to(accelerator.device)
    if saved is not None:
        network.load_state_dict(saved["model"])
    progress = begin_progress(settings, learner, saved, accelerator)
    seen = note_seen(learner, settings, (saved or {}).get("record", {}), accelerator)
    learner.begin(progress.statistics)
    unsharded = shard(network, accelerator) if settings.fsdp and accelerator.num_processes > 1 else None
    optimizer = optimizer_for(network, settings, learner)
    ema = ModelEmaV3(network, decay=learner.ema_decay, use_warmup=True) if learner.ema_decay else None
    if saved is not None:
        restore(saved, optimizer, ema)
    model, prepared = prepare(accelerator, network, optimizer, wrap=unsharded is None)
    if saved is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    if accelerator.is_main_process:
        restore_wandb_id(settings.run, (saved or {}).get("record", {}).get("wandb_id"))
    attempt, tracker = start_record(settings, accelerator, progress.step, (saved or {}).get("record", {}))
    announce_beginning(accelerator, learner, where, progress)
    return TrainingRun(
        settings=settings,
        accelerator=accelerator,
        learner=learner,
        network=network,
        model=model,
        optimizer=prepared,
        progress=progress,
        num_steps=num_steps(settings.epochs, num_samples=len(learner.train), batch_size=settings.batch_size),
        tracker=tracker,
        attempt=attempt,
        ema=ema,
        watchdog=watchdog,
        record=record_of(settings, accelerator) | seen,
        unsharded=unsharded,
    )


def network_and_saved(
    settings: LearningSettings, learner: Learner, accelerator: Accelerator
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network, and the states of the newest good checkpoint, which fits it; None where there is none, and then the
    network has the weights that a training starts from."""
    checkpoints = settings.run / "checkpoints"

    def make(*, load_pretrained: bool) -> nn.Module:
        torch.manual_seed(int(key(settings.seed)[0] >> np.uint64(1)))
        return learner.make_network(load_pretrained=load_pretrained)

    hopeful = from_main(accelerator, any(checkpoints.glob("step_*")))
    network = make(load_pretrained=not hopeful)
    unfit = partial(
        why_unfit,
        network=network,
        make_optimizer=partial(optimizer_for, settings=settings, learner=learner),
        with_mean=bool(learner.ema_decay),
        num_bands=learner.train.split.schema.shape[0],
    )
    saved = resume_from(checkpoints, accelerator, unfit)
    if saved is not None and "settings" in saved.get("record", {}):
        refuse_differences(settings.run, saved["record"]["settings"], settings)
    return make(load_pretrained=True) if hopeful and saved is None else network, saved


def begin_progress(
    settings: LearningSettings, learner: Learner, saved: dict[str, Any] | None, accelerator: Accelerator
) -> Progress:
    """How far a checkpoint had come, or the start."""
    progress = Progress(dataset_id=learner.train.split.dataset_id)
    if saved is not None:
        progress.load_state_dict(saved["progress"])
    else:
        progress.statistics = find_statistics(learner.train, settings.stretch, accelerator)
    of_kept = best_of(settings.run / "checkpoints", accelerator)
    vars(progress).update({name: vars(Progress())[name] for name in OF_KEPT} | of_kept)
    return progress


def refuse_other_data(saved: dict[str, Any], split: Split) -> None:
    """Raise ValueError where a checkpoint is of a training on other data."""
    same = saved["progress"]["dataset_id"] == split.dataset_id
    require(same, f"{split.name} is not the data set that the run began with; give that one, or another --run.")


def prepare_reading(parts: Sequence[Part], way: str, accelerator: Accelerator, copies: Copies) -> str:
    """Have the images where the setting `stage` wants them; returns where that is, in words."""
    if way != "device":
        where = copies.stage([part.split for part in parts], way, accelerator)
        for part in parts:
            part.split.pin(accelerator.device.type == "cuda")
        return where
    for split in {id(part.split): part.split for part in parts}.values():
        needed = [part.indices for part in parts if part.split is split]
        on_all(accelerator, partial(split.keep_on, accelerator.device, np.concatenate(needed)))
    return f"held on {accelerator.device}"


def announce_beginning(accelerator: Accelerator, learner: Learner, where: str, progress: Progress) -> None:
    """What is about to happen."""
    processes = f"{accelerator.num_processes} processes on {accelerator.device.type}"
    announce(accelerator, f"{learner.description(where)}; {processes}")
    for text in unit_notes(learner.train.split):
        announce(accelerator, text)
    if progress.step:
        announce(accelerator, f"continuing after step {progress.step}")


def check_batch(settings: LearningSettings, train: Part, num_processes: int) -> None:
    """Raise ValueError where the batch does not divide among the ranks, or a rank's part among the pieces."""
    size, parts = settings.batch_size, num_processes * settings.gradient_accumulation
    pieces = f"{num_processes} ranks" + (
        f" of {settings.gradient_accumulation} pieces" if settings.gradient_accumulation > 1 else ""
    )
    require(size % parts == 0, f"batch_size={size} does not divide among {pieces}; use a multiple of {parts}.")
    require(size <= len(train), f"batch_size={size} is more than the {len(train)} training samples; use a smaller one.")


def shard(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Spread the weights of a network over the processes; returns a copy from before, in the memory of the host."""
    unsharded = copy.deepcopy(network).to("cpu")
    fsdp.shard(network, accelerator.device)
    return unsharded


def restore(saved: dict[str, Any], optimizer: Optimizer, ema: ModelEmaV3 | None) -> None:
    """Take over what a checkpoint has beside weights and progress."""
    optimizer.load_state_dict(saved["optimizer"])
    fsdp.shard_states(optimizer)
    if ema is not None:
        ema.module.load_state_dict(saved["ema"])


def restore_wandb_id(run: Path, known: str | None) -> None:
    """Go on under the id that a checkpoint knows, where the run folder has lost it."""
    if known and read_wandb_id(run) is None:
        write_wandb_id(run, known)


def record_of(settings: LearningSettings, accelerator: Accelerator) -> dict[str, Any]:
    """What a checkpoint tells of the attempt that wrote it."""
    return {
        "settings": plain(settings),
        CONFIG_HASH: checksum(settings.run / CONFIG),
        "code": code_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "wandb_id": read_wandb_id(settings.run),
        "num_processes": accelerator.num_processes,
    }


def optimizer_for(network: nn.Module, settings: LearningSettings, learner: Learner) -> Optimizer:
    """The optimizer of a learner's network."""
    optimizer = make_optimizer(settings, network, layer_decay=learner.layer_decay)
    fix_rate(optimizer, [p for name, p in network.named_parameters() if name.startswith(learner.fixed_rate)])
    return optimizer


def make_optimizer(settings: LearningSettings, network: nn.Module, *, layer_decay: float | None = None) -> Optimizer:
    """timm's optimizer of the parameters that learn."""
    return create_optimizer_v2(
        network,
        opt=settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        layer_decay=layer_decay,
    )


def fix_rate(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Give these parameters groups of their own whose learning rate stays what it is."""
    fixed = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in fixed]
        if chosen:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in fixed]
            optimizer.add_param_group(group | {"params": chosen, "fix_lr": True})


def start_record(
    settings: LearningSettings, accelerator: Accelerator, step: int, record: Mapping[str, Any]
) -> tuple[int, Tracker | None]:
    """Begin the attempt's line and its metrics, on the main process; returns the attempt's number, 0 elsewhere."""
    if not accelerator.is_main_process:
        return 0, None
    number = begin_attempt(settings.run, first_step=step, num_processes=accelerator.num_processes)
    (settings.run / STOPPED).unlink(missing_ok=True)
    tracker = Tracker(
        settings.run,
        mode=settings.wandb,
        project=settings.wandb_project,
        config=plain(settings),
        last_step=step,
        expected=record.get("metrics"),
    )
    if tracker.report:
        say(tracker.report)
    return number, tracker
