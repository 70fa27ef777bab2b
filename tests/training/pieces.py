"""Checkpoints of which each rank writes its pieces, as the format knows them; the jobs write whole tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from deeplense.files import read_json, write_json
from deeplense.training import tensor_file
from deeplense.training.checkpoint import Snapshot, State, write_files, write_manifest
from deeplense.training.trees import flatten


def file_name(name: str, rank: int) -> str:
    """The name, without its ending, of the files with a rank's pieces of a state."""
    return f"{name}.rank-{rank:05d}"


def pieces_of(states: Mapping[str, State], rank: int) -> Snapshot:
    """What a rank writes: the first rank what is whole, each its pieces of what is sharded, with their places."""
    parts: dict[str, tuple[Any, dict[str, Tensor]]] = {}
    for name, state in states.items():
        tensors: dict[str, Tensor] = {}
        tree = flatten(state, tensors)
        over_ranks = {path: tensor for path, tensor in tensors.items() if isinstance(tensor, DTensor)}
        if rank == 0:
            parts[name] = tree, {path: tensor for path, tensor in tensors.items() if path not in over_ranks}
        if over_ranks:
            owned = {path: tensor for path, tensor in over_ranks.items() if is_first_copy(tensor)}
            places = {
                path: {"shape": list(tensor.shape), "offset": list(tensor.__create_chunk_list__()[0].offsets)}
                for path, tensor in owned.items()
            }
            parts[file_name(name, rank)] = places, {path: tensor.to_local() for path, tensor in owned.items()}
    images = {name: tensor_file.make_image(tensors) for name, (_, tensors) in parts.items()}
    for name, (_, tensors) in parts.items():
        tensor_file.fill(images[name], tensors)
    trees = {name: tree for name, (tree, _) in parts.items()}
    return Snapshot("2026-01-01T00:00:00+00:00", trees, {name: image.content for name, image in images.items()})


def is_first_copy(tensor: DTensor) -> bool:
    """Whether no rank before this one has the same piece."""
    coordinate = tensor.device_mesh.get_coordinate() or []
    return not any(c for c, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate())


def write_together(path: Path, states: Mapping[str, State], rank: int, num_ranks: int) -> None:
    """Each rank writes its files, then the first one the manifest of all."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path.parent / f"{rank}.json", write_files(path, pieces_of(states, rank)))
    dist.barrier()
    if rank == 0:
        lists = [path.parent / f"{k}.json" for k in range(num_ranks)]
        write_manifest(path, {name: found for each in lists for name, found in read_json(each).items()}, time="")
        for each in lists:
            each.unlink()
