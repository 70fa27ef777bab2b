"""Reading: samples of one split by number, in batches, straight from the mapped shards."""

import os
import select
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deeplense.data.order import batch_indices, rank_slice, uniforms
from deeplense.data.shards import Manifest, column, image_offset, moments_of, statistics_of
from deeplense.data.transforms import NUM_UNIFORMS

READ_ROWS = 256
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Batch:
    """Some samples on their way to the model: images (b, C, H, W), labels (b,), index within the split (b,), random
    numbers in [0, 1[ (b, R).

    `target` (b,) is the number to be learnt in regression, and the label as a float elsewhere.
    """

    images: Tensor
    labels: Tensor
    target: Tensor
    indices: Tensor
    uniforms: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))

    def split(self, parts: int) -> list["Batch"]:
        """The batch in `parts` pieces of nearly equal size."""
        pieces = [rank_slice(len(self), part, parts) for part in range(parts)]
        return [Batch(*(getattr(self, name)[piece] for name in self.__dataclass_fields__)) for piece in pieces]


class Split:
    """One split of a data set. Labels (N,), targets (N,), ids (N,) are in memory, images stay in their shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.images_folder = folder
        self.manifest = Manifest.read(folder)
        self.schema = self.manifest.schema
        self.starts = np.cumsum([0] + [shard["num_samples"] for shard in self.manifest.shards])
        parts = [self.read_columns(folder / shard["file"], shard) for shard in self.manifest.shards]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.labels = columns.pop("label")
        self.ids: list[str] = [name.decode() for name in columns.pop("id")]
        self.targets = columns
        self.maps: dict[int, np.memmap] = {}
        self.process = os.getpid()

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": {}}

    def read_columns(self, path: Path, shard: dict[str, Any]) -> dict[str, np.ndarray]:
        """All of a shard but its images. Raises ValueError, naming the shard, where it does not fit the manifest."""
        if not path.exists() or path.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{path} is missing or of another size than the manifest says; `deeplense verify` tells more."
            )
        try:
            with h5py.File(path, locking=False) as file:
                columns = {name: column(file, f"target/{name}") for name in self.schema.targets}
                columns |= {name: column(file, name) for name in ("label", "id")}
                offset = image_offset(file)
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged ({error}); `deeplense verify` tells more.") from error
        if offset != shard["image_offset"]:
            raise ValueError(f"{path} does not match the manifest; `deeplense verify` tells more.")
        return columns

    def read_from(self, copy: Path) -> None:
        """Read the images from a copy of the split; messages go on to name the split."""
        self.images_folder, self.maps = copy, {}

    def mapped(self, number: int) -> np.memmap:
        """The images of one shard, mapped into this process."""
        if self.process != os.getpid():
            self.maps, self.process = {}, os.getpid()
        if number not in self.maps:
            shard = self.manifest.shards[number]
            self.maps[number] = np.memmap(
                self.images_folder / shard["file"],
                dtype=self.schema.dtype,
                mode="r",
                offset=shard["image_offset"],
                shape=(shard["num_samples"], *self.schema.shape),
            )
        return self.maps[number]

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The images with these numbers, (n, C, H, W) float32, in the order asked for; each shard is read in its own
        order."""
        images = np.empty((len(indices), *self.schema.shape), dtype=np.float32)
        shard_of = np.searchsorted(self.starts, indices, side="right") - 1
        for number in np.unique(shard_of):
            places = np.flatnonzero(shard_of == number)
            places = places[np.argsort(indices[places], kind="stable")]
            images[places] = self.mapped(int(number))[indices[places] - self.starts[number]]
        return images

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """A 64-bit hash of the pixels of each of these images, (n,)."""
        parts = [self.images(indices[k : k + READ_ROWS]) for k in range(0, len(indices), READ_ROWS)]
        return np.array(
            [xxhash.xxh3_64_intdigest(image.tobytes()) for part in parts for image in part], dtype=np.uint64
        )

    def statistics(self, indices: np.ndarray) -> dict[str, list[float]]:
        """Mean and standard deviation of each band over these images; from the manifest where they are all of the
        split."""
        if len(np.unique(indices)) == len(indices) == len(self):
            return self.manifest.statistics
        parts = [indices[k : k + READ_ROWS] for k in range(0, len(indices), READ_ROWS)]
        return statistics_of([moments_of(self.images(part)) for part in parts])

    def batch(self, indices: np.ndarray, *, target: str | None, random: np.ndarray) -> Batch:
        """The samples with these numbers, and the random numbers (n, R) that go with them."""
        labels = torch.from_numpy(self.labels[indices])
        values = labels.float() if target is None else torch.from_numpy(self.targets[target][indices]).float()
        return Batch(
            images=torch.from_numpy(self.images(indices)),
            labels=labels,
            target=values,
            indices=torch.from_numpy(indices),
            # Some devices know float32 alone, and the cast must not round up to 1.
            uniforms=torch.from_numpy(np.minimum(random, 1 - 2.0**-24).astype(np.float32)),
        )


class StepBatches(Dataset[Batch]):
    """A rank's part of the batch of each step; the item of number n is that of step n."""

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        target: str | None,
    ) -> None:
        self.split, self.indices, self.target = split, indices, target
        self.batch_size, self.seed = batch_size, seed
        self.part = rank_slice(batch_size, rank, world_size)

    def __getitem__(self, step: int) -> Batch:
        places, epochs = batch_indices(step, num_samples=len(self.indices), batch_size=self.batch_size, seed=self.seed)
        chosen = self.indices[places[self.part]]
        random = uniforms(self.seed, epochs[self.part], chosen, count=NUM_UNIFORMS)
        return self.split.batch(chosen, target=self.target, random=random)


def step_loader(batches: StepBatches, steps: range, *, num_workers: int) -> Iterator[Batch]:
    """The batches of these steps in order, read ahead by `num_workers` processes (none: in this one)."""
    if num_workers:
        start_fork_server()
    loader = DataLoader(
        batches,
        sampler=steps,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=partial(live_as_long_as, os.getpid()) if num_workers else None,
        multiprocessing_context="forkserver" if num_workers else None,
    )
    return iter(loader)


def start_fork_server() -> None:
    """Start the parent of the loader's processes with the signals held back that a scheduler sends to every process of
    a job: it must live on until the main one has saved."""
    # First: starting it lets SIGTERM and SIGINT through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_as_long_as(main_process: int, worker: int) -> None:
    """In a process of the loader: leave signals to the main process, and end when that ends, however it does. (The fork
    server does not see to it: it waits for its children, and they for it.)"""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "pidfd_open"):
        watcher = os.pidfd_open(main_process)
        Thread(target=end_with, args=(watcher,), daemon=True).start()


def end_with(watcher: int) -> None:
    """End this process when the other one has ended."""
    select.select([watcher], [], [])
    os._exit(1)


def evaluation_batches(split: Split, indices: np.ndarray, *, batch_size: int, target: str | None) -> Iterator[Batch]:
    """These samples once each, in their order, unaugmented."""
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        yield split.batch(chosen, target=target, random=np.zeros((len(chosen), NUM_UNIFORMS)))


def splits_of(dataset: Path) -> Sequence[str]:
    """Names of the finished splits of a data set."""
    return sorted(path.parent.name for path in dataset.glob("*/manifest.json"))
