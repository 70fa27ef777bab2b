"""Verify: a sound data set has no problems, and each thing that may be wrong is named."""

import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplense.data.shards import COMPRESSIONS, MANIFEST, Manifest, Samples
from deeplense.data.verifying import MOST_TOLD, verify
from deeplense.files import checksum, read_json, write_json
from tests.data.made_up import NUM_SAMPLES, SCHEMA, content, counts, forge, made, samples


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound data set of two splits."""
    made(tmp_path / "data" / "train")
    made(tmp_path / "data" / "test", replace(SCHEMA, split="test"), partial(samples, seed=4))
    return tmp_path / "data"


def test_a_sound_data_set_has_no_problems(dataset: Path) -> None:
    assert verify(dataset) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("place", [0.0, 0.001, 0.5, 0.9, 1.0])
def test_a_shard_with_a_flipped_byte_is_named(tmp_path: Path, place: float, compression: str) -> None:
    made(tmp_path, replace(SCHEMA, compression=compression))
    path = tmp_path / "shard-00001.h5"
    damaged = bytearray(path.read_bytes())
    damaged[int(place * (len(damaged) - 1))] ^= 1
    path.write_bytes(damaged)
    (problem,) = verify(tmp_path)
    assert str(path) in problem
    assert "checksum" in problem


def test_a_truncated_a_missing_and_a_stray_shard_are_named(dataset: Path) -> None:
    truncated, missing, stray = (dataset / "train" / f"shard-0000{k}.h5" for k in (0, 2, 7))
    os.truncate(truncated, truncated.stat().st_size - 1)
    missing.unlink()
    shutil.copy(dataset / "test" / "shard-00001.h5", stray)
    problems = verify(dataset)
    assert len(problems) == 3
    for path, word in ((truncated, "bytes"), (missing, "missing"), (stray, "not in the manifest")):
        assert any(str(path) in problem and word in problem for problem in problems)


def test_the_advice_mends_a_damaged_shard(dataset: Path) -> None:
    before = content(dataset / "train")
    os.truncate(dataset / "train" / "shard-00001.h5", 100)
    for name in ("shard-00001.h5", MANIFEST):
        (dataset / "train" / name).unlink()
    assert made(dataset / "train")[0] == NUM_SAMPLES - 64
    assert content(dataset / "train") == before


@pytest.mark.parametrize(
    "edit", [{"class_counts": {"yes": 200, "no": 0}}, {"statistics": {}}, {"dataset_id": "0" * 64}]
)
def test_an_edited_manifest_is_found(dataset: Path, edit: dict[str, Any]) -> None:
    path = dataset / "train" / MANIFEST
    path.write_text(json_with(path, edit))
    (problem,) = verify(dataset)
    assert str(path) in problem
    assert "own hash" in problem


def json_with(path: Path, edit: dict[str, Any]) -> str:
    """The text of a JSON file with some values changed."""
    write_json(path, read_json(path) | edit)
    return path.read_text()


def unfinished(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def of_first_version(folder: Path) -> None:
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | {"format": "deeplense-shards/1"})


def with_foreign_shard(folder: Path) -> None:
    """A shard of the other split in the place of one, and a manifest that has its checksum."""
    path = folder / "shard-00001.h5"
    shutil.copy(folder.parent / "test" / "shard-00001.h5", path)
    change = {"xxh3_128": checksum(path), "bytes": path.stat().st_size}
    forge(folder, lambda told: told["shards"][1].update(change))


def counting(classes: dict[str, int]) -> Callable[[Path], None]:
    return lambda folder: forge(folder, lambda told: told.update(class_counts=classes))


@pytest.mark.parametrize(
    ("spoil", "named", "said"),
    [
        (unfinished, "train", "not a finished split"),
        (of_first_version, MANIFEST, "format deeplense-shards/1"),
        (with_foreign_shard, "shard-00001.h5", "another data set"),
        (counting({"yes": 99, "no": 101}), "train", r"'yes': 99.* but the shards have \{'yes': 100, 'no': 100\}"),
        (counting({"yes": 100, "no": 99}), "train", "'no': 99"),
        (counting({"yes": 100, "no": 101}), "train", "'no': 101"),
        (
            lambda folder: forge(folder, lambda told: told["shards"][2].update(image_offset=8)),
            "shard-00002.h5",
            "its manifest has 8",
        ),
        (
            lambda folder: forge(folder, lambda told: told["shards"][3].update(num_samples=9)),
            "shard-00003.h5",
            "with 9 samples instead",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_its_shards_is_found(
    dataset: Path, spoil: Callable[[Path], None], named: str, said: str
) -> None:
    spoil(dataset / "train")
    with pytest.raises(AssertionError, match=f"{named}.*{said}"):
        assert verify(dataset) == [], "\n".join(verify(dataset))
    assert len(verify(dataset)) == 1


def changed(rows: range, seed: int, change: Callable[[Samples, int], Samples], places: set[int]) -> Samples:
    """Samples of which some are changed, given where they stand."""
    good = samples(rows, seed)
    for k in places & set(rows):
        good = change(good, k - rows.start)
    return good


def with_name(good: Samples, place: int) -> Samples:
    return replace(good, ids=[*good.ids[:place], "twin", *good.ids[place + 1 :]])


def with_source(good: Samples, place: int) -> Samples:
    return replace(good, source_index=np.where(np.arange(len(good.ids)) == place, -5, good.source_index))


@pytest.mark.parametrize(
    ("change", "said"),
    [(with_name, "twin and twin have the same id"), (with_source, "id20 and id190 have the same source_index")],
)
def test_samples_that_are_there_twice_are_named(
    tmp_path: Path, change: Callable[[Samples, int], Samples], said: str
) -> None:
    made(tmp_path, make=partial(changed, seed=3, change=change, places={20, 190}))
    assert verify(tmp_path) == [f"{tmp_path}: {said}"]


def with_image_of_3(good: Samples, place: int) -> Samples:
    good.images[place], good.labels[place] = samples(range(3, 4)).images[0], samples(range(3, 4)).labels[0]
    return good


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_image_in_two_splits_is_found_compressed_or_not(dataset: Path, compression: str) -> None:
    make = partial(changed, seed=5, change=with_image_of_3, places={10, 150})
    schema = replace(SCHEMA, split="val", compression=compression)
    made(dataset / "val", schema, lambda rows: replace(make(rows), ids=[f"val{i}" for i in rows]))
    (problem,) = verify(dataset)
    assert "the same image" in problem
    assert "id3" in problem
    assert "val1" in problem


def test_equal_values_of_other_types_are_the_same_images_and_many_are_told_in_few_lines(tmp_path: Path) -> None:
    made(tmp_path / "train", replace(SCHEMA, dtype="uint8", scale=0.5, zero=3), counts)
    halved = replace(SCHEMA, split="test", dtype="float16")
    made(tmp_path / "test", halved, lambda rows: replace(counts(rows), images=counts(rows).images / 2 + 3))
    problems = verify(tmp_path)
    assert len(problems) == MOST_TOLD + 1
    assert all("a leak between splits" in problem for problem in problems[:-1])
    assert problems[-1] == f"... and {NUM_SAMPLES - MOST_TOLD} more of this kind"


def test_images_are_read_some_at_a_time(tmp_path: Path) -> None:
    schema = replace(SCHEMA, num_samples=2048, shape=(1, 64, 64), bands=("r",), dtype="uint8", targets={})

    def flat(rows: range) -> Samples:
        numbers = np.array([k % 256 for k in rows])[:, None, None, None]
        return replace(samples(rows), images=np.broadcast_to(numbers, (len(rows), 1, 64, 64)), targets={})

    made(tmp_path, schema, flat)
    assert [shard["num_samples"] for shard in Manifest.read(tmp_path).shards] == [256] * 8
    tracemalloc.start()
    assert verify(tmp_path) == []
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    shard_as_float64 = 256 * 64 * 64 * 8
    assert most < shard_as_float64, most


def with_label(good: Samples, place: int) -> Samples:
    """The same image at two places with different labels."""
    good = with_image_of_3(good, place)
    return replace(good, labels=np.where(np.arange(len(good.ids)) == place, place % 2, good.labels))


@pytest.mark.parametrize("places", [{10, 151}, {10, 20, 151}])
def test_equal_images_with_different_labels_are_named_with_both_labels(tmp_path: Path, places: set[int]) -> None:
    made(tmp_path, make=partial(changed, seed=5, change=with_label, places=places))
    (problem,) = verify(tmp_path)
    assert "id151 (no)" in problem
    assert "(yes)" in problem
    assert "with a different label" in problem


def test_labels_of_equal_images_are_compared_by_the_names_of_their_classes(tmp_path: Path) -> None:
    made(tmp_path / "train")
    swapped = replace(SCHEMA, split="test", classes=("no", "yes"))
    made(tmp_path / "test", swapped, lambda rows: replace(samples(rows), labels=1 - samples(rows).labels))
    assert not any("a different label" in problem for problem in verify(tmp_path))
    made(tmp_path / "val", replace(swapped, split="val"))
    told = [problem for problem in verify(tmp_path) if "a different label" in problem]
    assert len(told) == MOST_TOLD


def test_equal_images_of_which_one_has_no_label_do_not_contradict(tmp_path: Path) -> None:
    made(tmp_path / "train")
    unlabelled = replace(SCHEMA, split="test", classes=())
    made(tmp_path / "test", unlabelled, lambda rows: replace(samples(rows), labels=np.full(len(rows), -1)))
    assert not any("a different label" in problem for problem in verify(tmp_path))
