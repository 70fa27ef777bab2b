"""Reading files of other programs without trusting them: .npy files with pickles inside, pickled index files."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
HARMLESS = {(module, name) for module in NUMPY_MODULES for name in ("_reconstruct", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class DataUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers; anything that would call other code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise ValueError(
                f"holds a pickle that wants to run {module}.{name}, which data has no need of; do not open it."
            )
        return super().find_class(module, name)


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
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
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
