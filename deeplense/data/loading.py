"""The batches of a training, read ahead."""

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset

from deeplense.data.dataset import Batch, Split
from deeplense.data.order import Order, share_of
from deeplense.data.processes import live_as_long_as, start_fork_server
from deeplense.data.transforms import NUM_UNIFORMS
from deeplense.random.draws import uniforms


class StepBatches(Dataset[Batch]):
    """A rank's part of the batch of each step; item n is that of step n.

    Args:
        split: split with the samples.
        order: the samples of each step.
        rank: number of this process.
        world_size: number of processes.
        target: values to predict, of all samples of the split (N,); None for the labels.
        num_uniforms: random numbers per sample.
    """

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
        self.part = share_of(rank, world_size)
        self.announced = 0

    def __getitem__(self, step: int) -> Batch:
        self.announce(step)
        indices, epochs = (both[self.part] for both in self.order.batch(step))
        random = uniforms(self.order.seed, epochs, indices, count=self.num_uniforms)
        return self.split.batch(indices, target=self.target, random=random)

    def announce(self, step: int) -> None:
        """Let the disk read the samples of the next window of the order."""
        last = step + self.order.steps_ahead
        for coming in range(max(step, self.announced), last):
            self.split.stored.announce(self.order.batch(coming)[0][self.part])
        self.announced = max(last, self.announced)


def step_loader(
    batches: StepBatches, steps: range, *, num_threads: int = 0, num_workers: int = 0, pinned: bool = False
) -> Iterator[Batch]:
    """Return the batches of these steps in order, read ahead by threads of this process or by worker processes.

    Args:
        batches: batches of a rank.
        steps: numbers of the steps.
        num_threads: threads that read ahead; 0 to read on demand.
        num_workers: worker processes; 0 for none.
        pinned: whether batches are put into pinned memory, for a GPU.
    """
    if num_workers:
        loader = worker_loader(batches, steps, num_workers=num_workers)
        return map(Batch.pinned, loader) if pinned else iter(loader)
    if num_threads:
        return read_ahead(batches, steps, num_threads=num_threads, pinned=pinned)
    return map(partial(read, batches, pinned=pinned), steps)


def read(batches: StepBatches, step: int, *, pinned: bool) -> Batch:
    """Return the batch of a step.

    Args:
        batches: batches of a rank.
        step: number of the step.
        pinned: whether it is put into pinned memory.
    """
    return batches[step].pinned() if pinned else batches[step]


def read_ahead(
    batches: StepBatches, steps: range, *, num_threads: int, pinned: bool = False
) -> Generator[Batch, None, None]:
    """Yield the batches of these steps in order; each thread reads one ahead.

    Args:
        batches: batches of a rank.
        steps: numbers of the steps.
        num_threads: number of threads, at least 1.
        pinned: whether batches are put into pinned memory.
    """
    pool = ThreadPoolExecutor(num_threads, "reader")
    try:
        waiting = deque(pool.submit(read, batches, step, pinned=pinned) for step in steps[:num_threads])
        for step in steps[num_threads:]:
            batch = waiting.popleft().result()
            waiting.append(pool.submit(read, batches, step, pinned=pinned))
            yield batch
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def worker_loader(batches: StepBatches, steps: range, *, num_workers: int) -> DataLoader:
    """Return a loader of the batches by worker processes, for data that are slow to decompress.

    Args:
        batches: batches of a rank.
        steps: numbers of the steps.
        num_workers: number of worker processes.
    """
    start_fork_server()
    return DataLoader(
        batches,
        sampler=steps,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=partial(live_as_long_as, os.getpid()),
        multiprocessing_context="forkserver",
    )
