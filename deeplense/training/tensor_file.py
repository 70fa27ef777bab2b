"""A safetensors file as one block of memory, so that it is filled, hashed, written and read in one go."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

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
BLOCK = 1 << 22
SMALL = 1 << 16


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """What stands in the file before the bytes of the tensors: their places, those of larger elements first, so that
    all are aligned. Raises ValueError for a dtype that the format does not know."""
    entries, begin = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name} is of {tensor.dtype}, which safetensors does not know; save it as another dtype.")
        end = begin + tensor.nbytes
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file of these tensors."""
    return len(header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def tensors_in(image: Tensor) -> dict[str, Tensor]:
    """The tensors in the bytes of a file, in the same memory."""
    start = 8 + int.from_bytes(bytes(image[:8].numpy()), "little")
    entries = json.loads(bytes(image[8:start].numpy()))
    places = {name: [start + place for place in entry["data_offsets"]] for name, entry in entries.items()}
    return {
        name: image[slice(*places[name])].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


def fill(image: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Make `image`, of `size_of` bytes, the bytes of the file of these tensors. From a GPU they come when it is
    synchronised."""
    start = header(tensors)
    image[: len(start)] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
    for name, place in tensors_in(image).items():
        place.copy_(tensors[name], non_blocking=True)


def read(path: Path) -> tuple[Tensor, str]:
    """The bytes of a file and their checksum, in one pass."""
    image = torch.empty(path.stat().st_size, dtype=torch.uint8)
    rest, digest = image.numpy().data, xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(rest[:BLOCK]):
            digest.update(rest[:count])
            rest = rest[count:]
    return image, digest.hexdigest()


def released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, the small ones in memory of their own, so that they do not keep a whole file there."""
    return {name: tensor.clone() if tensor.nbytes <= SMALL else tensor for name, tensor in tensors.items()}
