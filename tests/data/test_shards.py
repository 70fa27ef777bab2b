"""Shards: round trips, writers killed or failing, and what verify finds."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data import building
from deeplense.data.building import Make, build
from deeplense.data.shards import MANIFEST, Manifest, Samples, Schema, shard_ranges
from deeplense.data.verifying import verify
from deeplense.files import TEMPORARY, read_json
from jobs import simulate
from jobs.simulate import make_samples, schema_of

NUM_SAMPLES = 200
SCHEMA = Schema(
    split="train",
    num_samples=NUM_SAMPLES,
    shape=(2, 4, 5),
    dtype="float32",
    bands=("g", "r"),
    unit="counts",
    pixel_scale_arcsec=0.1,
    classes=("yes", "no"),
    targets={"mass": "kg"},
    provenance={"made_by": "a test", "seed": 3},
)


def samples(rows: range, seed: int = 3) -> Samples:
    """Some of an endless row of samples, each a function of its number."""
    images = np.stack([np.random.default_rng((seed, i)).normal(size=SCHEMA.shape) for i in rows])
    numbers = np.arange(rows.start, rows.stop)
    return Samples(images.astype(np.float32), numbers % 2, {"mass": numbers / 2}, [f"id{i}" for i in rows], numbers)


def made(folder: Path, schema: Schema = SCHEMA, make: Make = samples, **settings: int) -> list[int]:
    return list(build(folder, schema, make, **settings))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def spoilt(k: int, spoil: Callable[[Samples], Any]) -> Make:
    """`samples`, with the range that holds sample k spoilt."""
    return lambda rows: spoil(samples(rows)) if k in rows else samples(rows)


def with_pixel(value: float, place: int) -> Callable[[Samples], Samples]:
    def spoil(good: Samples) -> Samples:
        images = good.images.astype(np.float64)
        images[place, 1, 2, 3] = value
        return replace(good, images=images)

    return spoil


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound data set of two splits."""
    made(tmp_path / "data" / "train")
    made(tmp_path / "data" / "test", replace(SCHEMA, split="test"), partial(samples, seed=4))
    return tmp_path / "data"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert made(tmp_path / "train")[-1] == NUM_SAMPLES
    expected = samples(range(NUM_SAMPLES))
    columns: dict[str, list[np.ndarray]] = {}
    for shard in Manifest.read(tmp_path / "train").shards:
        with h5py.File(tmp_path / "train" / shard["file"]) as file:
            for name in ("image", "label", "id", "source_index", "target/mass"):
                columns.setdefault(name, []).append(np.asarray(file[name]))
    found = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.testing.assert_array_equal(found["image"], expected.images)
    np.testing.assert_array_equal(found["label"], expected.labels)
    np.testing.assert_array_equal(found["target/mass"], expected.targets["mass"])
    np.testing.assert_array_equal(found["source_index"], expected.source_index)
    assert [name.decode() for name in found["id"]] == expected.ids


def test_the_manifest_tells_what_the_split_holds(tmp_path: Path) -> None:
    made(tmp_path)
    manifest, images = Manifest.read(tmp_path), samples(range(NUM_SAMPLES)).images.astype(np.float64)
    assert manifest.schema == SCHEMA
    assert manifest.class_counts == {"yes": 100, "no": 100}
    np.testing.assert_allclose(manifest.statistics["mean"], images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(manifest.statistics["std"], images.std((0, 2, 3)), rtol=1e-12)
    assert [shard["num_samples"] for shard in manifest.shards] == [64, 64, 64, 8]
    first = np.fromfile(tmp_path / "shard-00001.h5", "<f4", 40, offset=manifest.shards[1]["image_offset"])
    np.testing.assert_array_equal(first.reshape(SCHEMA.shape), samples(range(64, 65)).images[0])


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


def die(*_: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def build_and_die(folder: str, moment: str) -> None:
    """Build, and be killed at a moment: in `make` of a sample, before a file is renamed, or before the manifest."""
    what, _, number = moment.partition(" ")
    if what == "make":
        made(Path(folder), make=spoilt(int(number), die))
    elif what == "manifest":
        building.manifest_of = die
        made(Path(folder))
    else:
        renames, rename = itertools.count(), Path.replace
        Path.replace = lambda self, target: die() if next(renames) == int(number) else rename(self, target)
        made(Path(folder))


@pytest.mark.parametrize("moment", ["make 0", "make 70", "make 199", "rename 0", "rename 2", "rename 4", "manifest"])
def test_a_killed_writer_leaves_whole_shards_and_is_continued(tmp_path: Path, moment: str) -> None:
    made(tmp_path / "unbroken")
    torn = tmp_path / "torn"
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_shards as t"
    command = [sys.executable, "-c", f"{program}; t.build_and_die({str(torn)!r}, {moment!r})"]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    whole = content(tmp_path / "unbroken")
    left = (
        {name: value for name, value in content(torn).items() if not name.startswith(TEMPORARY)}
        if torn.exists()
        else {}
    )
    assert MANIFEST not in left
    assert left.items() <= whole.items()
    with pytest.raises(ValueError, match="no finished split"):
        Manifest.read(torn)
    assert made(torn)[0] == sum(len(rows) for rows in shard_ranges(SCHEMA)[: len(left)])
    assert content(torn) == whole


def simulated(folder: Path, *, num_workers: int) -> None:
    from deeplense.simulation.populations import Population

    population = Population("Model_III", "noisy", -0.9)
    schema = schema_of(simulate.Settings(output=folder, num_per_class=22), population)
    make = partial(make_samples, population=population, seed=0, split="train")
    made(folder / "train", schema, make, num_workers=num_workers)


def test_the_bytes_do_not_depend_on_the_number_of_writers(tmp_path: Path) -> None:
    simulated(tmp_path / "one", num_workers=1)
    simulated(tmp_path / "two", num_workers=2)
    assert content(tmp_path / "one" / "train") == content(tmp_path / "two" / "train")


@pytest.mark.parametrize(
    "change",
    [{"provenance": {"seed": 4}}, {"num_samples": 100}, {"unit": "Jy"}, {"classes": ("no", "yes")}, {"targets": {}}],
)
def test_other_parameters_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="other parameters"):
        made(tmp_path, replace(SCHEMA, **change))
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="other parameters"):
        made(tmp_path, replace(SCHEMA, **change))
    made(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_pixel(np.nan, 6), "id70: .*not finite"),
        (with_pixel(-np.inf, 6), "id70: .*not finite"),
        (with_pixel(1e39, 6), "id70: .*float32 cannot hold"),
        (lambda good: replace(good, images=good.images[:, :, :3]), r"\(2, 3, 5\) where \(2, 4, 5\)"),
        (lambda good: replace(good, labels=np.where(good.source_index == 70, 2, good.labels)), "id70: label 2"),
        (lambda good: replace(good, labels=np.where(good.source_index == 70, -1, good.labels)), "id70: label -1"),
    ],
    ids=["nan", "infinite", "beyond float32", "shape", "label above", "label below"],
)
def test_bad_samples_are_refused_by_name_and_nothing_is_left(
    tmp_path: Path, spoil: Callable[[Samples], Samples], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "train", make=spoilt(70, spoil))
    assert not (tmp_path / "train").exists()


def test_a_sound_data_set_has_no_problems(dataset: Path) -> None:
    assert verify(dataset) == []


@pytest.mark.parametrize("place", [0.0, 0.001, 0.5, 0.9, 1.0])
def test_verify_names_a_shard_with_a_flipped_byte(dataset: Path, place: float) -> None:
    path = dataset / "train" / "shard-00001.h5"
    damaged = bytearray(path.read_bytes())
    damaged[int(place * (len(damaged) - 1))] ^= 1
    path.write_bytes(damaged)
    (problem,) = verify(dataset)
    assert str(path) in problem
    assert "checksum" in problem


def test_verify_names_a_truncated_a_missing_and_a_stray_shard(dataset: Path) -> None:
    truncated, missing, stray = (dataset / "train" / f"shard-0000{k}.h5" for k in (0, 2, 7))
    os.truncate(truncated, truncated.stat().st_size - 1)
    missing.unlink()
    shutil.copy(dataset / "test" / "shard-00001.h5", stray)
    problems = verify(dataset)
    assert len(problems) == 3
    for path, word in ((truncated, "bytes"), (missing, "missing"), (stray, "not in the manifest")):
        assert any(str(path) in problem and word in problem for problem in problems)


def test_the_advice_of_verify_mends_a_damaged_shard(dataset: Path) -> None:
    before = content(dataset / "train")
    os.truncate(dataset / "train" / "shard-00001.h5", 100)
    for name in ("shard-00001.h5", MANIFEST):
        (dataset / "train" / name).unlink()
    assert made(dataset / "train")[0] == NUM_SAMPLES - 64
    assert content(dataset / "train") == before


@pytest.mark.parametrize(
    "edit", [{"class_counts": {"yes": 200, "no": 0}}, {"statistics": {}}, {"dataset_id": "0" * 64}]
)
def test_verify_finds_an_edited_manifest(dataset: Path, edit: dict[str, Any]) -> None:
    path = dataset / "train" / MANIFEST
    path.write_text(json.dumps(read_json(path) | edit))
    (problem,) = verify(dataset)
    assert str(path) in problem
    assert "own hash" in problem


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "deeplense-shards/9"}', "\x00"])
def test_a_manifest_of_something_else_is_refused_by_name(dataset: Path, text: str) -> None:
    (dataset / "train" / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=MANIFEST):
        Manifest.read(dataset / "train")


def test_verify_finds_an_image_in_two_splits(dataset: Path) -> None:
    def leaking(rows: range) -> Samples:
        good = samples(rows, seed=5)
        for k in set(rows) & {10, 150}:
            good.images[k - rows.start] = samples(range(3, 4)).images[0]
        return replace(good, ids=[f"val{i}" for i in rows])

    made(dataset / "val", replace(SCHEMA, split="val"), leaking)
    (problem,) = verify(dataset)
    assert "the same image" in problem
    assert "id3" in problem
    assert "val1" in problem
