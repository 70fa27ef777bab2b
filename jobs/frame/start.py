"""Start of an attempt: create everything it needs, or restore it from the last intact checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from deeplense.data.dataset import Split
from deeplense.data.loading import StepBatches
from deeplense.random.draws import key
from deeplense.training import fsdp
from deeplense.training.batch_norms import lacks_values
from deeplense.training.finite import LossWatch
from deeplense.training.loop import from_main, make_accelerator, prepare
from deeplense.training.tracking import read_wandb_id, write_wandb_id
from jobs.data.order import make_order
from jobs.data.part import Part
from jobs.data.statistics import find_statistics, unit_notes
from jobs.frame import attempt
from jobs.frame.attempt import Attempt
from jobs.frame.learner import Learner, Trainee
from jobs.frame.lengthening import copy_state
from jobs.frame.plan import Plan, Progress
from jobs.frame.settings import LearningSettings, refuse_small_batch
from jobs.frame.staging import Copies, prepare_reading
from jobs.frame.watchdog import Watchdog
from jobs.frame.weights import Weights, optimizer_for, spread
from jobs.ranks import announce, on_main
from jobs.runs.attempts import settle_finished
from jobs.runs.claim import Claim
from jobs.runs.folder import is_finished
from jobs.runs.lineage import note_seen
from jobs.runs.resuming import OF_KEPT, best_of, resume_from, why_unfit
from jobs.runs.stored import refuse_differences
from jobs.settings import require


@dataclass(frozen=True)
class Training:
    """An attempt and all objects it works with."""

    attempt: Attempt
    learner: Learner
    trainee: Trainee
    weights: Weights
    plan: Plan
    progress: Progress
    losses: LossWatch = field(default_factory=LossWatch)


class HasState(Protocol):
    """An object that can load a state."""

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True)
class Saved:
    """The states of the newest intact checkpoint; empty at the start of a training."""

    states: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.states)

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the run in the checkpoint."""
        return self.states.get("record", {})

    def put_into(self, part: HasState, name: str) -> None:
        """Load a state into an object, if there is a checkpoint."""
        if self.states:
            part.load_state_dict(self.states[name])


def begin(
    settings: LearningSettings, make_learner: Callable[[], Learner], watchdog: Watchdog, copies: Copies, claim: Claim
) -> Training | None:
    """Begin or resume a run. Returns None if it is already finished."""
    accelerator = make_accelerator(device=settings.device, precision=settings.precision)
    on_main(accelerator, claim.check)
    if from_main(accelerator, is_finished(settings.run)):
        on_main(accelerator, lambda: settle_finished(settings.run))
        announce(accelerator, f"{settings.run} is already finished; evaluate it, or give another --run.")
        return None
    learner = make_learner()
    check_batch(settings, learner.train, accelerator.num_processes)
    on_main(accelerator, claim.open)
    on_main(accelerator, lambda: copy_state(settings, learner.train))
    network, saved = network_and_saved(settings, learner, accelerator)
    refuse_other_data(saved, learner.train.split)
    where = prepare_reading(learner.read, settings.stage, accelerator, copies)
    network = network.to(accelerator.device)
    saved.put_into(network, "model")
    progress = begin_progress(settings, learner, saved, accelerator)
    seen = note_seen(learner, settings, saved.record, accelerator)
    trainee = learner.make_trainee(network, progress.statistics)
    check_batch_norms(settings, learner, trainee, network, accelerator)
    weights = make_weights(settings, learner, network, saved, accelerator)
    if accelerator.is_main_process:
        restore_wandb_id(settings, saved.record.get("wandb_id"))
    begun = attempt.begin(settings, accelerator, watchdog, step=progress.step, before=saved.record, seen=seen)
    announce(accelerator, *beginning(settings, learner, trainee.description(where), progress, accelerator))
    plan = Plan(settings, len(learner.train), learner.patience_epochs)
    return Training(begun, learner, trainee, weights, plan, progress)


def network_and_saved(
    settings: LearningSettings, learner: Learner, accelerator: Accelerator
) -> tuple[nn.Module, Saved]:
    """Return the network, and the newest intact checkpoint that fits it. Without one, the network has its initial
    weights."""
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
    saved = Saved(resume_from(checkpoints, accelerator, unfit) or {})
    if "settings" in saved.record:
        refuse_differences(settings.run, saved.record["settings"], settings)
    return make(load_pretrained=True) if hopeful and not saved else network, saved


def make_weights(
    settings: LearningSettings, learner: Learner, network: nn.Module, saved: Saved, accelerator: Accelerator
) -> Weights:
    """Return the network with its optimizer and moving average on this rank, restored from the checkpoint if there is
    one."""
    unsharded = spread(network, accelerator) if settings.fsdp and accelerator.num_processes > 1 else None
    optimizer = optimizer_for(network, settings, learner)
    ema = ModelEmaV3(network, decay=learner.ema_decay, use_warmup=True) if learner.ema_decay else None
    saved.put_into(optimizer, "optimizer")
    if saved:
        fsdp.shard_states(optimizer)
    if ema is not None:
        saved.put_into(ema.module, "ema")
    model, prepared = prepare(accelerator, network, optimizer, wrap=unsharded is None)
    if accelerator.scaler is not None:
        saved.put_into(accelerator.scaler, "scaler")
    return Weights(accelerator, network, model, prepared, ema, unsharded)


def begin_progress(settings: LearningSettings, learner: Learner, saved: Saved, accelerator: Accelerator) -> Progress:
    """Return the progress of the checkpoint, or that of a new training."""
    progress = Progress(dataset_id=learner.train.split.dataset_id)
    saved.put_into(progress, "progress")
    if not saved:
        progress.statistics = find_statistics(learner.train, settings.stretch, accelerator)
    of_kept = best_of(settings.run / "checkpoints", accelerator)
    vars(progress).update({name: vars(Progress())[name] for name in OF_KEPT} | of_kept)
    return progress


def refuse_other_data(saved: Saved, split: Split) -> None:
    """Raise ValueError if the checkpoint belongs to a training on other data."""
    require(
        not saved or saved.states["progress"]["dataset_id"] == split.dataset_id,
        f"{split.name} is not the data set that the run was started with; give that one, or another --run.",
    )


def beginning(
    settings: LearningSettings, learner: Learner, what: str, progress: Progress, accelerator: Accelerator
) -> Iterator[str]:
    """Yield the lines that describe what is about to be trained."""
    yield f"{what}; {accelerator.num_processes} processes on {accelerator.device.type}"
    yield from unit_notes(learner.train.split)
    yield from unused_fraction(settings, learner.read)
    if progress.step:
        yield f"resuming after step {progress.step}"


def unused_fraction(settings: LearningSettings, read: Sequence[Part]) -> Iterator[str]:
    """Warn if val_fraction is given but has no effect, because the validation images are a separate split."""
    train, *others = read
    given = settings.val_fraction != type(settings).val_fraction
    if given and others and all(part.split is not train.split for part in others):
        yield (
            f"note: {others[0].split.name} holds the validation images, so val_fraction={settings.val_fraction} "
            "has no effect; leave it out."
        )


def check_batch(settings: LearningSettings, train: Part, num_processes: int) -> None:
    """Raise ValueError if the batch is too small for the number of ranks and micro-batches, or exceeds the training
    samples."""
    size = settings.batch_size
    refuse_small_batch(size, settings.gradient_accumulation, num_processes, least=settings.least_samples)
    require(size <= len(train), f"batch_size={size} exceeds the {len(train)} training samples; use a smaller one.")


def check_batch_norms(
    settings: LearningSettings, learner: Learner, trainee: Trainee, network: nn.Module, accelerator: Accelerator
) -> None:
    """Raise ValueError if a part of the batch has one sample and a batch norm of the network would then see one value
    per channel, of which it cannot compute a variance. The network does not change."""
    size, pieces, num_processes = settings.batch_size, settings.gradient_accumulation, accelerator.num_processes
    if size >= 2 * pieces * num_processes:
        return
    order = make_order(settings, learner.train)
    # As many parts as samples, so that the first has one.
    batches = StepBatches(
        learner.train.split,
        order,
        rank=0,
        world_size=size,
        target=learner.train.target,
        num_uniforms=trainee.columns.total,
    )
    sample = batches[0].to(accelerator.device)
    if lacks_values(network, lambda: trainee.step(network, sample, 0)):
        refuse_small_batch(size, pieces, num_processes, least=2)


def restore_wandb_id(settings: LearningSettings, known: str | None) -> None:
    """Restore the W&B run id from the checkpoint if it is missing in the run folder."""
    if known and read_wandb_id(settings.run) is None:
        write_wandb_id(settings.run, known)
