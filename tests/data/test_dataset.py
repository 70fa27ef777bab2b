"""Reading by number: what is read is what was written, whatever the order, the rank, the process."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.building import build
from deeplense.data.dataset import TENSORS, Batch, Split, evaluation_batches
from deeplense.data.shards import Samples, Schema, statistics_of

NUM_SAMPLES = 200
LABELS = np.arange(NUM_SAMPLES) % 3
MASSES = np.arange(NUM_SAMPLES) / 7


def source(dtype: str) -> np.ndarray:
    images = np.random.default_rng(0).normal(100, 30, size=(NUM_SAMPLES, 2, 6, 6))
    return images.astype(dtype)


def write(folder: Path, dtype: str, *, unit: str = "", scale: float = 1.0, zero: float = 0.0) -> Split:
    """A split of 200 samples."""
    schema = Schema(
        split="train",
        num_samples=NUM_SAMPLES,
        shape=(2, 6, 6),
        dtype=dtype,
        bands=("g", "r"),
        unit=unit,
        scale=scale,
        zero=zero,
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


def joined(batches: list[Batch]) -> Batch:
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(indices=st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=30))
def test_images_come_in_the_order_asked_for(split: Split, indices: list[int]) -> None:
    chosen = np.array(indices, dtype=np.int64)
    np.testing.assert_array_equal(split.images(chosen), source("float32")[chosen])


def test_stored_numbers_stand_for_values_wherever_a_batch_goes(tmp_path: Path) -> None:
    split = write(tmp_path, "uint8", scale=0.5, zero=-3.0)
    chosen = np.array([199, 0, 64, 63])
    expected = source("uint8")[chosen].astype(np.float32) * 0.5 - 3
    assert split.images(chosen).dtype == np.float32
    np.testing.assert_array_equal(split.images(chosen), expected)
    batch = split.batch(chosen, target=None, random=np.zeros((4, 3)))
    assert batch.images.dtype == torch.uint8
    for piece, part in zip(batch.split(2), (expected[:2], expected[2:]), strict=True):
        moved = piece.to(torch.device("cpu"))
        np.testing.assert_array_equal(moved.images, part)
        np.testing.assert_array_equal(moved.to(torch.device("cpu")).images, part)


def test_a_split_goes_to_another_process_without_its_images(split: Split) -> None:
    everything = np.arange(NUM_SAMPLES)
    before = split.images(everything)
    carried = pickle.dumps(split)
    assert len(carried) < before.nbytes
    np.testing.assert_array_equal(pickle.loads(carried).images(everything), before)


def test_data_sets_that_are_alike_are_one_after_the_other(split: Split, tmp_path: Path) -> None:
    write(tmp_path / "other", "float32")
    both = Split(split.folders[0], tmp_path / "other")
    chosen = np.array([399, 3, 200, 199])
    np.testing.assert_array_equal(both.images(chosen), source("float32")[chosen % NUM_SAMPLES])
    assert both.labels[chosen].tolist() == LABELS[chosen % NUM_SAMPLES].tolist()
    assert both.sources[chosen].tolist() == [1, 0, 1, 0]
    assert both.column("id")[chosen].tolist() == [b"id199", b"id3", b"id0", b"id199"]
    assert len({both.dataset_id, split.dataset_id, Split(tmp_path / "other", split.folders[0]).dataset_id}) >= 2
    found, alone = (statistics_of([s.moments(np.arange(len(s)))]) for s in (both, split))
    np.testing.assert_allclose(found["std"], alone["std"], rtol=1e-10)


def test_data_sets_that_are_stored_in_different_ways_are_joined_by_their_values(split: Split, tmp_path: Path) -> None:
    small = write(tmp_path / "small", "uint8", scale=0.5, zero=-3.0)
    both = Split(tmp_path / "small", split.folders[0])
    chosen = np.array([399, 3, 200, 199, 3])
    expected = [
        split.images(np.array([k - NUM_SAMPLES])) if k >= NUM_SAMPLES else small.images(np.array([k])) for k in chosen
    ]
    np.testing.assert_array_equal(both.images(chosen), np.concatenate(expected))
    batch = both.batch(chosen, target=None, random=np.zeros((5, 3)))
    np.testing.assert_array_equal(batch.to(torch.device("cpu")).images, np.concatenate(expected))
    both.stored.announce(chosen)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(both)).images(chosen), np.concatenate(expected))
    both.keep_on(torch.device("cpu"), np.arange(400))
    np.testing.assert_array_equal(both.images(chosen), np.concatenate(expected))


def test_data_sets_of_other_shapes_or_classes_are_not_mixed(split: Split, dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"has shape \(2, 6, 6\), but .*train has \(1, 16, 16\)"):
        Split(split.folders[0], dataset / "train")


def test_a_shard_of_another_data_set_is_refused_though_it_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "one", "float32")
    write(tmp_path / "two", "float32", unit="Jy")
    shutil.copy(tmp_path / "two" / "shard-00001.h5", tmp_path / "one" / "shard-00001.h5")
    os.truncate(tmp_path / "one" / "shard-00001.h5", (tmp_path / "two" / "shard-00001.h5").stat().st_size)
    with pytest.raises(ValueError, match=r"shard-00001\.h5"):
        Split(tmp_path / "one")


def test_images_held_on_a_device_are_the_same(tmp_path: Path) -> None:
    split, chosen = write(tmp_path, "uint8"), np.arange(3, 190, 2)
    before = split.images(chosen)
    split.keep_on(torch.device("cpu"), chosen)
    mixed = np.random.default_rng(0).permutation(len(chosen))
    np.testing.assert_array_equal(split.images(chosen[mixed]), before[mixed])
    with pytest.raises(IndexError):
        split.images(np.array([4]))


@pytest.mark.parametrize("chosen", [np.arange(NUM_SAMPLES), np.arange(0, NUM_SAMPLES, 3), np.array([7])])
def test_statistics_are_those_of_numpy(split: Split, chosen: np.ndarray) -> None:
    wide = source("float32")[chosen].astype(np.float64)
    found = statistics_of([split.moments(chosen)])
    np.testing.assert_allclose(found["mean"], wide.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found["std"], wide.std((0, 2, 3)), rtol=1e-10)


def test_random_numbers_stay_below_one_in_single_precision(split: Split) -> None:
    batch = split.batch(np.array([0]), target=None, random=np.full((1, 3), np.nextafter(1.0, 0.0)))
    assert batch.uniforms.dtype == torch.float32
    assert (batch.uniforms < 1).all()


def test_a_batch_holds_what_belongs_together(split: Split) -> None:
    chosen, random = np.array([150, 2, 2]), np.random.default_rng(0).uniform(size=(3, 3))
    batch = split.batch(chosen, target=MASSES, random=random)
    np.testing.assert_array_equal(batch.images, source("float32")[chosen])
    assert batch.labels.tolist() == LABELS[chosen].tolist()
    assert batch.indices.tolist() == chosen.tolist()
    np.testing.assert_array_equal(batch.target, MASSES[chosen].astype(np.float32))
    np.testing.assert_array_equal(batch.uniforms, random.astype(np.float32))
    assert split.batch(chosen, target=None, random=random).target.tolist() == LABELS[chosen].tolist()


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
    with pytest.raises(ValueError, match=r"shard-00001\.h5.*(deeplense verify|make the split again)"):
        Split(tmp_path)
