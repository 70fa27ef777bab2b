"""The one training loop, a generator: it makes updates and yields after each; the caller logs, evaluates, saves, stops.

Accelerate lives here and nowhere else.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntFlag, auto
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, broadcast_object_list, gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from deeplense.choices import require_choice
from deeplense.training import meeting
from deeplense.training.surroundings import ignore_surroundings

Precision = Literal["fp32", "bf16", "fp16"]
DEVICES = ("auto", "cuda", "mps", "cpu")


class Divisible(Protocol):
    """A batch of samples, as far as the loop knows it."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self: ...

    def split(self, parts: int) -> list[Self]: ...


BatchT = TypeVar("BatchT", bound=Divisible)


@dataclass(frozen=True)
class Update:
    """One update made: the number of updates so far, the learning rate used, and the mean of each metric over this
    rank's samples."""

    step: int
    lr: float
    metrics: Mapping[str, Tensor]


def make_accelerator(*, device: str, precision: Precision) -> Accelerator:
    """The Accelerator of this process; ranks come from RANK, WORLD_SIZE, LOCAL_RANK, and nothing else from the
    environment.

    Raises ValueError where the device is not there or cannot compute with the precision, or where WORLD_SIZE processes
    were started and do not form one group.
    """
    require_choice("device", device, DEVICES)
    require_choice("precision", precision, get_args(Precision))
    ignore_surroundings()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU here; use --device cpu, or a machine with a GPU.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device=mps, but torch sees no Apple GPU here; use --device cpu.")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        # It would hold on to the precision of the first one of this process.
        AcceleratorState._reset_state()
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    meeting.join("nccl" if torch.cuda.is_available() and device != "cpu" else "gloo")
    accelerator = Accelerator(
        cpu=device == "cpu" or not has_gpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[FIXED_BUCKETS],
    )
    # Accelerate would compute with fp32 and say nothing.
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU; use --precision bf16 or fp32 on a CPU.")
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ValueError(
            f"{expected} processes were started (WORLD_SIZE), but they form groups of {accelerator.num_processes}; "
            "RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must be set too."
        )
    return accelerator


FIXED_BUCKETS = DistributedDataParallelKwargs(find_unused_parameters=True)
"""Without it DDP lays out its buckets anew after the first update of an attempt; with three ranks or more the order in
which gradients are summed would then tell a resumed attempt from an unbroken one."""
KEPT: list[nn.Module] = []
"""Prepared models, kept to the end of the process. To free one that exchanges gradients through gloo joins gloo's
thread with Python's lock held, which that thread may wait for (torch 2.11): ranks then hang when all is done."""


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, *, wrap: bool = True
) -> tuple[nn.Module, Optimizer]:
    """The model as it exchanges gradients with other ranks, and its optimizer; not `wrap` where it does so by itself.
    The process must end by `os._exit` where there are other ranks."""
    prepared = accelerator.prepare(model) if wrap else model
    prepared_optimizer = accelerator.prepare(optimizer)
    KEPT.append(prepared)
    return prepared, prepared_optimizer


def fit(
    step: Callable[[BatchT], Mapping[str, Tensor]],
    batches: Iterator[BatchT],
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    weight_decay: Callable[[int], float | None] = lambda step: None,
    first_step: int,
    num_steps: int,
    step_seed: Callable[[int], int],
    accumulate: int = 1,
    clip_grad: float | None = None,
    ema: ModelEmaV3 | None = None,
) -> Iterator[Update]:
    """Make the updates first_step ... num_steps - 1, yielding after each.

    Args:
        step: gives the metrics of a batch, each a mean over its samples; `loss` is what is minimised.
        batches: this rank's part of the batch of each step, from `first_step` on.
        accelerator: as made by `make_accelerator`.
        model: the prepared model.
        optimizer: the prepared optimizer of its parameters.
        learning_rate: of the update after so many updates, for all groups of parameters but those with `fix_lr`.
        weight_decay: of the same, for the parameters that have one; None to leave it.
        first_step: updates made before.
        num_steps: updates of the whole training.
        step_seed: seed of the generators that libraries share (dropout and the like) for each update, so that they
            need not be saved; it must differ between ranks.
        accumulate: pieces that a batch is worked through in.
        clip_grad: largest norm of the gradient, if any.
        ema: running mean of the weights, updated after each step.
    """
    model.train()
    for number in range(first_step, num_steps):
        batch = next(batches).to(accelerator.device)
        seed_generators(step_seed(number))
        lr, decay = learning_rate(number), weight_decay(number)
        for group in optimizer.param_groups:
            if not group.get("fix_lr"):
                group["lr"] = lr * group.get("lr_scale", 1.0)
            if decay is not None and group["weight_decay"] > 0:
                group["weight_decay"] = decay
        metrics = accumulate_gradients(step, batch.split(accumulate), accelerator=accelerator, model=model)
        if clip_grad is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update(accelerator.unwrap_model(model), step=number)
        yield Update(number + 1, lr, metrics)


def seed_generators(seed: int) -> None:
    """Seed the generators that libraries share: Python's, NumPy's and PyTorch's, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def accumulate_gradients(
    step: Callable[[BatchT], Mapping[str, Tensor]], pieces: list[BatchT], *, accelerator: Accelerator, model: nn.Module
) -> dict[str, Tensor]:
    """Gradients of the mean loss over the pieces; ranks exchange them with the last. Returns the mean metrics."""
    total = sum(len(piece) for piece in pieces)
    metrics: dict[str, Tensor] = {}
    for k, piece in enumerate(pieces):
        share = len(piece) / total
        with accelerator.no_sync(model) if k < len(pieces) - 1 else accelerator.autocast():
            with accelerator.autocast():
                values = step(piece)
            accelerator.backward(values["loss"] * share)
        for name, value in values.items():
            metrics[name] = metrics.get(name, torch.zeros_like(value)) + value.detach() * share
    return metrics


class Request(IntFlag):
    """What a rank wants of all at the end of a step."""

    STOP = auto()
    SAVE = auto()
    FAIL = auto()
    DIVERGED = auto()


def agree(accelerator: Accelerator, requests: Request, *, loss: Tensor | None = None) -> Request:
    """All that any rank requests; every rank must call it at the same step. A loss that is not finite requests
    DIVERGED: one process on a GPU does not wait for its own, and has to look at it elsewhere."""
    if accelerator.num_processes == 1:
        seen = loss is not None and loss.device.type == "cpu" and not bool(torch.isfinite(loss))
        return requests | Request.DIVERGED if seen else requests
    flags = torch.tensor([request in requests for request in Request], device=accelerator.device, dtype=torch.int32)
    if loss is not None:
        flags[list(Request).index(Request.DIVERGED)] = (~torch.isfinite(loss)).int()
    counts = accelerator.reduce(flags, reduction="sum").tolist()  # type: ignore[union-attr]
    return Request(sum(request for request, count in zip(Request, counts, strict=True) if count))


def mean_over_ranks(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics as the mean over ranks; all ranks have batches of the same size."""
    stacked = torch.stack([value.float() for value in values.values()])
    means = accelerator.reduce(stacked, reduction="mean").tolist()  # type: ignore[union-attr]
    return dict(zip(values, means, strict=True))


def sum_over_ranks(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum over ranks of what each has."""
    return accelerator.reduce(values, reduction="sum") if accelerator.num_processes > 1 else values  # type: ignore[return-value]


@torch.no_grad()
def share_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Give all ranks the buffers of the main process, which are what is saved: ranks gather their own statistics."""
    if accelerator.num_processes > 1:
        buffers = list(module.buffers())
        for buffer, shared in zip(buffers, broadcast(buffers), strict=True):
            buffer.copy_(shared)


def from_main(accelerator: Accelerator, value: Any) -> Any:
    """The value that the main process has, on every rank."""
    return broadcast_object_list([value])[0]


def gather_lists(accelerator: Accelerator, values: list[Any]) -> list[Any]:
    """The lists of all ranks, joined in the order of ranks."""
    return gather_object(values) if accelerator.num_processes > 1 else values
