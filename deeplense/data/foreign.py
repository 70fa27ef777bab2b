"""Reading files of other programs without trusting them: .npy and .npz files, pickled index files."""

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deeplense.data import pickles
from deeplense.data.room import available_memory, control_group_rooms

LONGEST_HEADER = 2000
"""Bytes of the header of a .npy file, which numpy parses as Python's literals; that of an image has 118."""
MOST_NUMBERS, BLOCK = 2**62, 2**22
BEST_DEFLATE = 1032
"""How many bytes can be made of one at most."""


def read_pickle(path: Path) -> Any:
    """The containers and numpy arrays of a pickle file. Raises ValueError, naming the file, where it holds anything
    else."""
    refuse_large(path)
    return unpickle(path, path.read_bytes())


def unpickle(path: Path, content: bytes) -> Any:
    """Unpickle data; `path` is for the error."""
    try:
        return pickles.loads(content)
    except Exception as error:  # a hostile or torn pickle may raise anything
        said = one_line(error) or "is no readable pickle"
        raise ValueError(f"{path}: {said}. Leave it out, or ask for a file of plain arrays.") from error


def one_line(error: Exception) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:300]


def refuse_large(path: Path) -> None:
    """Raise ValueError where a pickle is larger than any is read."""
    if path.stat().st_size > pickles.MOST_BYTES:
        raise ValueError(f"{path}: is a pickle of more than {pickles.MOST_BYTES} bytes; save its arrays as .npy files.")


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file; one of objects is unpickled with care. Raises ValueError, naming the file, where it
    is unreadable."""
    try:
        with path.open("rb") as stream:
            shape, is_fortran, dtype = read_header(stream)
            if not dtype.hasobject:
                return read_numbers(stream, path.stat().st_size, shape=shape, is_fortran=is_fortran, dtype=dtype)
            refuse_large(path)
            content = stream.read()
    except Exception as error:  # a torn header may raise anything
        said = f"is no readable .npy file ({one_line(error)}). Copy it again, or leave it out."
        raise ValueError(f"{path}: {said}") from error
    array = unpickle(path, content)
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError(f"{path}: its pickle does not hold the array of shape {shape} that its header names.")
    return array


def read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape of the array of a .npy file, whether its first axis is the fastest, and its dtype. Raises ValueError
    for a structured one."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is of version {version}, where 1.0 or 2.0 is expected")
    shape, is_fortran, dtype = readers[version](stream, max_header_size=LONGEST_HEADER)
    if dtype.kind not in "biufcSUO" or dtype.itemsize == 0:
        raise ValueError(f"it holds {dtype} where numbers are expected")
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"it has the shape {shape}")
    return shape, is_fortran, dtype


def read_numbers(
    stream: BinaryIO, num_bytes: int, *, shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype
) -> np.ndarray:
    """The numbers after the header of a .npy file of so many bytes. Raises ValueError unless they are as many as the
    header says, before any memory is taken."""
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if expected != num_bytes:
        raise ValueError(f"it has {num_bytes} bytes where its header says {expected}")
    flat = np.empty(math.prod(shape), dtype)
    if flat.size:
        fill(stream, flat.view(np.uint8).data)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def fill(stream: BinaryIO, memory: memoryview) -> None:
    """Read as much as there is room for. Raises ValueError where the stream ends before."""
    for start in range(0, len(memory), BLOCK):
        block = memory[start : start + BLOCK]
        if stream.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise ValueError("it ends before its last number")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file. Raises ValueError, naming it, where it is unreadable, holds pickles, or its arrays
    need more memory than the machine has."""
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bomb(archive, path.stat().st_size)
            return {info.filename.removesuffix(".npy"): read_member(archive, info) for info in archive.infolist()}
    except Exception as error:  # a torn archive may raise anything
        raise ValueError(f"{path}: is no readable .npz file of plain arrays ({one_line(error)}).") from error


def refuse_bomb(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Raise ValueError where the arrays of an archive of so many bytes are said to be larger than it can hold, or than
    the memory that is free."""
    members = archive.infolist()
    if len({info.filename for info in members}) != len(members):
        raise ValueError("two of its parts have the same name")
    for info in members:
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: BEST_DEFLATE}.get(info.compress_type, 0)
        if info.file_size > ratio * info.compress_size:
            raise ValueError(f"its part {info.filename!r} is not compressed as numpy does it")
    if sum(info.compress_size for info in members) > num_bytes:
        raise ValueError("its parts lie over one another")
    needed, free = sum(info.file_size for info in members), min([available_memory(), *control_group_rooms()])
    if needed > free:
        raise ValueError(f"its arrays need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array of an archive."""
    with archive.open(info) as stream:
        shape, is_fortran, dtype = read_header(stream)  # type: ignore[arg-type]
        if dtype.hasobject:
            raise ValueError(f"{info.filename!r} holds a pickle, where plain numbers or strings are expected")
        array = read_numbers(stream, info.file_size, shape=shape, is_fortran=is_fortran, dtype=dtype)  # type: ignore[arg-type]
        stream.read()  # The checksum is compared at the end.
        return array
