"""What the ranks of a training agree on while it runs: to stop, to save, that one has failed or diverged.

The exchange runs beside the steps, over a group of the hosts: at the end of a step each rank sends its requests, and at
the end of the next it learns the requests of all. So no step waits for it, nor for a GPU, and all ranks act after the
same step. With short steps it does not happen in each: if ranks share cores, a message among them takes longer than a
step.
"""

import time
from enum import IntFlag, auto
from typing import cast

import torch
import torch.distributed as dist
from accelerate import Accelerator

SECONDS = 0.5
"""Approximate time between exchanges, if steps are shorter."""
MOST_STEPS = 1000
"""Largest number of steps between exchanges."""


class Request(IntFlag):
    """Requests of a rank to all."""

    STOP = auto()
    SAVE = auto()
    FAIL = auto()
    DIVERGED = auto()


class Agreement:
    """The requests of any rank, known to all. All ranks must make one at the same place.

    Args:
        accelerator: as made by `make_accelerator`.
        seconds: time between exchanges if steps are shorter; 0 for one after every step.
    """

    def __init__(self, accelerator: Accelerator, *, seconds: float = SECONDS) -> None:
        several = accelerator.num_processes > 1
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if several else None
        self.seconds, self.last = seconds, time.perf_counter()
        self.sent = Request(0)
        """what this rank asked for at the end of the step before, which others do not know yet"""
        self.steps = self.interval = 1
        """since the last exchange, and from one to the next"""
        self.numbers = torch.zeros(len(Request) + 1, dtype=torch.int32)
        self.options = dist.AllreduceOptions()
        self.options.reduceOp, self.options.asyncOp = cast(dist.ReduceOp, dist.ReduceOp.MAX), True
        self.under_way: dist.Work | None = None

    @property
    def at_once(self) -> bool:
        """Whether requests are known at once, as there is only one rank."""
        return self.group is None

    def exchange(self, requests: Request) -> Request:
        """Send the requests of this rank at the end of a step, and return those of all ranks at the end of the step
        before, if they were exchanged.

        A rank repeats its requests until all know them. A single rank gets its own at once. Every rank must call this
        after every step.
        """
        if self.group is None:
            return requests
        agreed, self.sent = self.finish(), Request(0)
        if self.steps >= self.interval:
            self.sent = requests
            self.numbers.numpy()[:] = [*(request in requests for request in Request), -self.steps_until_next()]
            # What `dist.all_reduce` does around it takes as long again.
            self.under_way = self.group.allreduce([self.numbers], self.options)
            self.steps = 0
        self.steps += 1
        return agreed

    def steps_until_next(self) -> int:
        """Return how many steps this rank would make until the next exchange. All make the smallest
        number of any rank."""
        now = time.perf_counter()
        each, self.last = (now - self.last) / self.steps, now
        return max(1, min(int(self.seconds / each), MOST_STEPS))

    def finish(self) -> Request:
        """Wait for the exchange under way, which is complete unless another rank is late; returns the requests."""
        if self.under_way is None:
            return Request(0)
        self.under_way.wait()
        self.under_way = None
        *flags, negative = self.numbers.tolist()
        self.interval = -negative
        return Request(sum(request for request, flag in zip(Request, flags, strict=True) if flag))
