"""Whether what a training computes, and what it would keep, is finite: neither NaN nor infinite."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

MOST_PENDING = 1024


class NotFinite(ValueError):
    """Numbers that are not finite where they must be. The same command would come to them again."""


class LossWatch:
    """Keeps the losses of updates on their device until they are read, so that no update waits for the device."""

    def __init__(self) -> None:
        self.pending: list[tuple[int, Tensor]] = []
        self.found: tuple[int, float] | None = None

    def note(self, step: int, loss: Tensor) -> None:
        """Take the loss of an update."""
        self.pending.append((step, loss.detach()))
        if len(self.pending) >= MOST_PENDING:
            self.read()

    def read(self) -> tuple[int, float] | None:
        """The first update whose loss was not finite, and that loss; None where there is none. Waits for the device."""
        if self.pending and self.found is None:
            values = torch.stack([loss.float() for _, loss in self.pending]).tolist()
            steps = [step for step, _ in self.pending]
            bad = (each for each in zip(steps, values, strict=True) if not math.isfinite(each[1]))
            self.found = next(bad, None)
        self.pending.clear()
        return self.found


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of these tensors are finite; of sharded ones this rank's part. One pass over the memory, and
    the device is waited for once."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    kept = [tensor.detach() for tensor in local if tensor.is_floating_point() and tensor.numel()]
    if not kept or math.isfinite(torch.nn.utils.get_total_norm(kept).item()):
        return True
    # The squares of finite numbers may overflow.
    return all(bool(torch.isfinite(tensor).all()) for tensor in kept)


def tensors_in(state: Any) -> Iterator[Tensor]:
    """All tensors of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from tensors_in(value)
