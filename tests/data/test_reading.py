"""Reading images by number: one table over all shards, memory that is used again, and shards that change meanwhile."""

import gc
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data import reading
from deeplense.data.reading import Buffers, CompressedImages, HeldImages, Images, MappedImages, ShardFile, open_images

SHAPE = (2, 5, 3)
SIZES = (7, 1, 40, 12)
TOTAL = sum(SIZES)
DTYPES = ("float32", "float16", "uint8", "int16", "uint16", "int32")


def numbers(dtype: str) -> np.ndarray:
    return (np.random.default_rng(0).normal(60, 20, (TOTAL, *SHAPE))).astype(dtype)


def write_shards(folder: Path, dtype: str, *, chunked: bool = False) -> list[ShardFile]:
    """Shards of uneven sizes, their images in one piece or in chunks of one image."""
    folder.mkdir(exist_ok=True)
    files = []
    for number, size in enumerate(SIZES):
        path, start = folder / f"shard-{number}.h5", sum(SIZES[:number])
        with h5py.File(path, "w", alignment_threshold=64, alignment_interval=4096) as file:
            layout = {"chunks": (1, *SHAPE), "compression": "gzip"} if chunked else {}
            image = file.create_dataset("image", data=numbers(dtype)[start : start + size], **layout)
            offset = None if chunked else image.id.get_offset()
        files.append(ShardFile(path, size, path.stat().st_size, offset))
    return files


def opened(folder: Path, dtype: str = "float32", *, chunked: bool = False) -> Images:
    return open_images(write_shards(folder, dtype, chunked=chunked), dtype=dtype, shape=SHAPE)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return opened(tmp_path_factory.mktemp("shards"))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=st.lists(st.integers(0, TOTAL - 1), max_size=30))
def test_images_of_many_shards_come_in_the_order_asked_for(mapped: Images, rows: list[int]) -> None:
    chosen = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(mapped.read(chosen).numpy(), numbers("float32")[chosen])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_read_as_it_is_stored(dtype: str, chunked: bool, tmp_path: Path) -> None:
    images, rows = opened(tmp_path, dtype, chunked=chunked), np.array([59, 0, 7, 8, 33, 7])
    assert isinstance(images, CompressedImages if chunked else MappedImages)
    found = images.read(rows)
    assert found.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(found.numpy(), numbers(dtype)[rows])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).read(rows).numpy(), numbers(dtype)[rows])


def send_all(images: Images, sending: Connection) -> None:
    sending.send(images.read(np.arange(TOTAL)).numpy())
    sending.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_other_processes_read_the_same(method: str, chunked: bool, tmp_path: Path) -> None:
    images, context = opened(tmp_path, chunked=chunked), cast(Any, get_context(method))
    before = images.read(np.arange(TOTAL))
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=send_all, args=(images, sending))
    process.start()
    sending.close()
    np.testing.assert_array_equal(receiving.recv(), before)
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(before, numbers("float32"))


def test_announcing_changes_nothing_and_asks_for_each_piece_once(tmp_path: Path) -> None:
    images, rows = opened(tmp_path), np.array([0, 1, 30, 59])
    images.announce(rows)
    assert isinstance(images, MappedImages)
    before = dict(images.announced)
    assert set(before) == {(0, 0), (2, 0), (3, 0)}
    images.announce(rows)
    assert images.announced == before
    np.testing.assert_array_equal(images.read(rows).numpy(), numbers("float32")[rows])


def test_threads_may_announce_at_once_and_little_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_ANNOUNCED", 1)
    images = opened(tmp_path)
    assert isinstance(images, MappedImages)
    rows = [np.array([k]) for k in np.random.default_rng(0).integers(0, TOTAL, 2000)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.announce, rows))
    assert len(images.announced) == 1


def test_images_held_on_a_device_are_the_same_and_only_they(mapped: Images) -> None:
    rows = np.array([50, 3, 17])
    held = HeldImages(mapped, rows, num_images=TOTAL, device=torch.device("cpu"))
    np.testing.assert_array_equal(held.read(np.array([17, 50, 17])).numpy(), numbers("float32")[[17, 50, 17]])
    with pytest.raises(IndexError):
        held.read(np.array([4]))


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    buffers = Buffers()
    first = buffers.take((4, 6), torch.int32)
    view, where = first.view(torch.float32)[1:], address(first)
    del first
    gc.collect()
    second = buffers.take((4, 6), torch.int32)
    assert address(second) != where
    view.fill_(1.0)
    second.zero_()
    assert (view == 1).all()
    del view
    assert address(buffers.take((4, 6), torch.int32)) == where
    assert buffers.take((2, 6), torch.int16).shape == (2, 6)


def test_what_was_read_stays_when_more_is_read(mapped: Images) -> None:
    parts = [mapped.read(np.array([k])) for k in range(TOTAL)]
    np.testing.assert_array_equal(torch.cat(parts).numpy(), numbers("float32"))


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def rewrite(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(("change", "told"), [(Path.unlink, "deleted"), (rewrite, "changed"), (truncate, "changed")])
def test_a_shard_that_is_changed_while_it_is_read_is_named(
    change: Callable[[Path], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SECONDS_BETWEEN_LOOKS", 0.0)
    images = opened(tmp_path)
    images.read(np.array([0]))
    images.read(np.array([0]))
    change(tmp_path / "shard-2.h5")
    with pytest.raises(ValueError, match=rf"shard-2\.h5 was {told} while it was being read"):
        images.read(np.array([0]))


def test_a_shard_that_is_missing_or_cut_off_at_first_is_named(tmp_path: Path) -> None:
    for damage in (truncate, Path.unlink):
        images = opened(tmp_path)
        damage(tmp_path / "shard-1.h5")
        with pytest.raises(ValueError, match=r"shard-1\.h5.*deeplense verify"):
            images.read(np.array([0]))


def test_a_damaged_compressed_shard_is_named(tmp_path: Path) -> None:
    images = opened(tmp_path, chunked=True)
    truncate(tmp_path / "shard-2.h5")
    assert len(images.read(np.array([0]))) == 1
    with pytest.raises(ValueError, match=r"shard-2\.h5 cannot be read"):
        images.read(np.array([20]))


def test_few_compressed_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_FILES", 2)
    images = opened(tmp_path, chunked=True)
    assert isinstance(images, CompressedImages)
    np.testing.assert_array_equal(images.read(np.arange(TOTAL)).numpy(), numbers("float32"))
    assert len(images.handles) == 2
