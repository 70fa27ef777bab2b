"""Whether the results of a training, and what it would save, are finite: neither NaN nor infinite."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

MOST_PENDING = 1024


class NotFinite(ValueError):
    """Numbers are not finite where they must be. The same command would reproduce them."""


class LossWatch:
    """Watches the losses of updates without delaying them: losses on a GPU are copied to the host meanwhile.

    Example:
        >>> watch = LossWatch()
        >>> watch.note(1, torch.tensor(0.5))
        >>> watch.note(2, torch.tensor(float("inf")))
        >>> watch.read()
        (2, inf)
    """

    def __init__(self) -> None:
        self.pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self.found: tuple[int, float] | None = None

    def note(self, step: int, loss: Tensor) -> None:
        """Add the loss of an update.

        Args:
            step: number of the update.
            loss: scalar on any device.
        """
        loss, event = loss.detach(), None
        if loss.device.type == "cuda":
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.pending.append((step, loss, event))
        if len(self.pending) >= MOST_PENDING:
            self.read()

    def seen(self) -> bool:
        """Whether a loss that has reached the host was not finite. Does not wait."""
        while self.pending and is_here(*self.pending[0][1:]):
            self.take()
        return self.found is not None

    def read(self) -> tuple[int, float] | None:
        """Return the first update whose loss was not finite, and that loss, or None. Waits for the device."""
        while self.pending:
            self.take()
        return self.found

    def take(self) -> None:
        """Check the oldest loss."""
        step, loss, event = self.pending.popleft()
        if event is not None:
            event.synchronize()
        value = loss.item()
        if self.found is None and not math.isfinite(value):
            self.found = step, value


def is_here(loss: Tensor, event: torch.cuda.Event | None) -> bool:
    """Whether a loss is on the host.

    Args:
        loss: scalar on the host or on its way there.
        event: event after its copy from a GPU; None for none.
    """
    return event.query() if event is not None else loss.device.type == "cpu"


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of these tensors are finite; of sharded tensors, those of this rank.

    This takes one pass over the memory, and waits for the device once.

    Example:
        >>> is_finite([torch.ones(2)]), is_finite([torch.tensor([1.0, float("nan")])])
        (True, False)
    """
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    kept = [tensor.detach() for tensor in local if tensor.is_floating_point() and tensor.numel()]
    if not kept or math.isfinite(torch.nn.utils.get_total_norm(kept).item()):
        return True
    # The squares of finite numbers may overflow.
    return all(bool(torch.isfinite(tensor).all()) for tensor in kept)


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Yield all tensors of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from tensors_in(value)
