"""A safetensors file as one block of memory, so that it is filled, hashed, written and read in one pass."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
import xxhash
from torch import Tensor

from deeplense.files import BLOCK

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT, PAGE = 64, 4096
SMALL = 1 << 16
LARGEST_HEADER = 100_000_000
"""Largest number of bytes of a header; the safetensors library has the same limit."""


@dataclass(frozen=True)
class Image:
    """The bytes of a file, and its tensors, which are views of them.

    Args:
        content: bytes of the file, (N,) uint8.
        tensors: views of `content` by name.
    """

    content: Tensor
    tensors: Mapping[str, Tensor]


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the start of the file, with the positions of the tensors: sorted by element size and then by size, largest
    first, so that all are aligned. Raises ValueError for a dtype that the format does not have."""
    entries, begin = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, -item[1].nbytes)):
        if tensor.dtype not in NAMES:
            raise ValueError(
                f"{name} has the dtype {tensor.dtype}, which safetensors does not support; save it as another dtype."
            )
        end = begin + tensor.nbytes
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def make_image(tensors: Mapping[str, Tensor]) -> Image:
    """Return an image for such tensors, without their values; in pinned memory if one of them is on a GPU."""
    start = header(tensors)
    size = len(start) + sum(tensor.nbytes for tensor in tensors.values())
    content = torch.empty(size, dtype=torch.uint8, pin_memory=any(tensor.is_cuda for tensor in tensors.values()))
    # The system gives memory when it is touched.
    content[::PAGE].fill_(0)
    content[: len(start)] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
    return Image(content, tensors_in(content))


def fits(image: Image, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names, dtypes and shapes of those in an image.

    Args:
        image: the image.
        tensors: tensors by name.

    Example:
        >>> image = make_image({"a": torch.zeros(2)})
        >>> fits(image, {"a": torch.ones(2)}), fits(image, {"a": torch.ones(3)})
        (True, False)
    """
    return image.tensors.keys() == tensors.keys() and all(
        place.dtype == tensors[name].dtype and place.shape == tensors[name].shape
        for name, place in image.tensors.items()
    )


def fill(image: Image, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into an image. Copies from a GPU are complete after a synchronisation.

    Args:
        image: the image, changed in place.
        tensors: tensors by name, which fit it.

    Example:
        >>> image = make_image({"a": torch.zeros(2)})
        >>> fill(image, {"a": torch.ones(2)})
        >>> tensors_in(image.content)
        {'a': tensor([1., 1.])}
    """
    for name, place in image.tensors.items():
        place.copy_(tensors[name], non_blocking=True)


def tensors_in(content: Tensor) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a file, as views. Raises ValueError if the bytes are not a valid file."""
    start, entries = read_header(content)
    tensors, end = {}, start
    for name, (dtype, shape, places) in sorted(entries.items(), key=lambda item: item[1][2]):
        begin, after = (start + place for place in places)
        size = math.prod(shape) * dtype.itemsize
        if begin != end or after - begin != size or after > len(content) or begin % dtype.itemsize:
            raise ValueError(f"the position or size of {name} does not match the header")
        tensors[name] = content[begin:after].view(dtype).reshape(shape)
        end = after
    if end != len(content):
        raise ValueError(f"{len(content) - end} bytes do not belong to any tensor")
    return {name: tensors[name] for name in entries}


def read_header(content: Tensor) -> tuple[int, dict[str, tuple[torch.dtype, list[int], list[int]]]]:
    """Return the position of the tensors in the bytes of a file, and dtype, shape, begin and end of each. Raises
    ValueError if the header is invalid."""
    start = 8 + int.from_bytes(bytes(content[:8].numpy()), "little")
    if not 8 < start <= min(len(content), LARGEST_HEADER):
        raise ValueError("its header is longer than the file, or too long")
    try:
        entries = json.loads(bytes(content[8:start].numpy()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise ValueError("its header lists no tensors")
    entries.pop("__metadata__", None)
    return start, {name: read_entry(name, entry) for name, entry in entries.items()}


def read_entry(name: str, entry: Any) -> tuple[torch.dtype, list[int], list[int]]:
    """Return dtype, shape, and begin and end of a tensor.

    Args:
        name: name of the tensor.
        entry: its entry in the header.

    Raises:
        ValueError: the entry is invalid.
    """
    values = entry if isinstance(entry, dict) else {}
    dtype, shape, places = (values.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and dtype in DTYPES and is_sizes(shape) and is_sizes(places) and len(places) == 2):
        raise ValueError(f"its header has an invalid entry for {name}: {entry!r:.80}")
    return DTYPES[dtype], shape, places


def is_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of non-negative integers."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 62 for number in value)


def read(path: Path) -> tuple[Tensor, str]:
    """Return the bytes of a file and their checksum, in one pass.

    Raises:
        ValueError: the path is not a file, or the file is larger than the memory.
    """
    if not path.is_file():
        path.stat()
        raise ValueError(f"{path.name} is not a file")
    try:
        image = torch.empty(path.stat().st_size, dtype=torch.uint8)
    except RuntimeError as error:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes and does not fit in memory") from error
    rest, digest = image.numpy().data, xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(rest[:BLOCK]):
            digest.update(rest[:count])
            rest = rest[count:]
    return image, digest.hexdigest()


def released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors, the small ones in memory of their own, so that they do not keep a whole
    file in memory."""
    return {name: tensor.clone() if tensor.nbytes <= SMALL else tensor for name, tensor in tensors.items()}
