"""Tensors that are sharded over ranks: a rank's files hold its pieces and their places, any number of ranks reads the
whole.

    NAME.rank-00003.safetensors   NAME.rank-00003.json: {PATH: {"shape": of the whole, "offset": of the piece}, ...}
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

RANK = ".rank-"


def file_name(name: str, rank: int) -> str:
    """The name, without its ending, of the files with a rank's pieces of a state."""
    return f"{name}{RANK}{rank:05d}"


def list_name(rank: int) -> str:
    """The file in which a rank lists those that it wrote, until all have."""
    return f"files{RANK}{rank:05d}"


def is_piece(file: str, *, of: str | None = None) -> bool:
    """Whether a file has pieces, of this state if one is given."""
    name, mark, _ = file.rpartition(RANK)
    return bool(mark) and of in (None, name)


def of_this_rank(sharded: Mapping[str, DTensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The places of this rank's pieces and the pieces; of copies that several ranks have, the first one's counts."""
    owned = {path: tensor for path, tensor in sharded.items() if is_first_copy(tensor)}
    places = {
        path: {"shape": list(tensor.shape), "offset": list(tensor.__create_chunk_list__()[0].offsets)}
        for path, tensor in owned.items()
    }
    return places, {path: tensor.to_local() for path, tensor in owned.items()}


def is_first_copy(tensor: DTensor) -> bool:
    """Whether no rank before this one has the same piece."""
    coordinate = tensor.device_mesh.get_coordinate() or []
    return not any(c for c, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate())


def put_together(parts: Iterable[tuple[dict[str, Any], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The whole tensors, from the places and pieces of all ranks. Raises ValueError where pieces are missing."""
    whole: dict[str, Tensor] = {}
    missing: dict[str, int] = {}
    for places, tensors in parts:
        for path, piece in tensors.items():
            shape, offset = places[path]["shape"], places[path]["offset"]
            if path not in whole:
                whole[path] = torch.empty(shape, dtype=piece.dtype)
                missing[path] = whole[path].numel()
            area = tuple(slice(begin, begin + size) for begin, size in zip(offset, piece.shape, strict=True))
            whole[path][area] = piece
            missing[path] -= piece.numel()
    if any(missing.values()):
        raise ValueError(f"pieces of {', '.join(path for path, count in missing.items() if count)} are missing")
    return whole
