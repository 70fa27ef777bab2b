"""Images of shards by their number, as stored: mapped into memory, read through HDF5 if they are compressed, or held on
a device. Shapes: n images, C bands, H x W pixels."""

import contextlib
import ctypes
import importlib
import mmap
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, cast

import h5py
import numpy as np
import torch
from torch import Tensor

from deeplense.constants import sent

SECONDS_BETWEEN_LOOKS = 1.0
READ_AHEAD_BYTES = 2**20
ROWS_AT_A_TIME = 256
MOST_FILES, MOST_BUFFERS, MOST_ANNOUNCED = 64, 16, 2**14
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class ShardFile:
    """The place of the images of a shard.

    Args:
        path: file of the shard.
        num_samples: number of its images.
        num_bytes: its size in bytes.
        offset: position of the images in bytes; None if they are compressed.
    """

    path: Path
    num_samples: int
    num_bytes: int
    offset: int | None


class Images(Protocol):
    """Images by their number, counted over all shards."""

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the images (n, C, H, W) with these numbers, in this order."""
        ...

    def announce(self, rows: np.ndarray) -> None:
        """Announce that these images will be read soon, so that the disk may begin."""
        ...


def values(stored: Tensor, *, scale: float, zero: float) -> Tensor:
    """Return the values of stored numbers in float32: stored * scale + zero.

    Args:
        stored: stored numbers, any shape.
        scale: factor.
        zero: summand.

    Example:
        >>> values(torch.tensor([1, 2], dtype=torch.int16), scale=0.5, zero=1.0)
        tensor([1.5000, 2.0000])
    """
    floats = stored.float()
    return floats if (scale, zero) == (1.0, 0.0) else floats * scale + zero


def open_images(
    files: Sequence[ShardFile], *, dtype: str, shape: tuple[int, int, int]
) -> "MappedImages | CompressedImages":
    """Return the images of shards; nothing is read yet.

    Args:
        files: the shards.
        dtype: stored type.
        shape: (C, H, W).
    """
    if any(file.offset is None for file in files):
        return CompressedImages(files, dtype=dtype, shape=shape)
    return MappedImages(files, dtype=dtype, shape=shape)


class Buffers:
    """Memory for images, reused once nobody holds the earlier content. `pinned` memory is kept by torch."""

    def __init__(self) -> None:
        self.pinned = False
        self.free: list[np.ndarray] = []

    def take(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor.

        Args:
            shape: its shape.
            dtype: its type.
        """
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if self.pinned or num_bytes == 0:
            return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)
        memory = self.pop(num_bytes)
        # The tensor and all its views hold the loan; when the last goes, so does it.
        loan = memory[:]
        weakref.finalize(loan, self.give_back, memory).atexit = False
        return torch.from_numpy(loan).view(dtype).view(shape)

    def pop(self, num_bytes: int) -> np.ndarray:
        """Return free memory of this size, or new memory."""
        with contextlib.suppress(IndexError):
            memory = self.free.pop()
            if memory.nbytes == num_bytes:
                return memory
        return np.empty(num_bytes, dtype=np.int8)

    def give_back(self, memory: np.ndarray) -> None:
        """Keep memory for the next read."""
        if len(self.free) < MOST_BUFFERS:
            self.free.append(memory)


class MappedImages:
    """Images that are stored contiguously in each shard, mapped into this process.

    All mappings are treated as one table whose rows begin at every element, so that a batch from many shards is
    gathered in one call, with one copy.

    Args:
        files: the shards.
        dtype: stored type.
        shape: (C, H, W).
    """

    def __init__(self, files: Sequence[ShardFile], *, dtype: str, shape: tuple[int, int, int]) -> None:
        self.files, self.dtype, self.shape = tuple(files), dtype, shape
        self.starts = np.cumsum([0] + [file.num_samples for file in files])
        self.row = int(np.prod(shape))
        self.word = WORDS[np.dtype(dtype).itemsize]
        self.buffers, self.lock, self.announcing = Buffers(), Lock(), Lock()
        self.maps: list[mmap.mmap] = []
        self.announced: dict[tuple[int, int], None] = {}
        self.last_look = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "dtype": self.dtype, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"], dtype=state["dtype"], shape=state["shape"])

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the images (n, C, H, W) with these numbers, in this order. Raises ValueError, naming the shard, if one
        was changed meanwhile."""
        self.open()
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        begin = self.first[shard] + (rows - self.starts[shard]) * self.row
        found = self.buffers.take((len(rows), self.row), self.word)
        gather(self.table, torch.from_numpy(begin), out=found)
        return found.view(getattr(torch, self.dtype)).view(-1, *self.shape)

    def announce(self, rows: np.ndarray) -> None:
        """Let the disk begin to read these images and their surroundings."""
        self.open()
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        row_bytes = self.row * np.dtype(self.dtype).itemsize
        places = (rows - self.starts[shard]) * row_bytes + np.array([cast(int, f.offset) for f in self.files])[shard]
        pieces = sorted(set(zip(shard.tolist(), (places // READ_AHEAD_BYTES).tolist(), strict=True)))
        with self.announcing:
            for number, piece in [pair for pair in pieces if pair not in self.announced]:
                start = piece * READ_AHEAD_BYTES
                length = min(READ_AHEAD_BYTES + row_bytes, self.files[number].num_bytes - start)
                self.maps[number].madvise(mmap.MADV_WILLNEED, start, length)
                self.announced[number, piece] = None
            while len(self.announced) > MOST_ANNOUNCED:
                del self.announced[next(iter(self.announced))]

    def open(self) -> None:
        """Map all shards, the first time; later check now and then that they are unchanged."""
        with self.lock:
            now = time.monotonic()
            if not self.maps:
                self.seen = [identity(file.path) for file in self.files]
                self.maps = [map_file(file) for file in self.files]
                self.table, self.first = one_table(self.maps, self.files, word=self.word, row=self.row)
            elif now - self.last_look > SECONDS_BETWEEN_LOOKS:
                for file, before in zip(self.files, self.seen, strict=True):
                    refuse_if_changed(file.path, before)
            self.last_look = now


def gather(table: Tensor, rows: Tensor, *, out: Tensor) -> None:
    """Copy rows of a table, in this thread only: a team of threads that waits for busy cores costs more than it gains.

    Args:
        table: (N, D).
        rows: numbers of the rows, (n,).
        out: result, (n, D).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.index_select(table, 0, rows, out=out)
    finally:
        torch.set_num_threads(before)


def map_file(file: ShardFile) -> mmap.mmap:
    """Map a whole shard into memory. Raises ValueError if its size differs from that in the manifest."""
    try:
        with file.path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.path} cannot be read ({error}); run `deeplense verify` for details.") from error
    if len(mapped) != file.num_bytes:
        raise ValueError(f"the size of {file.path} differs from its manifest; run `deeplense verify` for details.")
    return mapped


def one_table(
    maps: Sequence[mmap.mmap], files: Sequence[ShardFile], *, word: torch.dtype, row: int
) -> tuple[Tensor, np.ndarray]:
    """Return the memory from the first to the last mapping as overlapping rows of words, and the row at which the
    images of each shard begin. The memory between the mappings must not be touched.

    Args:
        maps: mapped shards.
        files: the shards.
        word: integer type with the size of a stored number.
        row: numbers per image.
    """
    begins = np.array(
        [
            np.frombuffer(mapped, dtype=np.uint8).ctypes.data + cast(int, file.offset)
            for mapped, file in zip(maps, files, strict=True)
        ]
    )
    ends = begins + np.array([file.num_samples for file in files]) * row * word.itemsize
    base = int(begins.min())
    span = (ctypes.c_char * (int(ends.max()) - base)).from_address(base)
    words = torch.frombuffer(span, dtype=word)
    return words.as_strided((len(words) - row + 1, row), (1, 1)), (begins - base) // word.itemsize


def identity(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and modification time of a file, which identify it; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def refuse_if_changed(path: Path, before: tuple[int, int, int] | None) -> None:
    """Raise an error if a shard was changed after it was opened.

    Args:
        path: file of the shard.
        before: its identity when it was opened.

    Raises:
        ValueError: the shard was changed or deleted.
    """
    now = identity(path)
    if now != before:
        what = "was deleted" if now is None else "was changed"
        raise ValueError(
            f"{path} {what} while it was being read; restore it or make it again; `deeplense verify` reports "
            "the problem."
        )


class CompressedImages:
    """Images in compressed chunks, read by HDF5 with the codecs of hdf5plugin. Each process opens the files by itself.

    Args:
        files: the shards.
        dtype: stored type.
        shape: (C, H, W).
    """

    def __init__(self, files: Sequence[ShardFile], *, dtype: str, shape: tuple[int, int, int]) -> None:
        self.files, self.dtype, self.shape = tuple(files), dtype, shape
        self.starts = np.cumsum([0] + [file.num_samples for file in files])
        self.handles: dict[int, h5py.File] = {}
        self.process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"handles": {}}

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the images (n, C, H, W) with these numbers, in this order. Raises ValueError, naming the shard, if one
        is damaged."""
        found = np.empty((len(rows), *self.shape), dtype=self.dtype)
        for place in np.argsort(rows, kind="stable"):
            number = int(np.searchsorted(self.starts, rows[place], side="right")) - 1
            try:
                self.dataset(number).read_direct(found, np.s_[int(rows[place] - self.starts[number])], np.s_[place])
            except (OSError, KeyError) as error:
                raise ValueError(
                    f"{self.files[number].path} cannot be read ({error}); run `deeplense verify` for details."
                ) from error
        return torch.from_numpy(found)

    def announce(self, rows: np.ndarray) -> None:
        """Do nothing: chunks are small, and HDF5 has no read-ahead."""

    def dataset(self, number: int) -> h5py.Dataset:
        """Return the images of a shard."""
        if self.process != os.getpid():
            self.handles, self.process = {}, os.getpid()
        if number not in self.handles:
            while len(self.handles) >= MOST_FILES:
                self.handles.pop(next(iter(self.handles))).close()
            with contextlib.suppress(ImportError):
                importlib.import_module("hdf5plugin")
            self.handles[number] = h5py.File(self.files[number].path, locking=False)
        return cast(h5py.Dataset, self.handles[number]["image"])


class JoinedImages:
    """Images of several data sets that are stored in different ways, one after the other, as float32 values.

    Args:
        parts: images of each data set.
        scales: scale and zero of each data set.
    """

    def __init__(
        self, parts: Sequence["MappedImages | CompressedImages"], scales: Sequence[tuple[float, float]]
    ) -> None:
        self.parts, self.scales = parts, scales
        self.starts = np.cumsum([0] + [part.starts[-1] for part in parts])

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the images (n, C, H, W) with these numbers, in this order."""
        found = torch.empty((len(rows), *self.parts[0].shape))
        for part, (scale, zero), start, here in zip(
            self.parts, self.scales, self.starts[:-1], self.places(rows), strict=True
        ):
            found[here] = values(part.read(rows[here] - start), scale=scale, zero=zero)
        return found

    def announce(self, rows: np.ndarray) -> None:
        """Let the disk begin to read these images and their surroundings."""
        for part, start, here in zip(self.parts, self.starts[:-1], self.places(rows), strict=True):
            part.announce(rows[here] - start)

    def places(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the positions of the images of each data set in `rows`."""
        part = np.searchsorted(self.starts, rows, side="right") - 1
        return [np.flatnonzero(part == number) for number in range(len(self.parts))]


class HeldImages:
    """Images that are held on a device, and gathered there.

    Args:
        images: images to copy from.
        rows: numbers of the images to hold, (n,).
        num_images: number of all images.
        device: device with enough free memory.
    """

    def __init__(self, images: Images, rows: np.ndarray, *, num_images: int, device: torch.device) -> None:
        self.place = np.full(num_images, -1)
        self.place[rows] = np.arange(len(rows))
        first = images.read(rows[:1])
        self.held = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype, device=device)
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            some = rows[start : start + ROWS_AT_A_TIME]
            self.held[start : start + len(some)] = images.read(some)

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the images (n, C, H, W) on the device. Raises IndexError for an image that is not held."""
        return self.held.index_select(0, sent(torch.from_numpy(self.place[rows]), self.held.device))

    def announce(self, rows: np.ndarray) -> None:
        """Do nothing: all images are on the device."""
