"""Reading files of other programs without trusting them: .npy files with pickles inside, pickled index files."""

import codecs
import io
import math
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np


class PickledDtype:
    """Stands for a dtype while a pickle is read; numpy's own takes any state, and crashes on some."""

    def __init__(self, name: str, *_: object) -> None:
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray):
    """An array that is unpickled only where its data are as many as its shape says; numpy would read past their end."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        version, shape, pickled, fortran, data = state
        dtype = pickled.dtype
        expected = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        kind = list if dtype.hasobject else bytes
        if not isinstance(data, kind) or min(shape, default=0) < 0 or len(data) != expected:
            raise ValueError("its pickle does not hold as many values as the shape of an array says.")
        super().__setstate__((version, shape, dtype, fortran, data))  # type: ignore[misc]


def reconstruct(*_: object) -> PickledArray:
    """An empty array, to be filled by its state."""
    return PickledArray((0,), dtype=np.int8)


def scalar(pickled: PickledDtype, data: bytes) -> Any:
    """A number or string of numpy."""
    return np.frombuffer(data, pickled.dtype, count=1)[0]


def from_buffer(data: bytes, pickled: PickledDtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """An array of pickle protocol 5."""
    return np.frombuffer(data, pickled.dtype).reshape(shape, order=order)


HARMLESS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): codecs.encode,
}
for core in ("numpy.core", "numpy._core"):
    HARMLESS[f"{core}.multiarray", "_reconstruct"] = reconstruct
    HARMLESS[f"{core}.multiarray", "scalar"] = scalar
    HARMLESS[f"{core}.numeric", "_frombuffer"] = from_buffer


class DataUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers; anything that would call other code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise ValueError(
                f"holds a pickle that wants to run {module}.{name}, which data has no need of; do not open it."
            )
        return HARMLESS[module, name]


def read_pickle(path: Path) -> Any:
    """The containers and numpy arrays of a pickle file. Raises ValueError, naming the file, where it holds anything
    else."""
    return unpickle(path, path.read_bytes())


def unpickle(path: Path, content: bytes) -> Any:
    """Unpickle data; `path` is for the error."""
    try:
        return DataUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a hostile or torn pickle may raise anything
        raise ValueError(f"{path}: {error or 'is no readable pickle'}") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file; one of objects is unpickled with care. Raises ValueError, naming the file, where it
    is unreadable."""
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        raise ValueError("it is an archive of arrays")
    except Exception as error:  # a torn header may raise anything
        if "Object arrays" not in str(error):
            raise ValueError(f"{path}: is no readable .npy file ({error}). Copy it again, or leave it out.") from error
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read_header(stream)
        array = unpickle(path, stream.read())
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError(f"{path}: its pickle does not hold the array of shape {shape} that its header names.")
    return array
