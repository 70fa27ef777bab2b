"""Images of shards by their number, as they are stored: mapped into memory, read through HDF5 where they are
compressed, or held on a device. n images, C bands, H W pixels."""

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

SECONDS_BETWEEN_LOOKS = 1.0
READ_AHEAD_BYTES = 2**20
ROWS_AT_A_TIME = 256
MOST_FILES, MOST_BUFFERS, MOST_ANNOUNCED = 64, 16, 2**14
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class ShardFile:
    """Where the images of a shard lie; `offset` in bytes is None where they are compressed."""

    path: Path
    num_samples: int
    num_bytes: int
    offset: int | None


class Images(Protocol):
    """Images by their number, counted over all shards."""

    def read(self, rows: np.ndarray) -> Tensor:
        """The images (n, C, H, W), in the order asked for."""
        ...

    def announce(self, rows: np.ndarray) -> None:
        """These images will be asked for soon; the disk may begin."""
        ...


def values(stored: Tensor, *, scale: float, zero: float) -> Tensor:
    """What stored numbers stand for, in float32."""
    floats = stored.float()
    return floats if (scale, zero) == (1.0, 0.0) else floats * scale + zero


def open_images(
    files: Sequence[ShardFile], *, dtype: str, shape: tuple[int, int, int]
) -> "MappedImages | CompressedImages":
    """The images of shards; nothing is read before it is asked for."""
    if any(file.offset is None for file in files):
        return CompressedImages(files, dtype=dtype, shape=shape)
    return MappedImages(files, dtype=dtype, shape=shape)


class Buffers:
    """Memory for what is read, used again once nobody holds what was given before. `pinned` memory is kept by torch."""

    def __init__(self) -> None:
        self.pinned = False
        self.free: list[np.ndarray] = []

    def take(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if self.pinned or num_bytes == 0:
            return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)
        memory = self.pop(num_bytes)
        # The tensor and all its views hold the loan; when the last goes, so does it.
        loan = memory[:]
        weakref.finalize(loan, self.give_back, memory).atexit = False
        return torch.from_numpy(loan).view(dtype).view(shape)

    def pop(self, num_bytes: int) -> np.ndarray:
        """Free memory of this size, or new."""
        with contextlib.suppress(IndexError):
            memory = self.free.pop()
            if memory.nbytes == num_bytes:
                return memory
        return np.empty(num_bytes, dtype=np.int8)

    def give_back(self, memory: np.ndarray) -> None:
        """Keep memory for the next reading."""
        if len(self.free) < MOST_BUFFERS:
            self.free.append(memory)


class MappedImages:
    """Images that lie in one piece in each shard, mapped into this process.

    All mappings are seen as one table whose rows begin at every element, so that a batch out of many shards is gathered
    in one call, with one copy.
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
        """The images (n, C, H, W), in the order asked for. Raises ValueError, naming the shard, where one was changed
        meanwhile."""
        self.open()
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        begin = self.first[shard] + (rows - self.starts[shard]) * self.row
        found = self.buffers.take((len(rows), self.row), self.word)
        gather(self.table, torch.from_numpy(begin), out=found)
        return found.view(getattr(torch, self.dtype)).view(-1, *self.shape)

    def announce(self, rows: np.ndarray) -> None:
        """Let the disk begin to read the surroundings of these images."""
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
        """Map all shards, at first; later look now and then whether they are still what was mapped."""
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
    """Copy rows of a table, in this thread alone: a team of threads that waits for busy cores costs more than it
    gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.index_select(table, 0, rows, out=out)
    finally:
        torch.set_num_threads(before)


def map_file(file: ShardFile) -> mmap.mmap:
    """A whole shard in memory. Raises ValueError where it has not the size that the manifest says."""
    try:
        with file.path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.path} cannot be read ({error}); `deeplense verify` tells more.") from error
    if len(mapped) != file.num_bytes:
        raise ValueError(f"{file.path} has another size than the manifest says; `deeplense verify` tells more.")
    return mapped


def one_table(
    maps: Sequence[mmap.mmap], files: Sequence[ShardFile], *, word: torch.dtype, row: int
) -> tuple[Tensor, np.ndarray]:
    """The memory from the first to the last mapping as overlapping rows of words, and in which the images of each shard
    begin. What lies between the mappings must not be touched."""
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
    """What tells a file from another of its name: inode, size, time of the last change; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def refuse_if_changed(path: Path, before: tuple[int, int, int] | None) -> None:
    """Raise ValueError where a shard is not what it was when it was opened."""
    now = identity(path)
    if now != before:
        what = "was deleted" if now is None else "was changed"
        raise ValueError(
            f"{path} {what} while it was read; put it back, or make it again: `deeplense verify` tells what is wrong."
        )


class CompressedImages:
    """Images in compressed pieces, read by HDF5 with the codecs of hdf5plugin. Handles are opened by each process for
    itself."""

    def __init__(self, files: Sequence[ShardFile], *, dtype: str, shape: tuple[int, int, int]) -> None:
        self.files, self.dtype, self.shape = tuple(files), dtype, shape
        self.starts = np.cumsum([0] + [file.num_samples for file in files])
        self.handles: dict[int, h5py.File] = {}
        self.process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"handles": {}}

    def read(self, rows: np.ndarray) -> Tensor:
        """The images (n, C, H, W), in the order asked for. Raises ValueError, naming the shard, where one is
        damaged."""
        found = np.empty((len(rows), *self.shape), dtype=self.dtype)
        for place in np.argsort(rows, kind="stable"):
            number = int(np.searchsorted(self.starts, rows[place], side="right")) - 1
            try:
                self.dataset(number).read_direct(found, np.s_[int(rows[place] - self.starts[number])], np.s_[place])
            except (OSError, KeyError) as error:
                raise ValueError(
                    f"{self.files[number].path} cannot be read ({error}); `deeplense verify` tells more."
                ) from error
        return torch.from_numpy(found)

    def announce(self, rows: np.ndarray) -> None:
        """Nothing: pieces are small, and HDF5 knows no reading ahead."""

    def dataset(self, number: int) -> h5py.Dataset:
        """The images of a shard."""
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
    """Images of several data sets that are stored in different ways, one after the other, as values in float32. Of each
    data set, scale and zero are given."""

    def __init__(
        self, parts: Sequence["MappedImages | CompressedImages"], scales: Sequence[tuple[float, float]]
    ) -> None:
        self.parts, self.scales = parts, scales
        self.starts = np.cumsum([0] + [part.starts[-1] for part in parts])

    def read(self, rows: np.ndarray) -> Tensor:
        """The images (n, C, H, W), in the order asked for."""
        found = torch.empty((len(rows), *self.parts[0].shape))
        for part, (scale, zero), start, here in zip(
            self.parts, self.scales, self.starts[:-1], self.places(rows), strict=True
        ):
            found[here] = values(part.read(rows[here] - start), scale=scale, zero=zero)
        return found

    def announce(self, rows: np.ndarray) -> None:
        """Let the disk begin to read the surroundings of these images."""
        for part, start, here in zip(self.parts, self.starts[:-1], self.places(rows), strict=True):
            part.announce(rows[here] - start)

    def places(self, rows: np.ndarray) -> list[np.ndarray]:
        """At which places the images of each data set stand."""
        part = np.searchsorted(self.starts, rows, side="right") - 1
        return [np.flatnonzero(part == number) for number in range(len(self.parts))]


class HeldImages:
    """Images that are held on a device, and gathered there."""

    def __init__(self, images: Images, rows: np.ndarray, *, num_images: int, device: torch.device) -> None:
        self.place = np.full(num_images, -1)
        self.place[rows] = np.arange(len(rows))
        first = images.read(rows[:1])
        self.held = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype, device=device)
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            some = rows[start : start + ROWS_AT_A_TIME]
            self.held[start : start + len(some)] = images.read(some)

    def read(self, rows: np.ndarray) -> Tensor:
        """The images (n, C, H, W), on the device. Raises IndexError for one that is not held."""
        return self.held.index_select(0, torch.from_numpy(self.place[rows]).to(self.held.device))

    def announce(self, rows: np.ndarray) -> None:
        """Nothing: all is there."""
