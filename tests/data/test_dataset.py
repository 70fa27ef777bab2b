"""Reading by number: what is read is what was written, whatever the order, the rank, the process."""

import os
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.building import build
from deeplense.data.dataset import Batch, Split, StepBatches, evaluation_batches, step_loader
from deeplense.data.shards import Samples, Schema

NUM_SAMPLES = 200
LABELS = np.arange(NUM_SAMPLES) % 3
MASSES = np.arange(NUM_SAMPLES) / 7


def source(dtype: str) -> np.ndarray:
    images = np.random.default_rng(0).normal(100, 30, size=(NUM_SAMPLES, 2, 6, 6))
    return images.astype(dtype)


def write(folder: Path, dtype: str) -> Split:
    schema = Schema(
        split="train",
        num_samples=NUM_SAMPLES,
        shape=(2, 6, 6),
        dtype=dtype,
        bands=("g", "r"),
        unit="",
        pixel_scale_arcsec=None,
        classes=("a", "b", "c"),
        targets={"mass": "kg"},
    )

    def make(rows: range) -> Samples:
        at = slice(rows.start, rows.stop)
        names = [f"id{i}" for i in rows]
        return Samples(source(dtype)[at], LABELS[at], {"mass": MASSES[at]}, names, np.arange(NUM_SAMPLES)[at])

    list(build(folder, schema, make))
    return Split(folder)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write(tmp_path_factory.mktemp("data") / "train", "float32")


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(Batch))


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)))


def step_batches(split: Split, *, rank: int = 0, world_size: int = 1) -> StepBatches:
    chosen = np.arange(5, 150)
    return StepBatches(split, chosen, batch_size=24, seed=3, rank=rank, world_size=world_size, target="mass")


@settings(deadline=None, max_examples=40, derandomize=True)
@given(indices=st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=30))
def test_images_come_in_the_order_asked_for(split: Split, indices: list[int]) -> None:
    chosen = np.array(indices, dtype=np.int64)
    np.testing.assert_array_equal(split.images(chosen), source("float32")[chosen])


def test_images_of_bytes_come_as_floats(tmp_path: Path) -> None:
    images = write(tmp_path, "uint8").images(np.array([199, 0, 64, 63]))
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, source("uint8")[[199, 0, 64, 63]])


def test_a_split_goes_to_another_process_without_its_images(split: Split) -> None:
    everything = np.arange(NUM_SAMPLES)
    before = split.images(everything)
    carried = pickle.dumps(split)
    assert len(carried) < before.nbytes
    np.testing.assert_array_equal(pickle.loads(carried).images(everything), before)


@pytest.mark.parametrize("chosen", [np.arange(NUM_SAMPLES), np.arange(0, NUM_SAMPLES, 3), np.array([7])])
def test_statistics_are_those_of_numpy(split: Split, chosen: np.ndarray) -> None:
    wide = source("float32")[chosen].astype(np.float64)
    found = split.statistics(chosen)
    np.testing.assert_allclose(found["mean"], wide.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found["std"], wide.std((0, 2, 3)), rtol=1e-10)


def test_random_numbers_stay_below_one_in_single_precision(split: Split) -> None:
    batch = split.batch(np.array([0]), target=None, random=np.full((1, 3), np.nextafter(1.0, 0.0)))
    assert batch.uniforms.dtype == torch.float32
    assert (batch.uniforms < 1).all()


def test_a_batch_holds_what_belongs_together(split: Split) -> None:
    chosen, random = np.array([150, 2, 2]), np.random.default_rng(0).uniform(size=(3, 3))
    batch = split.batch(chosen, target="mass", random=random)
    np.testing.assert_array_equal(batch.images, source("float32")[chosen])
    assert batch.labels.tolist() == LABELS[chosen].tolist()
    assert batch.indices.tolist() == chosen.tolist()
    np.testing.assert_array_equal(batch.target, MASSES[chosen].astype(np.float32))
    np.testing.assert_array_equal(batch.uniforms, random.astype(np.float32))
    assert split.batch(chosen, target=None, random=random).target.tolist() == LABELS[chosen].tolist()


@pytest.mark.parametrize("world_size", [2, 3, 5, 24])
def test_all_ranks_together_see_the_same_step_whatever_their_number(split: Split, world_size: int) -> None:
    ranks = [step_batches(split, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 5, 6, 1000):
        assert same(joined([rank[step] for rank in ranks]), step_batches(split)[step])


def test_a_loader_in_another_process_gives_the_same_batches(split: Split) -> None:
    batches = step_batches(split)
    here = list(step_loader(batches, range(4, 7), num_workers=0))
    there = list(step_loader(batches, range(4, 7), num_workers=1))
    assert len(here) == len(there) == 3
    for step, first, second in zip(range(4, 7), here, there, strict=True):
        assert same(first, second)
        assert same(first, batches[step])


def test_evaluation_sees_each_sample_once_in_its_order(split: Split) -> None:
    chosen = np.array([9, 3, 180, 4, 77])
    batches = list(evaluation_batches(split, chosen, batch_size=2, target=None))
    assert [len(batch.images) for batch in batches] == [2, 2, 1]
    assert joined(batches).indices.tolist() == chosen.tolist()
    np.testing.assert_array_equal(joined(batches).images, source("float32")[chosen])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def overwrite_head(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(bytes(64))


@pytest.mark.parametrize("damage", [truncate, Path.unlink, overwrite_head])
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write(tmp_path, "float32")
    damage(tmp_path / "shard-00001.h5")
    with pytest.raises(ValueError, match=r"shard-00001\.h5.*deeplense verify"):
        Split(tmp_path)
