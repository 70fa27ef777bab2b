"""Untrusted files of other programs: .npy and .npz files, pickled index files."""

import importlib.util
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deeplense.data import pickles
from deeplense.data.room import available_memory, control_group_rooms

LONGEST_HEADER = 2000
"""Largest number of bytes of the header of a .npy file, which numpy parses as Python literals; that of an image has
118."""
MOST_NUMBERS, BLOCK = 2**62, 2**22
BEST_DEFLATE = 1032
"""Largest compression ratio of deflate."""


def require_package(module: str, package: str, what: str) -> None:
    """Raise ValueError, with the command that installs it, if a package is missing.

    Args:
        module: a module of the package.
        package: its name for pip.
        what: what needs it.

    Example:
        >>> require_package("numpy", "numpy", "arrays")
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{what} need the package {package}, which is not installed: pip install {package}")


def read_pickle(path: Path) -> Any:
    """Return the containers and numpy arrays of a pickle file. Raises ValueError, naming the file, if it holds anything
    else."""
    refuse_large(path)
    return unpickle(path, path.read_bytes())


def unpickle(path: Path, content: bytes) -> Any:
    """Return the containers and numpy arrays in pickled data.

    Args:
        path: its file, for messages.
        content: the data.

    Raises:
        ValueError: it holds anything else.

    Example:
        >>> import pickle
        >>> unpickle(Path("a.pkl"), pickle.dumps({"lenses": ["a.npy"]}))
        {'lenses': ['a.npy']}
    """
    try:
        return pickles.loads(content)
    except Exception as error:  # a hostile or torn pickle may raise anything
        said = one_line(error) or "is not a readable pickle"
        raise ValueError(f"{path}: {said}. Remove it, or save its content as plain arrays.") from error


def one_line(error: Exception) -> str:
    """Return the message of an error in one short line."""
    return " ".join(str(error).split())[:300]


def refuse_large(path: Path) -> None:
    """Raise ValueError if a pickle is larger than the limit."""
    if path.stat().st_size > pickles.MOST_BYTES:
        raise ValueError(
            f"{path}: the pickle is larger than {pickles.MOST_BYTES} bytes; save its arrays as .npy files."
        )


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file; an array of objects is unpickled safely. Raises ValueError, naming the file, if
    it is unreadable."""
    try:
        with path.open("rb") as stream:
            shape, is_fortran, dtype = read_header(stream)
            if not dtype.hasobject:
                return read_numbers(stream, path.stat().st_size, shape=shape, is_fortran=is_fortran, dtype=dtype)
            refuse_large(path)
            content = stream.read()
    except Exception as error:  # a torn header may raise anything
        said = f"not a readable .npy file ({one_line(error)}). Copy it again, or remove it."
        raise ValueError(f"{path}: {said}") from error
    array = unpickle(path, content)
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError(
            f"{path}: its pickle does not contain the array of shape {shape} that its header describes; save it again."
        )
    return array


def read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether the order is Fortran's, and dtype of the array of a .npy file. Raises ValueError for a
    structured dtype."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it has version {version} instead of 1.0 or 2.0")
    shape, is_fortran, dtype = readers[version](stream, max_header_size=LONGEST_HEADER)
    if dtype.kind not in "biufcSUO" or dtype.itemsize == 0:
        raise ValueError(f"it holds {dtype} instead of numbers")
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"it has the invalid shape {shape}")
    return shape, is_fortran, dtype


def read_numbers(
    stream: BinaryIO, num_bytes: int, *, shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype
) -> np.ndarray:
    """Return the array after the header of a .npy file.

    Args:
        stream: the file, after its header.
        num_bytes: size of the file in bytes.
        shape: shape of the array.
        is_fortran: whether the first axis is the fastest.
        dtype: type of the array.

    Raises:
        ValueError: the size of the file differs from that in its header; no memory is allocated then.
    """
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if expected != num_bytes:
        raise ValueError(f"it has {num_bytes} bytes, but its header gives {expected}")
    flat = np.empty(math.prod(shape), dtype)
    if flat.size:
        fill(stream, flat.view(np.uint8).data)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def fill(stream: BinaryIO, memory: memoryview) -> None:
    """Read bytes until a buffer is full.

    Args:
        stream: a binary file.
        memory: the buffer, filled in place.

    Raises:
        ValueError: the stream ends before.
    """
    for start in range(0, len(memory), BLOCK):
        block = memory[start : start + BLOCK]
        if stream.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise ValueError("it ends before its last number")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a .npz file. Raises ValueError, naming it, if it is unreadable, holds pickles, or needs more
    memory than the machine has."""
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bomb(archive, path.stat().st_size)
            return {info.filename.removesuffix(".npy"): read_member(archive, info) for info in archive.infolist()}
    except Exception as error:  # a torn archive may raise anything
        raise ValueError(f"{path}: not a readable .npz file of plain arrays ({one_line(error)}).") from error


def refuse_bomb(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Raise an error if the arrays of an archive are larger than it can hold, or than the free memory.

    Args:
        archive: the archive.
        num_bytes: its size in bytes.

    Raises:
        ValueError: its directory is impossible, or the memory does not suffice.
    """
    members = archive.infolist()
    if len({info.filename for info in members}) != len(members):
        raise ValueError("two of its arrays have the same name")
    for info in members:
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: BEST_DEFLATE}.get(info.compress_type, 0)
        if info.file_size > ratio * info.compress_size:
            raise ValueError(f"its array {info.filename!r} is not compressed as numpy does it")
    if sum(info.compress_size for info in members) > num_bytes:
        raise ValueError("its arrays overlap in the file")
    needed, free = sum(info.file_size for info in members), min([available_memory(), *control_group_rooms()])
    if needed > free:
        raise ValueError(f"its arrays need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return one array of an archive.

    Args:
        archive: the archive.
        info: its entry in the directory.

    Raises:
        ValueError: it is unreadable or holds pickles.
    """
    with archive.open(info) as stream:
        shape, is_fortran, dtype = read_header(stream)  # type: ignore[arg-type]
        if dtype.hasobject:
            raise ValueError(f"{info.filename!r} holds a pickle instead of plain numbers or strings")
        array = read_numbers(stream, info.file_size, shape=shape, is_fortran=is_fortran, dtype=dtype)  # type: ignore[arg-type]
        stream.read()  # The checksum is compared at the end.
        return array
