"""Tensors that were saved in pieces: a rank's files hold its pieces and their positions, from which the whole is read.
The jobs write whole tensors; checkpoints with pieces can still be read.

NAME.rank-00003.safetensors   NAME.rank-00003.json: {PATH: {"shape": of the whole, "offset": of the piece}, ...}
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from deeplense.training.tensor_file import is_sizes

RANK = ".rank-"


def is_piece(file: str, *, of: str | None = None) -> bool:
    """Whether a file has pieces.

    Args:
        file: name of the file, with or without ending.
        of: name of the state; None for any.

    Example:
        >>> is_piece("model.rank-00003.json", of="model"), is_piece("model.json")
        (True, False)
    """
    name, mark, _ = file.rpartition(RANK)
    return bool(mark) and of in (None, name)


def put_together(parts: Iterable[tuple[dict[str, Any], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the whole tensors, from the positions and pieces of all ranks.

    Raises:
        ValueError: pieces are missing, overlap, or have invalid positions.

    Example:
        >>> places = [{"w": {"shape": [4], "offset": [offset]}} for offset in (0, 2)]
        >>> put_together((place, {"w": torch.ones(2)}) for place in places)
        {'w': tensor([1., 1., 1., 1.])}
    """
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
    """Return the shape of the whole tensor and the offset of a piece.

    Args:
        path: name of the tensor.
        piece: the piece.
        places: positions of the pieces by name.

    Raises:
        ValueError: the position is missing, or outside the whole.
    """
    place = places.get(path) if isinstance(places, dict) else None
    shape, offset = (place.get(key) if isinstance(place, dict) else None for key in ("shape", "offset"))
    if not (is_sizes(shape) and is_sizes(offset) and len(shape) == len(offset) == piece.ndim) or any(
        begin + size > whole for begin, size, whole in zip(offset, piece.shape, shape, strict=True)
    ):
        raise ValueError(f"a piece of {path} lies outside of the tensor")
    return shape, offset


def empty(path: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Allocate memory for a tensor.

    Args:
        path: name of the tensor, for messages.
        shape: its shape.
        dtype: its type.

    Raises:
        ValueError: there is not enough memory.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        raise ValueError(f"{path} has shape {shape} and does not fit in memory") from error


def overlaps(area: tuple[slice, ...], others: Iterable[tuple[slice, ...]]) -> bool:
    """Whether an area overlaps one of the others.

    Args:
        area: a slice per dimension.
        others: other areas of the same tensor.

    Example:
        >>> overlaps((slice(0, 2),), [(slice(2, 4),)])
        False
    """
    return any(all(a.start < b.stop and b.start < a.stop for a, b in zip(area, other, strict=True)) for other in others)
