"""The training loop, a generator: it makes updates and yields after each; the caller logs, evaluates, saves, stops.

Accelerate is used here and nowhere else.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from deeplense.choices import require_choice
from deeplense.training import meeting
from deeplense.training.surroundings import ignore_surroundings

Precision = Literal["fp32", "bf16", "fp16"]
DEVICES = ("auto", "cuda", "mps", "cpu")


class Divisible(Protocol):
    """The interface of a batch of samples."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self: ...

    def split(self, parts: int) -> list[Self]: ...


BatchT = TypeVar("BatchT", bound=Divisible)


@dataclass(frozen=True)
class Update:
    """One update that was made.

    Args:
        step: number of updates so far.
        lr: learning rate that was used.
        metrics: mean of each metric over this rank's samples.
        weight: number of this rank's samples, in units of the mean over ranks.
    """

    step: int
    lr: float
    metrics: Mapping[str, Tensor]
    weight: float = 1.0


def make_accelerator(*, device: str, precision: Precision) -> Accelerator:
    """Return the Accelerator of this process; of the environment, only RANK, WORLD_SIZE and LOCAL_RANK are used.

    Args:
        device: `auto`, `cuda`, `mps` or `cpu`.
        precision: `fp32`, `bf16` or `fp16`.

    Raises:
        ValueError: the device is missing or does not support the precision, or WORLD_SIZE processes were started and do
            not form one group.
    """
    require_choice("device", device, DEVICES)
    require_choice("precision", precision, get_args(Precision))
    ignore_surroundings()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no GPU; use --device cpu, or a machine with a GPU.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device=mps, but torch finds no Apple GPU; use --device cpu.")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        # It would hold on to the precision of the first one of this process.
        AcceleratorState._reset_state()
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    meeting.join("nccl" if torch.cuda.is_available() and device != "cpu" else "gloo")
    accelerator = Accelerator(
        cpu=device == "cpu" or not has_gpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
    )
    # Accelerate would compute with fp32 and say nothing.
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU; use --precision bf16 or fp32 on a CPU.")
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ValueError(
            f"WORLD_SIZE is {expected}, but the process group has {accelerator.num_processes} processes; "
            "also set RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."
        )
    return accelerator


KEPT: list[nn.Module] = []
"""Prepared models, kept until the end of the process. Freeing one that exchanges gradients through gloo joins gloo's
thread with Python's lock held, which that thread may wait for (torch 2.11): ranks then hang at the end."""


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, *, wrap: bool = True
) -> tuple[nn.Module, Optimizer]:
    """Return the model as it exchanges gradients with other ranks, and its optimizer.

    If there are other ranks, the process must end by `os._exit`.

    Args:
        accelerator: as made by `make_accelerator`.
        model: the model.
        optimizer: optimizer of its parameters.
        wrap: False if the model exchanges gradients by itself.
    """
    prepared = accelerator.prepare(model) if wrap else model
    if isinstance(prepared, DistributedDataParallel):
        fix_buckets(prepared)
    prepared_optimizer = accelerator.prepare(optimizer)
    KEPT.append(prepared)
    return prepared, prepared_optimizer


def fix_buckets(model: DistributedDataParallel) -> None:
    """Let DDP lay out its buckets now, in an order that depends on the list of parameters only.

    DDP does this once, after the first gradients of an attempt, in the order in which they arrived; with three ranks or
    more the layout decides the order of summation, so a resumed attempt would differ from an unbroken one. So the first
    gradients are those of a sum of all parameters, and are not used.
    """
    network = model.module
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Accelerate may have put a forward of its own there, which computes in another precision.
    own = vars(network).pop("forward", None)
    network.forward = lambda: sum_of(learning)
    model().backward()
    del network.forward
    if own is not None:
        network.forward = own
    network.zero_grad(set_to_none=True)


def exchange_rest(learning: Sequence[nn.Parameter]) -> None:
    """Complete an exchange of gradients in which some parameters, the same on all ranks, have none; they keep none.

    DDP waits for the gradient of each, or else searches in every step for those without one, and all ranks agree on
    them.
    """
    idle = [parameter for parameter in learning if parameter.grad is None]
    if idle:
        (0 * sum_of(idle)).backward()
    for parameter in idle:
        parameter.grad = None


def sum_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the sum of all numbers; its gradients come in the reverse order of the parameters."""
    return torch.stack([parameter.sum() for parameter in parameters]).sum()


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
    batch_size: int | None = None,
    accumulate: int = 1,
    clip_grad: float | None = None,
    ema: ModelEmaV3 | None = None,
) -> Iterator[Update]:
    """Make the updates first_step ... num_steps - 1, yielding after each.

    Args:
        step: returns the metrics of a batch, each a mean over its samples; `loss` is minimised.
        batches: this rank's part of the batch of each step, from `first_step` on.
        accelerator: as made by `make_accelerator`.
        model: the prepared model.
        optimizer: the prepared optimizer of its parameters.
        learning_rate: returns the learning rate after a number of updates, for all groups of parameters except those
            with `fix_lr`.
        weight_decay: returns the weight decay after a number of updates, for the parameters that have one; None to
            leave it.
        first_step: number of updates made before; 0 for a new training.
        num_steps: number of updates of the whole training.
        step_seed: returns the seed of the libraries' generators (dropout and the like) for each update, so that they
            need not be saved; it must differ between ranks.
        batch_size: samples of the batch of a step on all ranks together, of which ranks may have different numbers;
            None if all have equally many.
        accumulate: number of pieces in which a batch is processed, at least 1.
        clip_grad: largest norm of the gradient; None for no clipping.
        ema: running mean of the weights, updated after each step; None for none.
    """
    model.train()
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in range(first_step, num_steps):
        batch = next(batches).to(accelerator.device)
        weight = len(batch) * accelerator.num_processes / batch_size if batch_size else 1.0
        seed_generators(step_seed(number), accelerator.device)
        lr, decay = learning_rate(number), weight_decay(number)
        for group in optimizer.param_groups:
            if not group.get("fix_lr"):
                group["lr"] = lr * group.get("lr_scale", 1.0)
            if decay is not None and group["weight_decay"] > 0:
                group["weight_decay"] = decay
        pieces = batch.split(accumulate)
        metrics = accumulate_gradients(step, pieces, weight=weight, accelerator=accelerator, model=model)
        if isinstance(model, DistributedDataParallel):
            exchange_rest(learning)
        if clip_grad is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update(accelerator.unwrap_model(model), step=number)
        yield Update(number + 1, lr, metrics, weight)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, on the host and on the device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if device.type == "cpu":
        # torch.manual_seed would note the seed, with a traceback, for each kind of device that is never used.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def accumulate_gradients(
    step: Callable[[BatchT], Mapping[str, Tensor]],
    pieces: list[BatchT],
    *,
    weight: float = 1.0,
    accelerator: Accelerator,
    model: nn.Module,
) -> dict[str, Tensor]:
    """Compute the gradients of the mean loss over the pieces; ranks exchange them with the last. Returns the mean
    metrics.

    Ranks average their gradients. With the weight, that average is the gradient of the mean loss over the samples of
    all ranks.

    Args:
        step: returns the metrics of a piece.
        pieces: pieces of the batch.
        weight: number of this rank's samples, in units of the mean over ranks.
        accelerator: as made by `make_accelerator`.
        model: the prepared model.
    """
    total = sum(len(piece) for piece in pieces)
    metrics: dict[str, Tensor] = {}
    for k, piece in enumerate(pieces):
        share = len(piece) / total
        with accelerator.no_sync(model) if k < len(pieces) - 1 else accelerator.autocast():
            with accelerator.autocast():
                values = step(piece)
            accelerator.backward(values["loss"] * (share * weight))
        for name, value in values.items():
            metrics[name] = metrics.get(name, torch.zeros_like(value)) + value.detach() * share
    return metrics


def mean_over_ranks(accelerator: Accelerator, values: Mapping[str, Tensor], *, weight: float = 1.0) -> dict[str, float]:
    """Return metrics as their mean over the samples of all ranks.

    Args:
        accelerator: as made by `make_accelerator`.
        values: means over this rank's samples by name, scalars.
        weight: number of this rank's samples, in units of the mean over ranks.
    """
    stacked = torch.stack([value.float() for value in values.values()]) * weight
    means = accelerator.reduce(stacked, reduction="mean").tolist()  # type: ignore[union-attr]
    return dict(zip(values, means, strict=True))


def sum_over_ranks(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks.

    Args:
        accelerator: as made by `make_accelerator`.
        values: tensor of the same shape on all ranks.
    """
    return accelerator.reduce(values, reduction="sum") if accelerator.num_processes > 1 else values  # type: ignore[return-value]


@torch.no_grad()
def share_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Give all ranks the buffers of the main process, which are the ones that are saved: ranks gather their own
    statistics.

    Args:
        accelerator: as made by `make_accelerator`.
        module: module whose buffers are changed in place.
    """
    if accelerator.num_processes > 1:
        buffers = list(module.buffers())
        for buffer, shared in zip(buffers, broadcast(buffers), strict=True):
            buffer.copy_(shared)


def from_main(accelerator: Accelerator, value: Any) -> Any:
    """Return the value of the main process on every rank.

    Args:
        accelerator: as made by `make_accelerator`.
        value: picklable value; only that of the main process matters.
    """
    return broadcast_object_list([value])[0]


def gather_lists(accelerator: Accelerator, values: list[Any]) -> list[Any]:
    """Return the lists of all ranks, joined in the order of ranks.

    Args:
        accelerator: as made by `make_accelerator`.
        values: list of picklable values.
    """
    return gather_object(values) if accelerator.num_processes > 1 else values
