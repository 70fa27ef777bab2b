"""`deeplense benchmark data`: the interface of a reader, our own readers, and the reference."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.loading import StepBatches, step_loader
from deeplense.data.order import Order as StepOrder
from deeplense.data.order import Shuffle
from deeplense.data.reading import values
from deeplense.data.shards import BLOCK_ROWS, Samples, Schema

CLASSES = ("a", "b", "c")
ROWS_AT_A_TIME = 1024
NUM_WORKERS = 2
Epochs = Callable[[int], Iterator[Tensor]]
"""Returns the batches of an epoch, float32 (b, 1, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images (N, 1, H, W) in `images.npy` of a folder, and the batch size."""

    folder: Path
    num_images: int
    image_size: int
    dtype: str
    batch_size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 1, H, W)."""
        return self.num_images, 1, self.image_size, self.image_size

    @property
    def num_bytes(self) -> int:
        """Size of all pixels in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch, including the last, smaller one."""
        return math.ceil(self.num_images / self.batch_size)

    @property
    def images(self) -> np.ndarray:
        """A new memory map of the images, because pages of an open map cannot be evicted from the page cache."""
        return np.load(self.folder / "images.npy", mmap_mode="r")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A storage format with its reader: `write` stores the images in a folder named `stored`, `read` opens it with
    worker processes.

    Objects with the same name are variants; the fastest one is reported. An `endless` reader continues with the next
    epoch without a break. `needs` is the module of the other package, `install` is how to install it.
    """

    name: str
    stored: str
    write: Callable[[Data, Path], None]
    read: Callable[[Data, Path, int], Epochs]
    num_workers: int = 0
    detail: str = ""
    needs: str = ""
    install: str = ""
    endless: bool = False

    @property
    def variant(self) -> str:
        """Description of the variant."""
        workers = f"{self.num_workers} workers" if self.num_workers else "in process"
        return ", ".join(filter(None, (self.detail, workers)))


def make_data(data: Data) -> None:
    """Write `images.npy`: arcs with noise, which lz4 compresses by a factor of 1.25 (simulated lenses: 1.24)."""
    data.folder.mkdir(parents=True)
    file = np.lib.format.open_memmap(data.folder / "images.npy", "w+", dtype=data.dtype, shape=data.shape)
    for start in range(0, data.num_images, ROWS_AT_A_TIME):
        rows = range(start, min(start + ROWS_AT_A_TIME, data.num_images))
        images = arcs(rows, image_size=data.image_size)
        file[rows.start : rows.stop] = np.rint(255 * images.clip(0, 1)) if data.dtype == "uint8" else images
    file.flush()


def arcs(rows: range, *, image_size: int) -> np.ndarray:
    """Return random images (n, 1, H, W) of an arc with a peak of about 0.7 and noise of 0.04."""
    generator = np.random.default_rng(rows.start)
    radius, angle = generator.uniform((0.3, -np.pi), (0.6, np.pi), size=(len(rows), 2)).T[..., None, None]
    y, x = np.mgrid[-1 : 1 : image_size * 1j, -1 : 1 : image_size * 1j]
    light = np.exp(-(((np.hypot(x, y) - radius) / 0.1) ** 2)) * (1 + np.cos(np.arctan2(y, x) - angle)) / 2
    noise = generator.normal(0.2, 0.04, size=light.shape)
    return (0.7 * light + noise).astype(np.float32)[:, None]


def random_order(data: Data, epoch: int) -> np.ndarray:
    """Return a random permutation of all images."""
    return np.random.default_rng(epoch).permutation(data.num_images)


Gather = Callable[[Any], np.ndarray]
"""Returns the images with these indices, (b, 1, H, W)."""


def gathered(data: Data, gather: Gather) -> Epochs:
    """Return epochs of batches that are gathered in this process."""

    def batches(epoch: int) -> Iterator[Tensor]:
        indices = random_order(data, epoch)
        for start in range(0, len(indices), data.batch_size):
            yield torch.from_numpy(gather(indices[start : start + data.batch_size])).float()

    return batches


def write_own(data: Data, folder: Path, *, compression: str = "none") -> None:
    """Write our shards."""
    images = data.images
    schema = Schema(
        split="train",
        num_samples=data.num_images,
        shape=data.shape[1:],
        dtype=data.dtype,
        bands=("made up",),
        unit="",
        pixel_scale_arcsec=None,
        classes=CLASSES,
        compression=compression,
    )

    def make(rows: range) -> Samples:
        numbers = np.arange(rows.start, rows.stop)
        names = [f"train-0-{k}" for k in rows]
        return Samples(images[rows.start : rows.stop], numbers % len(CLASSES), {}, names, numbers)

    for _ in build(folder, schema, make):
        pass


def read_own(data: Data, folder: Path, _: int) -> Epochs:
    """Read batches directly from the shards."""
    split = Split(folder)

    def batches(epoch: int) -> Iterator[Tensor]:
        indices = random_order(data, epoch)
        for start in range(0, len(indices), data.batch_size):
            stored = split.stored.read(indices[start : start + data.batch_size])
            yield values(stored, scale=split.scale, zero=split.zero)

    return batches


def read_own_steps(
    data: Data, folder: Path, num_workers: int, *, num_threads: int = 0, shuffle: Shuffle | None = None
) -> Epochs:
    """Read batches as in a training: in our order, with labels and random numbers."""
    order = StepOrder([np.arange(data.num_images)], batch_size=data.batch_size, seed=0, shuffle=shuffle)
    batches = StepBatches(Split(folder), order, rank=0, world_size=1, target=None)
    steps = step_loader(batches, range(2**31), num_threads=num_threads, num_workers=num_workers)
    return lambda epoch: (batch.to(torch.device("cpu")).images for batch in steps)


def write_memmap(data: Data, folder: Path) -> None:
    """Link the existing .npy file."""
    folder.mkdir()
    (folder / "images.npy").symlink_to(data.folder / "images.npy")


def read_memmap(data: Data, folder: Path, _: int) -> Epochs:
    """Gather batches from the memory-mapped file with numpy: the reference."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    return gathered(data, lambda indices: images[indices])


def with_workers(*ways: Way) -> list[Way]:
    """Return each reader without and with worker processes."""
    return [replace(way, num_workers=count) for way in ways for count in (0, NUM_WORKERS)]


REFERENCE = Way(name="numpy memmap", stored="memmap", write=write_memmap, read=read_memmap)
OWN = Way(name="deeplense, gathered", stored="deeplense", write=write_own, read=read_own)
OWN_STEPS = replace(OWN, name="deeplense, as a training gets them", read=read_own_steps, endless=True)
OWN_AHEAD = [
    replace(OWN_STEPS, name="deeplense, read ahead", read=partial(read_own_steps, num_threads=k), detail=f"{k} threads")
    for k in (1, NUM_WORKERS)
]
OWN_BLOCKS = [
    replace(
        OWN_STEPS,
        name="deeplense, blocks",
        read=partial(read_own_steps, num_threads=k, shuffle=Shuffle(BLOCK_ROWS)),
        detail=f"{k} threads",
    )
    for k in (0, NUM_WORKERS)
]
LZ4 = replace(
    OWN_STEPS,
    name="lz4",
    stored="lz4",
    write=partial(write_own, compression="lz4"),
    needs="hdf5plugin",
    install="pip install 'deeplense[compress]'",
)
ZSTD = replace(LZ4, name="zstd", stored="zstd", write=partial(write_own, compression="zstd"))
