"""Other formats to store images and to read them in batches: files, plain HDF5, and other packages.

Each package is used as its documentation recommends or, if that is slow, in a way known to be faster.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.benchmark.readers.own import Data, Epochs, Gather, Way

TAR_FILES = 8
BENCH = "pip install 'deeplense[bench]'"
STREAMING = (
    "pip install --no-deps mosaicml-streaming and its missing dependencies (it pins older versions of numpy and others)"
)


class Fetched(Dataset[Tensor]):
    """Data set whose images are fetched per batch, which is faster than one by one."""

    def __init__(self, num_images: int, fetch: Gather) -> None:
        self.num_images, self.fetch = num_images, fetch

    def __len__(self) -> int:
        return self.num_images

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        """Return the images with these indices, (b, 1, H, W)."""
        return self.fetch(indices)


def loaded(images: Dataset[Any], data: Data, num_workers: int, *, collate_fn: Callable[[Any], Tensor]) -> Epochs:
    """Return epochs of PyTorch's loader with persistent workers; data sets without indices shuffle themselves."""
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
    """Return epochs of PyTorch's loader over images that are fetched by index."""
    return loaded(Fetched(data.num_images, fetch), data, num_workers, collate_fn=torch.from_numpy)


def write_files(data: Data, folder: Path) -> None:
    """Write one .npy file per image."""
    folder.mkdir()
    for k, image in enumerate(data.images):
        np.save(folder / f"{k}.npy", image)


def read_files(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Open one file per image."""
    return fetched(data, partial(fetch_files, folder), num_workers)


def fetch_files(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """Load the images of these files."""
    return np.stack([np.load(f"{folder}/{k}.npy") for k in indices])


def write_h5py(data: Data, folder: Path) -> None:
    """Write one HDF5 file."""
    folder.mkdir()
    with h5py.File(folder / "images.h5", "w") as file:
        file["image"] = data.images


class H5File:
    """The images of an HDF5 file, which is opened in each process that reads it."""

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, 0

    @property
    def images(self) -> h5py.Dataset:
        """The data set of images, opened in this process."""
        if self.process != os.getpid():
            self.file, self.process = h5py.File(self.path, locking=False), os.getpid()
        images = self.file["image"]
        assert isinstance(images, h5py.Dataset)
        return images

    def one_by_one(self, indices: Sequence[int]) -> np.ndarray:
        """Read each image separately."""
        images = self.images
        return np.stack([images[k] for k in indices])

    def sorted(self, indices: Sequence[int]) -> np.ndarray:
        """Read all images at once, which needs ascending indices."""
        return self.images[np.sort(indices)]


def read_h5py(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Read item by item."""
    return fetched(data, H5File(folder / "images.h5").one_by_one, num_workers)


def read_h5py_sorted(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Sort the indices of a batch and read it at once."""
    return fetched(data, H5File(folder / "images.h5").sorted, num_workers)


def write_webdataset(data: Data, folder: Path) -> None:
    """Write tar files, enough of them for all workers."""
    from webdataset import ShardWriter  # type: ignore[import-not-found]

    folder.mkdir()
    with ShardWriter(f"{folder}/%05d.tar", maxcount=math.ceil(data.num_images / TAR_FILES), verbose=0) as writer:
        for k, image in enumerate(data.images):
            writer.write({"__key__": f"{k:08d}", "npy": image})


def read_webdataset(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Read the files in random order, with a shuffle buffer of 1000 images."""
    from webdataset import WebDataset, WebLoader  # type: ignore[import-not-found]

    files = sorted(str(path) for path in folder.iterdir())
    images = WebDataset(files, shardshuffle=len(files)).shuffle(1000).decode().to_tuple("npy")
    batches = images.batched(data.batch_size, collation_fn=partial(stacked, column=0))
    loader = WebLoader(batches, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0)
    return lambda epoch: (batch.float() for batch in loader)


def stacked(samples: Sequence[Any], *, column: Any) -> Tensor:
    """Stack one column of samples."""
    return torch.from_numpy(np.stack([sample[column] for sample in samples]))


def write_litdata(data: Data, folder: Path, *, chunk_mb: int) -> None:
    """Write chunks of this size."""
    from litdata.streaming import Cache  # type: ignore[import-not-found]

    folder.mkdir()
    cache = Cache(str(folder), chunk_bytes=chunk_mb * 2**20)
    for k, image in enumerate(data.images):
        cache[k] = torch.from_numpy(np.array(image))
    cache.done()
    cache.merge()


def read_litdata(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Read with litdata's shuffle but PyTorch's loader, because the workers of its own loader take 10 s to end."""
    from litdata import StreamingDataset  # type: ignore[import-not-found]

    # By default it decodes up to 256 images per requested image, which is 10 times slower.
    images = StreamingDataset(str(folder), shuffle=True, batch_decode=0)
    return loaded(images, data, num_workers, collate_fn=torch.stack)


def write_streaming(data: Data, folder: Path) -> None:
    """Write MDS files of the default size."""
    from streaming import MDSWriter  # type: ignore[import-not-found]

    shape = ",".join(str(length) for length in data.shape[1:])
    with MDSWriter(out=str(folder), columns={"image": f"ndarray:{data.dtype}:{shape}"}) as writer:
        for image in data.images:
            writer.write({"image": image})


def read_streaming(data: Data, folder: Path, num_workers: int) -> Epochs:
    """Read with the shuffle py1e and one canonical node, so that no image is repeated as padding."""
    from streaming import StreamingDataset  # type: ignore[import-not-found]

    before, tempfile.tempdir = tempfile.tempdir, str(data.folder)
    try:  # It leaves lock files in the folder for temporary files.
        images = StreamingDataset(
            local=str(folder), shuffle=True, shuffle_algo="py1e", num_canonical_nodes=1, batch_size=data.batch_size
        )
    finally:
        tempfile.tempdir = before
    return loaded(images, data, num_workers, collate_fn=partial(stacked, column="image"))


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
