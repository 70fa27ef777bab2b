"""Tensors that were saved in pieces: a rank's files hold its pieces and their places, from which the whole is read.
The jobs write whole tensors; a checkpoint with pieces is read all the same.

    NAME.rank-00003.safetensors   NAME.rank-00003.json: {PATH: {"shape": of the whole, "offset": of the piece}, ...}
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from deeplense.training.tensor_file import is_sizes

RANK = ".rank-"


def is_piece(file: str, *, of: str | None = None) -> bool:
    """Whether a file has pieces, of this state if one is given."""
    name, mark, _ = file.rpartition(RANK)
    return bool(mark) and of in (None, name)


def put_together(parts: Iterable[tuple[dict[str, Any], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The whole tensors, from the places and pieces of all ranks. Raises ValueError where pieces are missing, or their
    places are none."""
    whole: dict[str, Tensor] = {}
    missing: dict[str, int] = {}
    filled: dict[str, list[tuple[slice, ...]]] = {}
    for places, tensors in parts:
        for path, piece in tensors.items():
            shape, offset = place_of(path, piece, places)
            if path not in whole:
                whole[path] = empty(path, shape, piece.dtype)
                missing[path], filled[path] = whole[path].numel(), []
            area = tuple(slice(begin, begin + size) for begin, size in zip(offset, piece.shape, strict=True))
            if (list(whole[path].shape), whole[path].dtype) != (shape, piece.dtype) or overlaps(area, filled[path]):
                raise ValueError(f"the pieces of {path} do not fit together")
            whole[path][area] = piece
            filled[path].append(area)
            missing[path] -= piece.numel()
    if any(missing.values()):
        raise ValueError(f"pieces of {', '.join(path for path, count in missing.items() if count)} are missing")
    return whole


def place_of(path: str, piece: Tensor, places: Any) -> tuple[list[int], list[int]]:
    """The shape of the whole tensor and where a piece of it begins. Raises ValueError where it cannot be there."""
    place = places.get(path) if isinstance(places, dict) else None
    shape, offset = (place.get(key) if isinstance(place, dict) else None for key in ("shape", "offset"))
    if not (is_sizes(shape) and is_sizes(offset) and len(shape) == len(offset) == piece.ndim) or any(
        begin + size > whole for begin, size, whole in zip(offset, piece.shape, shape, strict=True)
    ):
        raise ValueError(f"the place of a piece of {path} is not in the whole")
    return shape, offset


def empty(path: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor. Raises ValueError where it is more than there is."""
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        raise ValueError(f"{path} is {shape}, more than the memory") from error


def overlaps(area: tuple[slice, ...], others: Iterable[tuple[slice, ...]]) -> bool:
    """Whether an area has a place with one of the others in common."""
    return any(all(a.start < b.stop and b.start < a.stop for a, b in zip(area, other, strict=True)) for other in others)
