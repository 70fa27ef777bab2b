"""The batches of each step, on any number of ranks, threads and processes."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from deeplense.data.building import build
from deeplense.data.dataset import TENSORS, Batch, Split
from deeplense.data.loading import StepBatches, read_ahead, step_loader
from deeplense.data.order import Order, Shuffle
from deeplense.data.shards import Samples, Schema

NUM_SAMPLES = 200


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("data") / "train"
    schema = Schema(
        split="train",
        num_samples=NUM_SAMPLES,
        shape=(1, 6, 6),
        dtype="float32",
        bands=("r",),
        unit="",
        pixel_scale_arcsec=None,
        classes=("a", "b"),
    )

    def make(rows: range) -> Samples:
        at = np.arange(rows.start, rows.stop)
        images = np.random.default_rng(0).normal(size=(NUM_SAMPLES, 1, 6, 6))[at]
        return Samples(images, at % 2, {}, [f"id{i}" for i in rows], at)

    list(build(folder, schema, make))
    return Split(folder)


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


def in_order(batches: list[Batch]) -> Batch:
    """Batches put together, sorted by the samples."""
    joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}
    place = torch.argsort(joined["indices"], stable=True)
    return Batch(**{name: values[place] for name, values in joined.items()})  # type: ignore[arg-type]


def step_batches(split: Split, *, rank: int = 0, world_size: int = 1, block: int = 1) -> StepBatches:
    order = Order([np.arange(5, 150)], batch_size=24, seed=3, shuffle=Shuffle(block, 8))
    return StepBatches(split, order, rank=rank, world_size=world_size, target=np.arange(NUM_SAMPLES) / 7)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("world_size", [2, 3, 5, 24])
def test_all_ranks_together_see_the_same_step_whatever_their_number(split: Split, world_size: int, block: int) -> None:
    ranks = [step_batches(split, rank=rank, world_size=world_size, block=block) for rank in range(world_size)]
    for step in (0, 5, 6, 1000):
        assert same(in_order([rank[step] for rank in ranks]), in_order([step_batches(split, block=block)[step]]))


@pytest.mark.parametrize("reading", [{"num_workers": 1}, {"num_threads": 1}, {"num_threads": 3}])
def test_batches_read_ahead_are_the_same(split: Split, reading: dict[str, Any]) -> None:
    batches = step_batches(split, block=4)
    found = list(step_loader(batches, range(4, 9), **reading))
    assert len(found) == 5
    for step, batch in zip(range(4, 9), found, strict=True):
        assert same(batch, step_batches(split, block=4)[step])


class Counted(StepBatches):
    """Notes which steps are asked for, and fails at one."""

    def __init__(self, *words: Any, failing: int, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.failing, self.asked = failing, []

    def __getitem__(self, step: int) -> Batch:
        self.asked.append(step)
        if step == self.failing:
            raise ValueError(f"step {step} cannot be read")
        return super().__getitem__(step)


def counted(split: Split, *, failing: int = -1) -> Counted:
    order = Order([np.arange(100)], batch_size=4, seed=0)
    return Counted(split, order, rank=0, world_size=1, target=None, failing=failing)


def test_each_thread_is_one_step_ahead_and_no_more(split: Split) -> None:
    batches = counted(split)
    loader = read_ahead(batches, range(100), num_threads=2)
    for step in range(5):
        next(loader)
        assert max(batches.asked) <= step + 2
    loader.close()
    assert len(batches.asked) <= 8


def test_an_error_comes_at_its_step_and_the_threads_end(split: Split) -> None:
    before = threading.active_count()
    loader = read_ahead(counted(split, failing=3), range(10), num_threads=2)
    assert len([next(loader) for _ in range(3)]) == 3
    with pytest.raises(ValueError, match="step 3 cannot be read"):
        next(loader)
    assert threading.active_count() == before


def test_threads_that_read_leave_the_cores_to_the_training(split: Split) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(read_ahead(step_batches(split), range(3), num_threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_next_window_is_announced_once_as_the_steps_go_by(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[np.ndarray] = []
    batches = step_batches(split, block=4)
    assert batches.order.steps_ahead == 2
    monkeypatch.setattr(batches.split.stored, "announce", announced.append)
    for step in range(6):
        batches[step]
    expected = [batches.order.batch(step)[0] for step in range(7)]
    assert [rows.tolist() for rows in announced] == [rows.tolist() for rows in expected]


def test_nothing_is_announced_where_all_samples_are_mixed(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = step_batches(split)
    monkeypatch.setattr(batches.split.stored, "announce", lambda rows: pytest.fail("announced"))
    batches[0]
