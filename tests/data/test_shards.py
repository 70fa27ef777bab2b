"""The format: what is written is read, in every type, compressed or not; and what does not fit is refused by name."""

import fcntl
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.checking import check_contents, check_shard
from deeplense.data.shards import (
    COMPRESSIONS,
    DTYPES,
    GROUP,
    GROUP_UNIT,
    MANIFEST,
    Manifest,
    Samples,
    Schema,
    canonical,
    read_columns,
    shard_ranges,
)
from tests.data.made_up import NUM_SAMPLES, SCHEMA, columns, counts, made, samples, spoilt

ALL = range(NUM_SAMPLES)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert made(tmp_path / "train")[-1] == NUM_SAMPLES
    expected, found = samples(ALL), columns(tmp_path / "train")
    np.testing.assert_array_equal(found["image"], expected.images)
    np.testing.assert_array_equal(found["label"], expected.labels)
    np.testing.assert_array_equal(found["target/mass"], expected.targets["mass"])
    np.testing.assert_array_equal(found["source_index"], expected.source_index)
    assert [name.decode() for name in found["id"]] == expected.ids


def test_a_shard_is_read_column_by_column_and_names_may_be_of_any_alphabet(tmp_path: Path) -> None:
    named = replace(samples(range(3)), ids=["číslo 1", "数", "c"])
    made(tmp_path, replace(SCHEMA, num_samples=3), lambda rows: named)
    found = read_columns(tmp_path / "shard-00000.h5", SCHEMA)
    assert found.keys() == {"label", "source_index", "id", "target/mass"}
    assert [name.decode() for name in found["id"]] == named.ids


def test_the_manifest_tells_what_the_split_holds(tmp_path: Path) -> None:
    made(tmp_path)
    manifest, images = Manifest.read(tmp_path), samples(ALL).images.astype(np.float64)
    assert manifest.schema == SCHEMA
    assert manifest.class_counts == {"yes": 100, "no": 100}
    np.testing.assert_allclose(manifest.statistics["mean"], images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(manifest.statistics["std"], images.std((0, 2, 3)), rtol=1e-12)
    assert [shard["num_samples"] for shard in manifest.shards] == [64, 64, 64, 8]
    first = np.fromfile(tmp_path / "shard-00001.h5", "<f4", 40, offset=manifest.shards[1]["image_offset"])
    np.testing.assert_array_equal(first.reshape(SCHEMA.shape), samples(range(64, 65)).images[0])


def test_a_class_may_have_no_sample(tmp_path: Path) -> None:
    made(tmp_path, SCHEMA, lambda rows: replace(samples(rows), labels=np.zeros(len(rows), np.int64)))
    assert Manifest.read(tmp_path).class_counts == {"yes": NUM_SAMPLES, "no": 0}


def test_a_shard_is_read_whatever_lock_another_program_holds_on_it(tmp_path: Path) -> None:
    made(tmp_path)
    with (tmp_path / "shard-00000.h5").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(tmp_path / "shard-00000.h5", locking=True)
        assert len(read_columns(tmp_path / "shard-00000.h5", SCHEMA)["label"]) == 64


@settings(deadline=None, max_examples=60, derandomize=True)
@given(num_samples=st.integers(1, 10**6), size=st.integers(1, 300), bands=st.integers(1, 5))
def test_shards_are_whole_blocks_that_hold_every_sample_once(num_samples: int, size: int, bands: int) -> None:
    ranges = shard_ranges(replace(SCHEMA, num_samples=num_samples, shape=(bands, size, size)))
    assert [ranges[0].start, ranges[-1].stop] == [0, num_samples]
    assert all(first.stop == second.start for first, second in itertools.pairwise(ranges))
    assert all(len(rows) % 64 == 0 for rows in ranges[:-1])
    assert len({len(rows) for rows in ranges[:-1]}) <= 1
    assert all(len(rows) == 64 or len(rows) * bands * size**2 * 4 < 1.3 * 2**28 for rows in ranges)
    assert len(ranges) >= 8 or num_samples < 8 * 64 * 8


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_numbers_come_back_in_every_type_whether_compressed_or_not(
    tmp_path: Path, dtype: str, compression: str
) -> None:
    made(tmp_path, replace(SCHEMA, dtype=dtype, compression=compression), counts)
    found = columns(tmp_path)
    assert found["image"].dtype == dtype
    np.testing.assert_array_equal(found["image"], counts(ALL).images)
    np.testing.assert_array_equal(found["label"], counts(ALL).labels)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_compression_loses_nothing_stores_image_by_image_and_makes_smooth_ones_small(
    tmp_path: Path, dtype: str, compression: str
) -> None:
    ramp = np.arange(160 * 160).reshape(1, 1, 160, 160) // 64
    schema = replace(SCHEMA, dtype=dtype, num_samples=100, shape=(1, 160, 160), bands=("r",))

    def smooth(rows: range) -> Samples:
        return replace(samples(rows), images=ramp + np.array(rows)[:, None, None, None])

    made(tmp_path / "plain", schema, smooth)
    made(tmp_path / "small", replace(schema, compression=compression), smooth)
    plain, small = columns(tmp_path / "plain"), columns(tmp_path / "small")
    np.testing.assert_array_equal(small["image"], plain["image"])
    manifests = [Manifest.read(tmp_path / name) for name in ("plain", "small")]
    assert manifests[0].statistics == manifests[1].statistics
    sizes = [sum(shard["bytes"] for shard in manifest.shards) for manifest in manifests]
    assert sizes[1] < sizes[0] / 5
    assert [shard["image_offset"] for shard in manifests[1].shards] == [None, None]
    with h5py.File(tmp_path / "small" / "shard-00000.h5") as file:
        assert file["image"].chunks == (1, 1, 160, 160)  # type: ignore[union-attr]


@pytest.mark.parametrize(("scale", "zero"), [(0.25, 1000.0), (-3.0, -0.5)])
def test_the_statistics_are_of_stored_times_scale_plus_zero(tmp_path: Path, scale: float, zero: float) -> None:
    made(tmp_path, replace(SCHEMA, dtype="int16", scale=scale, zero=zero), counts)
    stored, statistics = counts(ALL).images.astype(np.float64), Manifest.read(tmp_path).statistics
    np.testing.assert_array_equal(columns(tmp_path)["image"], stored)
    np.testing.assert_allclose(statistics["mean"], scale * stored.mean((0, 2, 3)) + zero, rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], abs(scale) * stored.std((0, 2, 3)), rtol=1e-9)
    with h5py.File(tmp_path / "shard-00000.h5") as file:
        assert {name: file["image"].attrs[name] for name in ("scale", "zero")} == {"scale": scale, "zero": zero}


def test_a_shard_tells_its_moments(tmp_path: Path) -> None:
    made(tmp_path)
    header = check_contents(tmp_path / "shard-00001.h5", SCHEMA).header
    images = samples(range(64, 128)).images.astype(np.float64)
    count, total, squares = header.moments
    assert (header.num_samples, header.fingerprint, count) == (64, SCHEMA.fingerprint, 64 * 20)
    np.testing.assert_allclose(total, images.sum((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(squares, (images**2).sum((0, 2, 3)), rtol=1e-12)


def test_float16_rounds_to_three_digits(tmp_path: Path) -> None:
    made(tmp_path, replace(SCHEMA, dtype="float16"))
    found, given = columns(tmp_path)["image"].astype(np.float64), samples(ALL).images.astype(np.float64)
    normal = np.abs(given) > 2.0**-14
    assert (np.abs(found - given)[normal] <= 2.0**-11 * np.abs(given)[normal]).all()
    assert (found != given).any()


def with_pixel(value: float, place: int) -> Callable[[Samples], Samples]:
    def spoil(good: Samples) -> Samples:
        images = good.images.astype(np.float64)
        images[place, 1, 2, 3] = value
        return replace(good, images=images)

    return spoil


def whole(good: Samples) -> Samples:
    """Samples that integers can hold."""
    return counts(range(good.source_index[0], good.source_index[-1] + 1))


BAD: dict[str, tuple[str, Callable[[Samples], Samples], str]] = {
    "nan": ("float32", with_pixel(np.nan, 6), "id70: .*not finite"),
    "infinite": ("float32", with_pixel(-np.inf, 6), "id70: .*not finite"),
    "beyond float32": ("float32", with_pixel(1e39, 6), r"id70: has pixels above 1e\+18, too large"),
    "beyond float16": ("float16", with_pixel(-65520, 6), "id70: .*float16 cannot hold"),
    "too faint": (
        "float16",
        lambda good: replace(
            good, images=good.images * np.where(good.source_index == 70, 1e-9, 1)[:, None, None, None]
        ),
        "id70: the image loses its contrast as float16.*--dtype float32",
    ),
    "half": ("int16", lambda good: with_pixel(0.5, 6)(whole(good)), "id70: .*int16 cannot hold"),
    "below 0": ("uint16", lambda good: with_pixel(-1, 6)(whole(good)), "id70: .*uint16 cannot hold"),
    "above int32": ("int32", lambda good: with_pixel(2.0**31, 6)(whole(good)), "id70: .*int32 cannot hold"),
    "nan as a whole number": ("int32", lambda good: with_pixel(np.nan, 6)(whole(good)), "id70: .*not finite"),
    "complex": (
        "float32",
        lambda good: replace(good, images=good.images + 1j),
        "type complex64; convert them to numbers",
    ),
    "shape": (
        "float32",
        lambda good: replace(good, images=good.images[:, :, :3]),
        r"\(2, 3, 5\); the schema has \(2, 4, 5\)",
    ),
    "label above": (
        "float32",
        lambda good: replace(good, labels=np.where(good.source_index == 70, 2, good.labels)),
        "id70: label 2",
    ),
    "label below": (
        "float32",
        lambda good: replace(good, labels=np.where(good.source_index == 70, -1, good.labels)),
        "id70: label -1",
    ),
    "one too few": (
        "float32",
        lambda good: samples(range(good.source_index[0], good.source_index[-1])),
        "shard-00001.h5 must have 64 samples, but 63 were made",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_samples_are_refused_by_name_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    dtype, spoil, message = BAD[kind]
    make = spoilt(70, spoil)
    good = counts if dtype.strip("u").startswith("int") else samples
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "train", replace(SCHEMA, dtype=dtype), lambda rows: make(rows) if 70 in rows else good(rows))
    assert not (tmp_path / "train").exists()
    made(tmp_path / "train", replace(SCHEMA, dtype=dtype), good)


@pytest.mark.parametrize(
    "wrong", [{"dtype": "float64"}, {"compression": "gzip"}, {"scale": 0.0}, {"scale": np.inf}, {"zero": np.nan}]
)
def test_what_the_format_does_not_know_is_no_schema(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        replace(SCHEMA, **wrong)


def test_a_codec_that_is_not_installed_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(ValueError, match="pip install hdf5plugin"):
        made(tmp_path / "train", replace(SCHEMA, compression="lz4"), lambda rows: pytest.fail("was made"))
    assert not (tmp_path / "train").exists()
    made(tmp_path / "train")


def rewritten(path: Path, **attributes: Any) -> None:
    """Change attributes of a shard, its size staying the same."""
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs.modify(name, value)


def line_of(folder: Path) -> dict[str, Any]:
    """What the manifest says of the shard 1, with its size as it is now."""
    return Manifest.read(folder).shards[1] | {"bytes": (folder / "shard-00001.h5").stat().st_size}


SPOILT: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "nothing": (lambda path: None, {}, ""),
    "pixels": (lambda path: flip(path, -3000), {}, ""),
    "version": (lambda path: rewritten(path, format="deeplense-shards/9"), {}, "format deeplense-shards/9"),
    "first version": (lambda path: rewritten(path, format="deeplense-shards/1"), {}, "make the data set again"),
    "schema": (lambda path: rewritten(path, fingerprint="0" * 64), {}, "another data set than the manifest"),
    "offset": (lambda path: None, {"image_offset": 4096}, "image_offset .*, but its manifest has 4096"),
    "compressed": (lambda path: None, {"image_offset": None}, "but its manifest has None"),
    "number": (lambda path: None, {"num_samples": 63}, "num_samples 64, but its manifest has 63"),
    "size": (lambda path: None, {"bytes": 1000}, "its size differs from the manifest"),
    "torn": (lambda path: os.truncate(path, 3000), {}, "is damaged"),
    "no shard": (lambda path: path.write_text("x" * 3000), {}, "is damaged"),
    "gone": (lambda path: path.unlink(), {"bytes": 1000}, "is missing"),
}


def flip(path: Path, place: int) -> None:
    """Change a byte."""
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    path.write_bytes(changed)


@pytest.mark.parametrize("kind", SPOILT)
def test_a_shard_that_is_not_the_one_of_the_manifest_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    made(tmp_path)
    path, (spoil, edit, message) = tmp_path / "shard-00001.h5", SPOILT[kind]
    before = line_of(tmp_path)
    spoil(path)
    line = (line_of(tmp_path) if path.exists() else before) | edit
    if not message:
        check_shard(path, line, SCHEMA)
        return
    with pytest.raises(ValueError, match=f"shard-00001.*{message}"):
        check_shard(path, line, SCHEMA)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\x00", "not valid JSON"),
        ("[]", "is not a manifest"),
        ("{}", "format None"),
        ('{"format": "deeplense-shards/1"}', "reads only deeplense-shards/2; make the data set again"),
        ('{"format": "deeplense-shards/9"}', "reads only deeplense-shards/2"),
    ],
)
def test_a_manifest_of_something_else_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    made(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=f"{MANIFEST}.*{said}"):
        Manifest.read(tmp_path)


def test_what_is_hashed_has_one_spelling() -> None:
    assert canonical({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'


@pytest.mark.parametrize(("unit", "grouped"), [(GROUP_UNIT, True), ("count", False)])
def test_the_number_of_a_group_is_told_from_a_quantity_of_that_name_by_its_unit(unit: str, grouped: bool) -> None:
    schema = replace(SCHEMA, targets={"mass": "kg", GROUP: unit})
    assert schema.grouped is grouped
    assert schema.quantities == (["mass"] if grouped else ["group", "mass"])


def test_every_part_of_a_schema_is_in_its_fingerprint() -> None:
    changes: list[dict[str, Any]] = [{"scale": 2.0}, {"zero": 1.0}, {"compression": "lz4"}, {"dtype": "float16"}]
    schemas = [SCHEMA, *(replace(SCHEMA, **change) for change in changes)]
    assert len({schema.fingerprint for schema in schemas}) == len(schemas)
    assert Schema(**vars(SCHEMA)).fingerprint == SCHEMA.fingerprint
