"""What `deeplense benchmark data` compares: ways to store images and to read them batch by batch, ours and others'.

Each other package gets what its documentation recommends, and where that is slow, what is known to be faster.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.loading import StepBatches, step_loader
from deeplense.data.reading import values
from deeplense.data.sampling import Order as StepOrder
from deeplense.data.sampling import Shuffle
from deeplense.data.shards import BLOCK_ROWS, Samples, Schema

CLASSES = ("a", "b", "c")
ROWS_AT_A_TIME = 1024
NUM_WORKERS = 2
TAR_FILES = 8
BENCH = "pip install 'deeplense[bench]'"
STREAMING = (
    "pip install --no-deps mosaicml-streaming, and what it then misses (it pins older versions of numpy and others)"
)

Epochs = Callable[[int], Iterator[Tensor]]
"""Gives the batches of an epoch, float32 (b, 1, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images (N, 1, H, W) in `images.npy` of a folder, and how they are asked for."""

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
        """Of the pixels."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def num_batches(self) -> int:
        """Of an epoch, the last and smaller one included."""
        return math.ceil(self.num_images / self.batch_size)

    @property
    def images(self) -> np.ndarray:
        """Mapped anew: pages of a map that lives cannot be dropped from memory."""
        return np.load(self.folder / "images.npy", mmap_mode="r")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way: `write` stores the images in a folder named `stored`, `read` opens it with worker processes.

    Ways of one name are variants, the best of which counts. Of an `endless` one the epochs follow without a break.
    `needs` is the module of the other package, `install` how to get it.
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
        """In words."""
        workers = f"{self.num_workers} workers" if self.num_workers else "in process"
        return ", ".join(filter(None, (self.detail, workers)))


def make_data(data: Data) -> None:
    """Write `images.npy`: an arc of light in noise, which lz4 makes smaller by 1.25 (simulated lenses: 1.24)."""
    data.folder.mkdir(parents=True)
    file = np.lib.format.open_memmap(data.folder / "images.npy", "w+", dtype=data.dtype, shape=data.shape)
    for start in range(0, data.num_images, ROWS_AT_A_TIME):
        rows = range(start, min(start + ROWS_AT_A_TIME, data.num_images))
        images = arcs(rows, image_size=data.image_size)
        file[rows.start : rows.stop] = np.rint(255 * images.clip(0, 1)) if data.dtype == "uint8" else images
    file.flush()


def arcs(rows: range, *, image_size: int) -> np.ndarray:
    """Images (n, 1, H, W) of an arc with a peak of about 0.7 and noise of 0.04, each drawn for itself."""
    generator = np.random.default_rng(rows.start)
    radius, angle = generator.uniform((0.3, -np.pi), (0.6, np.pi), size=(len(rows), 2)).T[..., None, None]
    y, x = np.mgrid[-1 : 1 : image_size * 1j, -1 : 1 : image_size * 1j]
    light = np.exp(-(((np.hypot(x, y) - radius) / 0.1) ** 2)) * (1 + np.cos(np.arctan2(y, x) - angle)) / 2
    noise = generator.normal(0.2, 0.04, size=light.shape)
    return (0.7 * light + noise).astype(np.float32)[:, None]


def random_order(data: Data, epoch: int) -> np.ndarray:
    """A permutation of all images."""
    return np.random.default_rng(epoch).permutation(data.num_images)


Gather = Callable[[Any], np.ndarray]
"""Gives the images with these numbers, (b, 1, H, W)."""


def gathered(data: Data, gather: Gather) -> Epochs:
    """Epochs of batches that are gathered in this process."""

    def batches(epoch: int) -> Iterator[Tensor]:
        indices = random_order(data, epoch)
        for start in range(0, len(indices), data.batch_size):
            yield torch.from_numpy(gather(indices[start : start + data.batch_size])).float()

    return batches


# Ours. All that this benchmark asks of the reader stands here.


def write_own(data: Data, folder: Path, *, compression: str = "none") -> None:
    """Our shards."""
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
    """Batches straight from the shards."""
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
    """Batches as a training gets them: in our order, with labels and random numbers."""
    order = StepOrder([np.arange(data.num_images)], batch_size=data.batch_size, seed=0, shuffle=shuffle)
    batches = StepBatches(Split(folder), order, rank=0, world_size=1, target=None)
    steps = step_loader(batches, range(2**31), num_threads=num_threads, num_workers=num_workers)
    return lambda epoch: (batch.to(torch.device("cpu")).images for batch in steps)


# The others.


def write_memmap(data: Data, folder: Path) -> None:
    """One .npy file, which is there already."""
    folder.mkdir()
    (folder / "images.npy").symlink_to(data.folder / "images.npy")


def read_memmap(data: Data, folder: Path, _: int) -> Epochs:
    """Batches gathered from the mapped file by numpy: the reference."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    return gathered(data, lambda indices: images[indices])


class Fetched(Dataset[Tensor]):
    """Images that a loader fetches a batch at a time, which is faster than one at a time."""

    def __init__(self, num_images: int, fetch: Gather) -> None:
        self.num_images, self.fetch = num_images, fetch

    def __len__(self) -> int:
        return self.num_images

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        """The images with these numbers, (b, 1, H, W)."""
        return self.fetch(indices)


def loaded(images: Dataset[Any], data: Data, num_workers: int, *, collate_fn: Callable[[Any], Tensor]) -> Epochs:
    """Epochs of PyTorch's loader, whose workers live on; images without numbers shuffle themselves."""
    loader = DataLoader(
        images,
        batch_size=data.batch_size,
        shuffle=isinstance(images, Fetched),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate_fn,
    )
    return lambda epoch: (batch.float() for batch in loader)


def fetched(data: Data, fetch: Gather, num_workers: int) -> Epochs:
    """Epochs of PyTorch's loader over images that are fetched by number."""
    return loaded(Fetched(data.num_images, fetch), data, num_workers, collate_fn=torch.from_numpy)


def write_files(data: Data, folder: Path) -> None:
    """A .npy file for each image."""
    folder.mkdir()
    for k, image in enumerate(data.images):
        np.save(folder / f"{k}.npy", image)


def read_files(data: Data, folder: Path, num_workers: int) -> Epochs:
    """A file opened for each image."""
    return fetched(data, partial(fetch_files, folder), num_workers)


def fetch_files(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """The images of these files."""
    return np.stack([np.load(f"{folder}/{k}.npy") for k in indices])


def write_h5py(data: Data, folder: Path) -> None:
    """One HDF5 file."""
    folder.mkdir()
    with h5py.File(folder / "images.h5", "w") as file:
        file["image"] = data.images


class H5File:
    """The images of an HDF5 file, opened in each process that asks for them."""

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, 0

    @property
    def images(self) -> h5py.Dataset:
        """Of this process."""
        if self.process != os.getpid():
            self.file, self.process = h5py.File(self.path, locking=False), os.getpid()
        images = self.file["image"]
        assert isinstance(images, h5py.Dataset)
        return images

    def one_by_one(self, indices: Sequence[int]) -> np.ndarray:
        """One read for each image."""
        images = self.images
        return np.stack([images[k] for k in indices])

    def sorted(self, indices: Sequence[int]) -> np.ndarray:
        """One read for all, which takes rising numbers only."""
        return self.images[np.sort(indices)]


def read_h5py(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Item by item."""
    return fetched(data, H5File(folder / "images.h5").one_by_one, num_workers)


def read_h5py_sorted(data: Data, folder: Path, num_workers: int) -> Epochs:
    """The numbers of a batch sorted, and read at once."""
    return fetched(data, H5File(folder / "images.h5").sorted, num_workers)


def write_webdataset(data: Data, folder: Path) -> None:
    """Tar files, enough of them for all workers."""
    from webdataset import ShardWriter  # type: ignore[import-not-found]

    folder.mkdir()
    with ShardWriter(f"{folder}/%05d.tar", maxcount=math.ceil(data.num_images / TAR_FILES), verbose=0) as writer:
        for k, image in enumerate(data.images):
            writer.write({"__key__": f"{k:08d}", "npy": image})


def read_webdataset(data: Data, folder: Path, num_workers: int) -> Epochs:
    """The files in a random order, and a buffer of 1000 images to shuffle in."""
    from webdataset import WebDataset, WebLoader  # type: ignore[import-not-found]

    files = sorted(str(path) for path in folder.iterdir())
    images = WebDataset(files, shardshuffle=len(files)).shuffle(1000).decode().to_tuple("npy")
    batches = images.batched(data.batch_size, collation_fn=partial(stacked, column=0))
    loader = WebLoader(batches, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0)
    return lambda epoch: (batch.float() for batch in loader)


def stacked(samples: Sequence[Any], *, column: Any) -> Tensor:
    """One column of some samples."""
    return torch.from_numpy(np.stack([sample[column] for sample in samples]))


def write_litdata(data: Data, folder: Path, *, chunk_mb: int) -> None:
    """Chunks of this size."""
    from litdata.streaming import Cache  # type: ignore[import-not-found]

    folder.mkdir()
    cache = Cache(str(folder), chunk_bytes=chunk_mb * 2**20)
    for k, image in enumerate(data.images):
        cache[k] = torch.from_numpy(np.array(image))
    cache.done()
    cache.merge()


def read_litdata(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Its own shuffle, in the loader of PyTorch: the workers of its own take 10 s to end."""
    from litdata import StreamingDataset  # type: ignore[import-not-found]

    # By default it decodes up to 256 images for each that is asked for: 10 times slower.
    images = StreamingDataset(str(folder), shuffle=True, batch_decode=0)
    return loaded(images, data, num_workers, collate_fn=torch.stack)


def write_streaming(data: Data, folder: Path) -> None:
    """MDS files of the default size."""
    from streaming import MDSWriter  # type: ignore[import-not-found]

    shape = ",".join(str(length) for length in data.shape[1:])
    with MDSWriter(out=str(folder), columns={"image": f"ndarray:{data.dtype}:{shape}"}) as writer:
        for image in data.images:
            writer.write({"image": image})


def read_streaming(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Its shuffle py1e; one canonical node, so that no image is repeated to fill up."""
    from streaming import StreamingDataset  # type: ignore[import-not-found]

    before, tempfile.tempdir = tempfile.tempdir, str(data.folder)
    try:  # It leaves lock files in the folder for temporary files.
        images = StreamingDataset(
            local=str(folder), shuffle=True, shuffle_algo="py1e", num_canonical_nodes=1, batch_size=data.batch_size
        )
    finally:
        tempfile.tempdir = before
    return loaded(images, data, num_workers, collate_fn=partial(stacked, column="image"))


def with_workers(*ways: Way) -> list[Way]:
    """Each way as it is, and with worker processes."""
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
FILES = Way(name=".npy folder", stored="files", write=write_files, read=read_files)
H5PY = Way(name="h5py, item by item", stored="h5py", write=write_h5py, read=read_h5py)
H5PY_SORTED = replace(H5PY, name="h5py, sorted batch", read=read_h5py_sorted)
WEBDATASET = Way(
    name="webdataset",
    stored="tar",
    write=write_webdataset,
    read=read_webdataset,
    needs="webdataset",
    install=BENCH,
)
LITDATA = Way(
    name="litdata",
    stored="litdata-8",
    write=partial(write_litdata, chunk_mb=8),
    read=read_litdata,
    detail="8 MiB chunks",
    needs="litdata",
    install=BENCH,
)
LITDATA_64 = replace(LITDATA, stored="litdata-64", write=partial(write_litdata, chunk_mb=64), detail="64 MiB chunks")
MOSAICML = Way(
    name="MosaicML streaming",
    stored="mds",
    write=write_streaming,
    read=read_streaming,
    needs="streaming",
    install=STREAMING,
)
LZ4 = replace(
    OWN_STEPS,
    name="lz4",
    stored="lz4",
    write=partial(write_own, compression="lz4"),
    needs="hdf5plugin",
    install="pip install 'deeplense[compress]'",
)
ZSTD = replace(LZ4, name="zstd", stored="zstd", write=partial(write_own, compression="zstd"))

WARM = [
    *(REFERENCE, OWN, OWN_STEPS, *OWN_AHEAD),
    *with_workers(H5PY, H5PY_SORTED, FILES, WEBDATASET, LITDATA, LITDATA_64, MOSAICML),
]
COLD = [REFERENCE, OWN, *OWN_BLOCKS, FILES]
CODECS = with_workers(LZ4, ZSTD)
