"""Checkpoints: every bit comes back, damage is found, and a kill costs nothing that was acknowledged."""

import errno
import os
import random
import re
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, combinations, count, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONTEXT, start_fork_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from deeplense.files import read_json, write_json
from deeplense.training import checkpoint, tensor_file
from deeplense.training.checkpoint import (
    MANIFEST,
    Snapshot,
    damage,
    link,
    load,
    newest_good,
    remove_old,
    save,
    snapshot,
    step_folder,
    time_of,
    to_keep,
    write,
)
from deeplense.training.saving import Saver
from deeplense.training.tensor_file import NAMES, tensors_in

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
SHAPES = ((), (0,), (3,), (2, 1, 2))
TENSORS = st.builds(
    lambda dtype, shape, seed: (100 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype),
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.integers(0, 9),
)
LEAVES = TENSORS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
KEYS = st.integers(0, 20) | st.text("ab._", max_size=3)
STATES = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
)


def same(first: Any, second: Any) -> bool:
    """Whether two states are the same to the bit, types and order of keys included."""
    if isinstance(first, Tensor):
        kind = first.dtype == second.dtype and first.shape == second.shape
        return kind and first.reshape(-1).view(torch.uint8).equal(second.reshape(-1).view(torch.uint8))
    if isinstance(first, Mapping):
        return list(first) == list(second) and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float):
        return first != first if second != second else struct.pack("d", first) == struct.pack("d", second)
    return type(first) is type(second) and first == second


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STATES, STATES)
def test_any_state_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, first: dict[Any, Any], second: dict[Any, Any]
) -> None:
    path = tmp_path_factory.mktemp("checkpoints") / "step_00000001"
    save(path, {"model": first, "other.name": second, "empty": {}})
    loaded = load(path)
    assert loaded.keys() == {"model", "other.name", "empty"}
    assert same(loaded["model"], first)
    assert same(loaded["other.name"], second)


def test_states_whose_keys_look_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {"a/b": torch.zeros(2), "a": {"b": torch.ones(2)}, 1: torch.zeros(3), "1": torch.ones(3)}
    save(tmp_path / "step_00000001", {"model": state})
    assert same(load(tmp_path / "step_00000001")["model"], state)


class Tied(nn.Module):
    """Two layers that share their weights, beside a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.second.weight = self.first.weight

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.norm(self.first(rows).relu()))


def make(name: str, dtype: torch.dtype) -> tuple[Tied, torch.optim.Optimizer]:
    """A model and its optimizer."""
    torch.manual_seed(0)
    model = Tied().to(dtype)
    return model, create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.1, momentum=0.9)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Some updates, each on a batch of its own."""
    for step in steps:
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "lamb"])
def test_a_training_goes_on_from_a_checkpoint_as_if_unbroken(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, optimizer = make(name, dtype)
    update(model, optimizer, range(4))
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save(tmp_path / "step_00000004", states)
    saved = load(tmp_path / "step_00000004")
    assert all(same(saved[part], state) for part, state in states.items())
    resumed, other = make(name, dtype)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(dict(saved["optimizer"]))
    update(model, optimizer, range(4, 9))
    update(resumed, other, range(4, 9))
    assert same(resumed.state_dict(), model.state_dict())
    assert same(other.state_dict(), optimizer.state_dict())


def state_of(step: int) -> dict[str, dict[str, Any]]:
    """A small state that tells its step."""
    return {"model": {"weight": torch.full((40,), float(step))}, "progress": {"step": step, "best": -float("inf")}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small checkpoint."""
    path = step_folder(tmp_path, 7)
    save(path, state_of(7))
    return path


def test_a_checkpoint_holds_json_and_safetensors_and_no_pickle(saved: Path) -> None:
    names = {f"{name}.{ending}" for name in ("model", "progress") for ending in ("json", "safetensors")}
    assert {path.name for path in saved.iterdir()} == {*names, MANIFEST}
    assert damage(saved) is None


def damaged_versions(content: bytes) -> Iterator[bytes]:
    """The content with each bit flipped in turn, and cut off at each length (but for a line break at its end)."""
    for place in range(len(content)):
        for bit in range(8):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    for length in range(len(content.rstrip())):
        yield content[:length]


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "progress.json", MANIFEST])
def test_any_flipped_bit_and_any_loss_of_a_file_is_found(name: str, saved: Path) -> None:
    content = (saved / name).read_bytes()
    for version in damaged_versions(content):
        (saved / name).write_bytes(version)
        assert damage(saved), f"{version!r} passes for {content!r}"
    (saved / name).unlink()
    assert damage(saved)
    with pytest.raises(ValueError, match=rf"{saved.name} is damaged.*{name}"):
        load(saved)
    (saved / name).write_bytes(content)
    assert damage(saved) is None


def spoil(path: Path) -> None:
    """Flip a bit in the weights."""
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(step_folder(tmp_path, step), state_of(step))
    spoil(step_folder(tmp_path, 10))
    shutil.rmtree(step_folder(tmp_path, 11))
    step_folder(tmp_path, 11).mkdir()
    path, reports = newest_good(tmp_path)
    assert path == step_folder(tmp_path, 9)
    assert ["step_00000011" in reports[0], "step_00000010" in reports[1], len(reports)] == [True, True, 2]
    assert (tmp_path / "damaged_step_00000010" / "model.safetensors").exists()
    assert newest_good(tmp_path) == (path, [])


def test_a_step_that_was_damaged_before_can_be_damaged_again(tmp_path: Path) -> None:
    for _ in range(2):
        save(step_folder(tmp_path, 3), state_of(3))
        spoil(step_folder(tmp_path, 3))
        path, reports = newest_good(tmp_path)
        assert path is None
        assert len(reports) == 1
    assert newest_good(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_old_checkpoints_go_and_the_newest_and_those_of_another_kind_never(kept: int, tmp_path: Path) -> None:
    for step in (2, 30, 400):
        save(step_folder(tmp_path, step), state_of(step))
        save(step_folder(tmp_path, step, kind="best"), state_of(step))
        (tmp_path / f".writing-step_{step}").mkdir()
        remove_old(tmp_path, count=kept)
    steps = [path.name for path in sorted(tmp_path.glob("*")) if path.name.startswith(("step", "."))]
    assert steps == [f"step_{step:08d}" for step in (2, 30, 400)[-kept:]]
    assert len(list(tmp_path.glob("best_*"))) == 3


def test_a_file_that_cannot_be_read_is_damage(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tensor_file, "read", fail)
    assert damage(saved) == "model.json cannot be read ([Errno 5] Input/output error)"


def test_the_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {f"{dtype} {shape}": torch.ones(shape).to(dtype) for dtype in NAMES for shape in SHAPES}
    save(tmp_path / "ours", {"model": tensors})
    assert same(dict(sorted(load_file(tmp_path / "ours" / "model.safetensors").items())), dict(sorted(tensors.items())))
    save_file(tensors, tmp_path / "theirs")
    read = tensors_in(tensor_file.read(tmp_path / "theirs")[0])
    assert same(dict(sorted(read.items())), dict(sorted(tensors.items())))
    with pytest.raises(ValueError, match=r"weight has the dtype torch\.complex128, which safetensors does not support"):
        save(tmp_path / "it", {"model": {"weight": torch.zeros(1, dtype=torch.complex128)}})


def test_a_checkpoint_of_the_first_format_is_still_read(saved: Path) -> None:
    manifest = read_json(saved / MANIFEST)
    write_json(saved / MANIFEST, {"format": "deeplense-checkpoint/1", "files": manifest["files"]})
    assert same(load(saved), state_of(7))
    assert time_of(saved) is None


def test_a_checkpoint_tells_its_time(saved: Path) -> None:
    time_s = time_of(saved)
    assert time_s is not None
    assert 0 <= time.time() - time_s < 3600


def test_some_states_of_a_checkpoint_are_another_one_without_a_copy(saved: Path) -> None:
    target = step_folder(saved.parent, 7, kind="best")
    link(saved, target, {"model": "model", "other": "progress"})
    pairs = {"model.json": "model.json", "model.safetensors": "model.safetensors", "other.json": "progress.json"}
    assert all((target / name).samefile(saved / of) for name, of in pairs.items())
    assert (damage(target), time_of(target)) == (None, time_of(saved))
    shutil.rmtree(saved)
    assert same(load(target), {"model": state_of(7)["model"], "other": state_of(7)["progress"]})


def test_where_there_are_no_hard_links_there_are_copies(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    link(saved, saved.parent / "copy", {"model": "model"})
    assert not (saved.parent / "copy" / "model.json").samefile(saved / "model.json")
    assert same(load(saved.parent / "copy"), {"model": state_of(7)["model"]})


GAPS = st.lists(st.integers(0, 30), min_size=1, max_size=9)


def by_brute_force(times: list[float], *, count: int, every_s: float) -> set[int]:
    """The last ones, and the one set with the first in which each is late enough after the one before, and each that is
    not in it is too early after one that is: found by trying all sets."""

    def right(chosen: tuple[int, ...]) -> bool:
        apart = all(times[b] - times[a] >= every_s for a, b in pairwise(chosen))
        others = set(range(len(times))) - set(chosen)
        return (
            apart and 0 in chosen and all(any(a < k and times[k] - times[a] < every_s for a in chosen) for k in others)
        )

    sets = [s for n in range(len(times) + 1) for s in combinations(range(len(times)), n) if right(s)]
    (found,) = sets
    return {*found, *range(len(times))[-count:]}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(GAPS, st.integers(2, 4), st.integers(1, 60))
def test_what_is_kept_is_what_trying_all_sets_gives_and_the_same_if_removed_one_by_one(
    gaps: list[int], count: int, every: int
) -> None:
    times = [60.0 * t for t in accumulate(gaps)]
    expected = by_brute_force(times, count=count, every_s=60 * every)
    names = {Path(f"step_{k:08d}"): t for k, t in enumerate(times)}
    rules = {"count": count, "every_hours": every / 60}
    assert to_keep(names, **rules) == {Path(f"step_{k:08d}") for k in expected}
    left: dict[Path, float | None] = {}
    for path, t in names.items():
        left[path] = t
        left = {path: left[path] for path in left if path in to_keep(left, **rules)}
    assert set(left) == to_keep(names, **rules)


def test_checkpoints_hours_apart_are_kept_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(8):
        taken = replace(snapshot(state_of(step), {}), time=f"2026-01-01T{step:02}:30:00+00:00")
        write(step_folder(tmp_path, step), taken)
        remove_old(tmp_path, count=2, every_hours=2.5)
    assert [int(path.name[-8:]) for path in sorted(tmp_path.iterdir())] == [0, 3, 6, 7]


Way = Callable[[Path, int], Iterator[int]]


def save_at_once(checkpoints: Path, first: int) -> Iterator[int]:
    """Save a step and those after it, giving each that is safe."""
    for step in count(first):
        save(step_folder(checkpoints, step), state_of(step))
        yield step
        remove_old(checkpoints, count=2)


def save_in_background(checkpoints: Path, first: int) -> Iterator[int]:
    """The same by a `Saver`, while the states change."""
    saver, live = Saver(), state_of(first)

    def write(taken: Snapshot) -> None:
        step = taken.trees["progress"]["__items__"][0][1]
        checkpoint.write(step_folder(checkpoints, step), taken)
        remove_old(checkpoints, count=2)

    for step in count(first):
        saver.begin(live, write)
        live["model"]["weight"].fill_(step + 1)
        live["progress"]["step"] = step + 1
        saver.wait()
        yield step


def save_until_killed(
    way: Callable[[Path, int], Iterator[int]], path: Path, told: Connection, tell: Connection
) -> None:
    """For each step that it is told, a process that saves it and those after it until it is killed, telling each."""
    while True:
        first = told.recv()
        child = os.fork()
        for step in way(path, first) if child == 0 else ():
            tell.send((os.getpid(), step))
        os.waitpid(child, 0)
        tell.send(None)


@pytest.fixture(params=[save_at_once, save_in_background])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Connection, Connection]]:
    """Begins processes that save, and hears from them; both end when these connections close."""
    (told, begin), (hear, tell) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
    start_fork_server()
    process = CONTEXT.Process(target=save_until_killed, args=(request.param, tmp_path, told, tell))
    process.start()
    told.close()
    tell.close()
    yield begin, hear
    hear.close()
    begin.close()
    process.kill()
    process.join()


def test_a_kill_at_any_moment_costs_no_checkpoint_that_was_acknowledged(
    saver: tuple[Connection, Connection], tmp_path: Path
) -> None:
    begin, hear = saver
    moments = random.Random(0)
    last = num_interrupted = 0
    for _ in range(20):
        begin.send(last + 1)
        process, safe = hear.recv()
        time.sleep(moments.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        safe = max([safe, *(step for _, step in iter(hear.recv, None))])
        num_interrupted += any(tmp_path.glob(".writing-*"))
        path, reports = newest_good(tmp_path)
        assert path is not None
        assert not reports
        last = load(path)["progress"]["step"]
        assert safe <= last <= safe + 1
        assert same(load(path), state_of(last))
    assert num_interrupted > 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[1, 2]", r"model\.json contains no state"),
        (b"3", r"model\.json contains no state"),
        (b'{"weight": 3}', "not part of a state"),
        (b"{", "model cannot be read"),
        (b"[" * 100_000, "model cannot be read"),
        (b" " * 200 + b"{}", r"model\.json has 202 bytes, too many for a state"),
    ],
)
def test_a_state_of_another_form_is_damage_although_its_checksum_is_right(
    tmp_path: Path, content: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = step_folder(tmp_path, 1)
    save(path, {"model": {"weight": torch.ones(3)}})
    files = read_json(path / MANIFEST)["files"]
    checkpoint.write_manifest(path, files | {"model.json": checkpoint.put(path / "model.json", content)}, time="")
    if b" " in content[:1]:
        monkeypatch.setattr(checkpoint, "LARGEST_TREE", 200)
    assert re.search(told, damage(path) or "")
    with pytest.raises(ValueError, match=told):
        load(path)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_is_damage(tmp_path: Path, number: float) -> None:
    path = step_folder(tmp_path, 1)
    save(path, {"model": {"weight": torch.tensor([1.0, number])}})
    told = r"model\.safetensors contains non-finite numbers"
    assert re.search(told, damage(path) or "")
    with pytest.raises(ValueError, match=told):
        load(path)
