"""Sharded states: written in pieces by some ranks, read by any number of them, all bits equal."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from group import on_ranks
from pieces import file_name, write_together
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from deeplense.files import read_json, remove
from deeplense.training.checkpoint import damage, link, load, step_folder, write_manifest

FULL = StateDictOptions(full_state_dict=True)


def make(num_ranks: int, *, seed: int, copies: int = 1) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sharded model whose layers do not divide evenly, with buffers and a number, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 5, bias=False))
    shape = (copies, num_ranks // copies) if copies > 1 else (num_ranks,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "pieces")[-len(shape) :])
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One update."""
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(rows).square().mean().backward()
    optimizer.step()


def states_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What is saved."""
    return {
        "model": dict(get_model_state_dict(model)),
        "optimizer": dict(get_optimizer_state_dict(model, optimizer)),
        "progress": {"step": 3},
    }


def whole(value: Any) -> Any:
    """States with all that is sharded put together by PyTorch."""
    if isinstance(value, DTensor):
        return value.full_tensor().clone()
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item) for item in value]
    return value.clone() if isinstance(value, Tensor) else value


def save_in_pieces(path: Path, expected: Path, rank: int, num_ranks: int, *, copies: int = 1) -> None:
    """Save in pieces, and what PyTorch puts together beside it."""
    model, optimizer = make(num_ranks, seed=0, copies=copies)
    for step in range(3):
        update(model, optimizer, step)
    states = states_of(model, optimizer)
    together = whole(states)
    write_together(path, states, rank, num_ranks)
    if rank == 0:
        torch.save(together, expected)


def read_in_pieces(path: Path, expected: Path, rank: int, num_ranks: int) -> None:
    """Read into a sharded model that began otherwise, and compare what PyTorch puts together."""
    model, optimizer = make(num_ranks, seed=1)
    saved = load(path)
    set_model_state_dict(model, dict(saved["model"]), options=FULL)
    set_optimizer_state_dict(model, optimizer, dict(saved["optimizer"]), options=FULL)
    found = whole(states_of(model, optimizer))
    wanted = torch.load(expected)
    assert num_ranks == 1 or any(isinstance(t, DTensor) for t in model.state_dict().values())
    for name in ("model", "optimizer"):
        assert same(found[name], wanted[name]), name


def same(first: Any, second: Any) -> bool:
    """Whether all is equal to the bit, tuples being lists."""
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint that two ranks wrote, and a file with what PyTorch put together."""
    folder = tmp_path_factory.mktemp("pieces")
    path, expected = step_folder(folder / "checkpoints", 3), folder / "expected"
    on_ranks(2, partial(save_in_pieces, path, expected))
    return path, expected


def test_each_rank_writes_its_pieces_and_nobody_the_whole(saved: tuple[Path, Path]) -> None:
    path, _ = saved
    ends = (".json", ".safetensors")
    both = {file_name(name, rank) for name in ("model", "optimizer") for rank in (0, 1)}
    names = {f"{name}{end}" for name in {"model", "optimizer", "progress", *both} for end in ends}
    assert {file.name for file in path.iterdir()} == {*names, "manifest.json"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    places = [read_json(path / f"{file_name('model', rank)}.json") for rank in (0, 1)]
    assert [place["0.weight"] for place in places] == [{"shape": [7, 6], "offset": [begin, 0]} for begin in (0, 4)]


def test_one_process_that_knows_of_no_ranks_reads_the_whole(saved: tuple[Path, Path]) -> None:
    path, expected = saved
    wanted = torch.load(expected)
    assert damage(path) is None
    assert same(load(path), wanted)
    assert not same(load(path)["model"], {name: tensor + 1 for name, tensor in wanted["model"].items()})
    link(path, path.parent.parent / "best", {"weights": "model"})
    assert same(load(path.parent.parent / "best"), {"weights": wanted["model"]})


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_any_number_of_ranks_goes_on_from_it(num_ranks: int, saved: tuple[Path, Path]) -> None:
    on_ranks(num_ranks, partial(read_in_pieces, *saved))


def test_of_copies_one_is_written(tmp_path: Path) -> None:
    path, expected = step_folder(tmp_path / "checkpoints", 3), tmp_path / "expected"
    on_ranks(4, partial(save_in_pieces, path, expected, copies=2))
    assert same(load(path), torch.load(expected))
    pairs = [read_json(path / f"{file_name('model', rank)}.json") for rank in range(4)]
    assert [bool(places) for places in pairs] == [True, True, False, False]


def test_a_lost_or_damaged_piece_is_found(saved: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = saved
    copy = tmp_path / "copy"
    link(path, copy, {"model": "model"})
    manifest = read_json(copy / "manifest.json")
    piece = file_name("model", 1)
    write_manifest(copy, {k: v for k, v in manifest["files"].items() if piece not in k}, time=manifest["time"])
    with pytest.raises(ValueError, match=r"copy is damaged: pieces of .*0\.weight.* are missing"):
        load(copy)
    write_manifest(copy, manifest["files"], time=manifest["time"])
    remove(copy / f"{piece}.safetensors")
    assert damage(copy) == f"{piece}.safetensors is missing"
