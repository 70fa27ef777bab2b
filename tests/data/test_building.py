"""Building: writers killed or failing, several at a time, and parts that know nothing of one another."""

import itertools
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import CONTEXT, start_fork_server
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data import building
from deeplense.data.building import Make, build_part, complete, missing_shards, num_samples_of, shards_of
from deeplense.data.shards import MANIFEST, Manifest, Samples, Schema, shard_ranges
from deeplense.files import TEMPORARY
from jobs.simulate import settings as simulate_settings
from jobs.simulate.work import make_samples, schema_of
from tests.data.made_up import NUM_SAMPLES, SCHEMA, content, made, samples, spoilt

ROOT = Path(__file__).parents[2]


def made_part(folder: Path, part: tuple[int, int], schema: Schema = SCHEMA, make: Make = samples) -> int:
    """One part of a split, as a job makes it; gives the number of shards that are missing then."""
    list(build_part(folder, schema, make, part=part))
    return complete({folder: schema})


def die(*_: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str) -> Make:
    """Be killed at a moment: in `make` of a sample, before a file is renamed, or before the manifest; gives `make`."""
    what, _, number = moment.partition(" ")
    if what == "make":
        return spoilt(int(number), die)
    if what == "manifest":
        building.manifest_of = die
    else:
        renames, rename = itertools.count(), Path.replace
        Path.replace = lambda self, target: die() if next(renames) == int(number) else rename(self, target)
    return samples


def build_and_die(folder: str, moment: str) -> None:
    made(Path(folder), make=die_at(moment))


def part_and_die(folder: str, part: tuple[int, int], moment: str) -> None:
    made_part(Path(folder), part, make=die_at(moment))


def killed(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a process that is killed in it."""
    start_fork_server()
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def whole_files(folder: Path) -> dict[str, bytes]:
    """All that writers have finished."""
    found = content(folder) if folder.exists() else {}
    return {name: value for name, value in found.items() if not name.startswith(TEMPORARY)}


@pytest.mark.parametrize("moment", ["make 0", "make 70", "make 199", "rename 0", "rename 2", "rename 4", "manifest"])
def test_a_killed_writer_leaves_whole_shards_and_is_continued(tmp_path: Path, moment: str) -> None:
    made(tmp_path / "unbroken")
    torn = tmp_path / "torn"
    killed(build_and_die, str(torn), moment)
    left, whole = whole_files(torn), content(tmp_path / "unbroken")
    assert MANIFEST not in left
    assert left.items() <= whole.items()
    with pytest.raises(ValueError, match="not a finished split"):
        Manifest.read(torn)
    assert made(torn)[0] == sum(len(rows) for rows in shard_ranges(SCHEMA)[: len(left)])
    assert content(torn) == whole


def simulated(folder: Path, *, num_workers: int) -> None:
    from deeplense.simulation.populations import Population

    population = Population("Model_III", "noisy", -0.9)
    schema = schema_of(simulate_settings.Settings(output=folder, num_per_class=22), population)
    make = partial(make_samples, population=population, seed=0, split="train")
    made(folder / "train", schema, make, num_workers=num_workers)


def test_the_bytes_do_not_depend_on_the_number_of_writers(tmp_path: Path) -> None:
    simulated(tmp_path / "one", num_workers=1)
    simulated(tmp_path / "two", num_workers=2)
    assert content(tmp_path / "one" / "train") == content(tmp_path / "two" / "train")


def test_a_writer_holds_one_shard_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def watched(rows: range) -> Samples:
        assert not any(images() is not None for images in alive)
        good = samples(rows)
        alive.append(weakref.ref(good.images))
        return good

    made(tmp_path, make=watched)
    assert len(alive) == 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_they_work_for(tmp_path: Path, number: signal.Signals) -> None:
    noted = tmp_path / "notes"
    noted.mkdir()
    call = f"t.made(t.Path({str(tmp_path / 'train')!r}), make=t.never, num_workers=2)"
    program, variables = f"import tests.data.made_up as t; {call}", os.environ | {"NOTES": str(noted)}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=variables) as main:
        wait_for(lambda: len(list(noted.iterdir())) == 2)
        main.send_signal(number)
    workers = [Path("/proc") / path.name for path in noted.iterdir()]
    wait_for(lambda: not any(worker.exists() for worker in workers))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": {"seed": 4}},
        {"num_samples": 100},
        {"unit": "Jy"},
        {"classes": ("no", "yes")},
        {"targets": {}},
        {"scale": 2.0},
        {"compression": "lz4"},
        {"dtype": "float16"},
    ],
)
def test_other_parameters_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path)
    before = content(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="parameters that differ"):
            made(tmp_path, replace(SCHEMA, **change))
        with pytest.raises(ValueError, match="parameters that differ"):
            made_part(tmp_path, (2, 2), replace(SCHEMA, **change))
        (tmp_path / MANIFEST).unlink(missing_ok=True)
    made(tmp_path)
    assert content(tmp_path) == before


def test_shards_of_the_first_version_are_refused_and_kept(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with h5py.File(tmp_path / "shard-00002.h5", "r+") as file:
        file.attrs.modify("format", "deeplense-shards/1")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"shard-00002.h5 has the format deeplense-shards/1.*make the data set again"):
        made(tmp_path)
    assert content(tmp_path) == before


@settings(deadline=None, max_examples=100, derandomize=True)
@given(num_samples=st.integers(1, 10**6), size=st.integers(1, 300), num_parts=st.integers(1, 60))
def test_every_shard_belongs_to_exactly_one_part(num_samples: int, size: int, num_parts: int) -> None:
    schema = replace(SCHEMA, num_samples=num_samples, shape=(2, size, size))
    parts = [(k, num_parts) for k in range(1, num_parts + 1)]
    owned = Counter(number for part in parts for number in shards_of(schema, part))
    assert owned == Counter(range(len(shard_ranges(schema))))
    assert sum(num_samples_of(schema, part) for part in parts) == num_samples
    sizes = [len(shards_of(schema, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("order", [*itertools.permutations((1, 2, 3)), (5, 4, 1, 2, 3)])
def test_parts_in_any_order_make_the_bytes_of_one_call_and_the_last_completes_them(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    made(tmp_path / "one")
    whole, count = content(tmp_path / "one"), len(order)
    for done, number in enumerate(order, start=1):
        missing = made_part(tmp_path / "parts", (number, count))
        found = content(tmp_path / "parts") if (tmp_path / "parts").exists() else {}
        assert missing == len(whole) - 1 - len([name for name in found if name != MANIFEST])
        assert (MANIFEST in found) == (missing == 0) == (set(range(1, 5)) <= {*order[:done], 4 if count == 3 else 0})
    assert content(tmp_path / "parts") == whole


@pytest.mark.parametrize("moment", ["make 0", "make 130", "rename 0", "rename 1"])
def test_a_killed_part_keeps_its_shards_leaves_those_of_others_alone_and_is_finished_by_itself(
    tmp_path: Path, moment: str
) -> None:
    made(tmp_path / "one")
    whole, parts = content(tmp_path / "one"), tmp_path / "parts"
    made_part(parts, (2, 2))
    others = whole_files(parts)
    killed(part_and_die, str(parts), (1, 2), moment)
    left = whole_files(parts)
    assert others.items() <= left.items() <= whole.items()
    assert MANIFEST not in left
    foreign = parts / f"{TEMPORARY}shard-00001.h5-00c0ffee"
    foreign.write_text("another part writes here")
    assert made_part(parts, (1, 2)) == 0
    assert content(parts) == whole | {foreign.name: b"another part writes here"}


def test_a_part_killed_before_the_manifest_is_finished_by_a_call_without_part(tmp_path: Path) -> None:
    made(tmp_path / "one")
    made_part(tmp_path / "parts", (2, 2))
    killed(part_and_die, str(tmp_path / "parts"), (1, 2), "rename 2")
    assert missing_shards(tmp_path / "parts", SCHEMA) == []
    assert made(tmp_path / "parts") == [NUM_SAMPLES]
    assert content(tmp_path / "parts") == content(tmp_path / "one")


def test_two_parts_that_complete_at_the_same_time_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "one")
    for part in ((1, 2), (2, 2)):
        list(build_part(tmp_path / "parts", SCHEMA, samples, part=part))
    together, manifest_of = Barrier(2), building.manifest_of

    def at_once(folder: Path, schema: Schema) -> dict[str, Any]:
        together.wait(30)
        told = manifest_of(folder, schema)
        together.wait(30)
        return told

    monkeypatch.setattr(building, "manifest_of", at_once)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(complete, [{tmp_path / "parts": SCHEMA}] * 2)) == [0, 0]
    assert content(tmp_path / "parts") == content(tmp_path / "one")


def test_a_bad_sample_in_one_part_removes_nothing_and_there_is_no_manifest_until_it_is_mended(tmp_path: Path) -> None:
    made(tmp_path / "one")
    parts = tmp_path / "parts"

    def nan(good: Samples) -> Samples:
        return replace(good, images=np.full_like(good.images, np.nan))

    made_part(parts, (1, 2))
    with pytest.raises(ValueError, match="not finite"):
        made_part(parts, (2, 2), make=spoilt(199, nan))
    assert missing_shards(parts, SCHEMA) == [3]
    assert made_part(parts, (1, 2)) == 1
    assert MANIFEST not in content(parts)
    made_part(parts, (2, 2))
    assert content(parts) == content(tmp_path / "one")


def test_no_split_is_completed_while_a_shard_of_another_is_missing(tmp_path: Path) -> None:
    splits = {tmp_path / name: replace(SCHEMA, split=name) for name in ("train", "test")}
    for folder, schema in splits.items():
        list(build_part(folder, schema, samples, part=(1, 1)))
    (tmp_path / "test" / "shard-00003.h5").unlink()
    assert complete(splits) == 1
    assert not list(tmp_path.rglob(MANIFEST))
    made_part(tmp_path / "test", (1, 1), splits[tmp_path / "test"])
    assert complete(splits) == 0
    assert len(list(tmp_path.rglob(MANIFEST))) == 2


def test_a_shard_of_something_else_is_not_taken_into_a_manifest(tmp_path: Path) -> None:
    list(build_part(tmp_path / "parts", SCHEMA, samples, part=(1, 2)))
    list(build_part(tmp_path / "parts", replace(SCHEMA, provenance={"seed": 4}), samples, part=(2, 2)))
    with pytest.raises(ValueError, match=r"shard-00001.h5 was made with parameters that differ"):
        complete({tmp_path / "parts": SCHEMA})
    assert MANIFEST not in content(tmp_path / "parts")


def test_the_manifest_is_made_without_the_images_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(build_part(tmp_path, SCHEMA, samples, part=(1, 1)))
    read, columns = h5py.Dataset.__getitem__, []

    def noted(dataset: h5py.Dataset, *arguments: Any, **settings: Any) -> Any:
        columns.append(dataset.name)
        return read(dataset, *arguments, **settings)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", noted)
    monkeypatch.setattr(h5py.Dataset, "__array__", lambda dataset, *_, **__: noted(dataset, ()))
    assert complete({tmp_path: SCHEMA}) == 0
    assert "/label" in columns
    assert "/image" not in columns


def test_a_writer_whose_file_another_removes_says_so_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(rows: range) -> Samples:
        if rows.start:
            monkeypatch.setattr("deeplense.files.sync_tree", lambda path: path.unlink() if path.exists() else None)
        return samples(rows)

    with pytest.raises(ValueError, match=r"shard-00001\.h5 was removed while it was being written: another process"):
        made(tmp_path / "train", make=disturbed)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["shard-00000.h5"]
    monkeypatch.undo()
    assert made(tmp_path / "train")[0] == 64
