"""The batches of a training, read ahead."""

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset

from deeplense.data.dataset import Batch, Split
from deeplense.data.order import uniforms
from deeplense.data.processes import live_as_long_as, start_fork_server
from deeplense.data.sampling import Order
from deeplense.data.transforms import NUM_UNIFORMS


class StepBatches(Dataset[Batch]):
    """A rank's part of the batch of each step; the item of number n is that of step n."""

    def __init__(
        self,
        split: Split,
        order: Order,
        *,
        rank: int,
        world_size: int,
        target: np.ndarray | None,
        num_uniforms: int = NUM_UNIFORMS,
    ) -> None:
        self.split, self.order, self.target, self.num_uniforms = split, order, target, num_uniforms
        # Every so many, not a piece: the lanes of the order are dealt in turn, and a rank should have its own.
        self.part = slice(rank, None, world_size)
        self.announced = 0

    def __getitem__(self, step: int) -> Batch:
        self.announce(step)
        indices, epochs = (both[self.part] for both in self.order.batch(step))
        random = uniforms(self.order.seed, epochs, indices, count=self.num_uniforms)
        return self.split.batch(indices, target=self.target, random=random)

    def announce(self, step: int) -> None:
        """Let the disk read what will be asked for in the next window of the order."""
        last = step + self.order.steps_ahead
        for coming in range(max(step, self.announced), last):
            self.split.stored.announce(self.order.batch(coming)[0][self.part])
        self.announced = max(last, self.announced)


def step_loader(batches: StepBatches, steps: range, *, num_threads: int = 0, num_workers: int = 0) -> Iterator[Batch]:
    """The batches of these steps in order, read ahead by threads of this process, or by other processes (none: read
    when they are asked for)."""
    if num_workers:
        return iter(worker_loader(batches, steps, num_workers=num_workers))
    return read_ahead(batches, steps, num_threads=num_threads) if num_threads else map(batches.__getitem__, steps)


def read_ahead(batches: StepBatches, steps: range, *, num_threads: int) -> Generator[Batch, None, None]:
    """The batches of these steps in order, each thread one ahead."""
    pool = ThreadPoolExecutor(num_threads, "reader")
    try:
        waiting = deque(pool.submit(batches.__getitem__, step) for step in steps[:num_threads])
        for step in steps[num_threads:]:
            batch = waiting.popleft().result()
            waiting.append(pool.submit(batches.__getitem__, step))
            yield batch
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def worker_loader(batches: StepBatches, steps: range, *, num_workers: int) -> DataLoader:
    """The same by other processes, for data that are costly to decompress."""
    start_fork_server()
    return DataLoader(
        batches,
        sampler=steps,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=partial(live_as_long_as, os.getpid()),
        multiprocessing_context="forkserver",
    )
