"""Columns that are kept with samples: they come back as they were, and shards whose columns lie are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deeplense.data.building import build
from deeplense.data.checking import check_contents
from deeplense.data.dataset import Split
from deeplense.data.shards import Samples, Schema
from deeplense.data.verifying import verify

UNITS = {"ra": "deg", "survey": ""}
NAMES = ["HSC", "", "Ünïcode ★", "KiDS"]
SCHEMA = Schema(
    split="train",
    num_samples=70,
    shape=(1, 4, 4),
    dtype="float32",
    bands=("r",),
    unit="",
    pixel_scale_arcsec=None,
    classes=(),
    columns=UNITS,
)


def samples(rows: range, **columns: Any) -> Samples:
    images = np.random.default_rng(0).normal(size=(70, 1, 4, 4)).astype("f4")[rows.start : rows.stop]
    numbers = np.arange(rows.start, rows.stop)
    ra = np.where(numbers % 7, numbers / 3, np.nan)
    own = {"ra": ra, "survey": [NAMES[k % 4] if k < 64 else "" for k in rows]}
    return Samples(images, np.full(len(rows), -1), {}, [f"s{k}" for k in rows], numbers, own | columns)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A split of two shards with columns; the texts of the second are all empty."""
    list(build(tmp_path / "train", SCHEMA, samples))
    return tmp_path / "train"


def test_numbers_and_texts_come_back(folder: Path) -> None:
    split = Split(folder)
    assert verify(folder.parent) == []
    assert split.schema.columns == UNITS
    np.testing.assert_array_equal(split.column("column/ra"), samples(range(70)).columns["ra"])
    assert split.column("column/survey").tolist() == list(samples(range(70)).columns["survey"])
    with h5py.File(folder / "shard-00000.h5") as file:
        assert file["column/ra"].attrs["unit"] == "deg"


def test_a_schema_without_columns_is_that_of_earlier_versions() -> None:
    bare = replace(SCHEMA, columns={})
    assert "columns" not in json.loads(bare.text)
    assert bare.fingerprint != SCHEMA.fingerprint
    assert Schema(**{**vars(bare), "columns": {}}).text == bare.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ra": np.full(64, np.inf)}, "s0: has an infinite ra"),
        ({"ra": np.zeros(3)}, "column ra: give one value for each of 64"),
        ({"survey": ["a\nb"] * 64}, "s0: has a survey that is not printable"),
        ({"survey": ["x" * 5000] * 64}, "s0: has a survey"),
        ({"survey": np.array([None] * 64)}, "s0: has a survey"),
    ],
)
def test_a_value_that_no_column_holds_is_refused_by_the_name_of_the_sample(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(build(tmp_path / "train", SCHEMA, lambda rows: samples(rows, **columns)))
    assert not (tmp_path / "train").exists()


def rewritten(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    """Change the column `ra` of a shard: remove it, and let `change` make another."""

    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file["column/ra"]
            change(file)

    return spoil


def elsewhere(file: h5py.File) -> None:
    with h5py.File(f"{file.filename}.other", "w") as other:
        other["ra"] = np.zeros(64)
    file["column/ra"] = h5py.ExternalLink(f"{file.filename}.other", "ra")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(64,), dtype="f8")
    layout[:] = h5py.VirtualSource(file.filename, "label", shape=(64,))
    file.create_virtual_dataset("column/ra", layout)


def outside(file: h5py.File) -> None:
    Path(f"{file.filename}.raw").write_bytes(bytes(512))
    file.create_dataset("column/ra", (64,), "f8", external=[(f"{file.filename}.raw", 0, 512)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: None, "no column/ra"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros(64, "f4")), "column/ra of type float32"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros(64, ">f8")), "column/ra of type"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros(64, "i8")), "column/ra of type int64"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros((64, 2))), "column/ra of shape"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros(63)), "column/ra of shape"),
        (lambda file: file.create_dataset("column/ra", data=np.full(64, np.inf)), "infinite value of ra"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros(64), chunks=(8,)), "does not store column/ra"),
        (lambda file: file.create_dataset("column/ra", data=np.array(["x"] * 64, dtype=object)), "column/ra of type"),
        (lambda file: file.create_dataset("column/ra", data=np.zeros(64, "S5000")), "column/ra of type"),
        (lambda file: file.create_group("column/ra"), "not as an array"),
        (elsewhere, "a link instead of"),
        (virtual, "in another file"),
        (outside, "in another file"),
    ],
)
def test_a_column_that_is_something_else_is_refused(folder: Path, change: Any, message: str) -> None:
    path = folder / "shard-00000.h5"
    rewritten(change)(path)
    with pytest.raises(ValueError, match=message) as raised:
        check_contents(path, SCHEMA)
    assert "shard-00000.h5" in str(raised.value)


def test_a_column_of_numbers_in_one_shard_and_texts_in_another_is_a_problem(tmp_path: Path) -> None:
    mixed = {64: {"survey": np.zeros(64)}, 6: {}}
    list(build(tmp_path / "train", SCHEMA, lambda rows: samples(rows, **mixed[len(rows)])))
    assert "a column holds numbers in some shards and texts in others" in "".join(verify(tmp_path))
    with pytest.raises(ValueError, match="numbers in some shards"):
        Split(tmp_path / "train")
