"""Benchmarks: what is compared is the same work, what is missing is named, and nothing is left behind."""

import json
import math
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import command_line
from jobs.benchmark import work as benchmark_work
from jobs.benchmark.data import (
    CODECS,
    COLD,
    DTYPES,
    WARM,
    Entry,
    epoch_of,
    measure,
    opened,
    require_same_images,
    time_epoch,
)
from jobs.benchmark.readers.memory import anonymous_bytes, memory_rows
from jobs.benchmark.readers.own import OWN, REFERENCE, Data, Epochs, Way, make_data
from jobs.benchmark.readers.peers import FILES
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, Timing, compare, cpu_seconds, row_of, table_of, timed

WAYS = {f"{way.name}, {way.variant}": way for way in [*WARM, *COLD, *CODECS]}
PEERS = {"webdataset": "webdataset", "litdata": "litdata", "streaming": "MosaicML streaming"}


def data_in(folder: Path, **changes: Any) -> Data:
    """Ten blocks of images of 8 x 8 pixels, the last not full, in a number that no batch divides."""
    usual = {"num_images": 600, "image_size": 8, "dtype": "float32", "batch_size": 64}
    data = Data(folder=folder / "data", **(usual | changes))
    make_data(data)
    return data


def settings_in(folder: Path, **changes: Any) -> Settings:
    """The least work."""
    return Settings(what="data", folder=folder, num_images=20, image_size=8, batch_size=8, rounds=1, **changes)


def entry_of(way: Way, data: Data, *, cold: bool = False) -> Entry:
    """A way with its images written."""
    pytest.importorskip(way.needs or "numpy")
    entry = Entry(title=way.name, way=way, data=data, cold=cold)
    way.write(data, entry.folder)
    return entry


def test_a_ratio_is_formed_in_each_round() -> None:
    def timing(wall_s: float, cpu_s: float) -> Timing:
        return Timing(units=100, wall_s=wall_s, cpu_s=cpu_s)

    # The machine is ten times slower in the second round, and ours twice as fast in all.
    pairs = [(timing(1, 4), timing(2, 2)), (timing(10, 40), timing(20, 20)), (timing(2, 8), timing(4, 4))]
    row = row_of("x", pairs, other_name="y", unit="GB/s")
    assert (row.ratio, row.ratio_min, row.ratio_max, row.cpu_ratio) == (2, 2, 2, 0.5)
    assert (row.ours, row.other) == (50, 25)


def test_two_ways_are_timed_in_turns_after_a_warm_up() -> None:
    calls: list[str] = []

    def work(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or 7

    row = compare("x", work("ours"), work("other"), other_name="other", rounds=3)
    assert calls == ["ours", "other"] * 4
    assert row.unit == "images/s"
    assert row.ratio_min is not None
    assert row.ratio_max is not None
    assert row.ratio_min <= row.ratio_max


def burn(seconds: float) -> None:
    """Use a processor."""
    while time.process_time() < seconds:
        pass


def test_the_processor_time_of_other_processes_counts_while_they_live_and_after() -> None:
    child = get_context("fork").Process(target=burn, args=(1e6,))
    before = cpu_seconds()
    child.start()
    try:
        while cpu_seconds() - before < 0.2:
            assert child.is_alive()
    finally:
        child.kill()
        child.join()
    assert cpu_seconds() - before >= 0.2


def test_waiting_is_no_processor_time() -> None:
    idle = timed(lambda: time.sleep(0.2) or 1)
    assert idle.wall_s >= 0.2 > 2 * idle.cpu_s


def test_a_table_has_its_columns_below_each_other_and_a_note_for_what_is_missing() -> None:
    numbers = {"other_name": "y", "ratio": 1.0, "ratio_min": 0.5, "ratio_max": 2.0, "cpu_ratio": 0.25}
    rows = [
        Row(what="a", unit="images/s", ours=123456.7, other=1.5, **numbers),
        Row(
            what="a longer one", unit="s", ours=0.0123, other=12.0, **numbers, extra={"write_s": 3.0}, note="2 workers"
        ),
        Row(what="b", note="not installed; pip install b"),
    ]
    head, first, second, missing = table_of(rows)
    assert first.split() == ["a", "images/s", "123,457", "1.5", "y", "1", "[0.5,", "2]", "0.25"]
    assert second.endswith("  write_s 3, 2 workers")
    assert missing == "b             not installed; pip install b"
    assert len({line.index("y") for line in (first, second)}) == 1
    assert head.index("ours") + len("ours") == first.index("123,457") + len("123,457") == second.index("0.0123") + 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_images_are_all_different_and_not_only_noise(dtype: str, tmp_path: Path) -> None:
    images = data_in(tmp_path, dtype=dtype, image_size=32).images
    assert images.dtype == dtype
    assert images.shape == (600, 1, 32, 32)
    assert len(np.unique(images, axis=0)) == 600
    peak = images.max(axis=(1, 2, 3)) / (255 if dtype == "uint8" else 1)
    assert ((peak > 0.5) & (peak < 1.2)).all()


@pytest.mark.parametrize("name", WAYS)
def test_each_way_delivers_each_image_once_an_epoch(name: str, tmp_path: Path) -> None:
    data, way = data_in(tmp_path), WAYS[name]
    entry = entry_of(way, data)
    batches = list(epoch_of(entry, opened(entry), 0))
    assert {batch.dtype for batch in batches} == {torch.float32}
    delivered = torch.cat(batches).numpy()[: data.num_images]
    assert len(batches) == data.num_batches or "workers" in way.variant
    assert sorted(image.tobytes() for image in delivered) == sorted(image.tobytes() for image in data.images)
    assert way == REFERENCE or not np.array_equal(delivered, data.images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.num_workers])
def test_each_way_delivers_other_types_as_float32(name: str, dtype: str, tmp_path: Path) -> None:
    data = data_in(tmp_path, dtype=dtype)
    entry = entry_of(WAYS[name], data)
    require_same_images(entry)
    epochs = opened(entry)
    assert {batch.dtype for batch in epoch_of(entry, epochs, 1)} == {torch.float32}


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.num_workers])
def test_each_way_has_another_order_in_another_epoch(name: str, tmp_path: Path) -> None:
    entry = entry_of(WAYS[name], data_in(tmp_path, num_images=640))
    epochs = opened(entry)
    first, second = (torch.cat(list(epoch_of(entry, epochs, k))) for k in range(2))
    assert sorted(image.numpy().tobytes() for image in first) == sorted(image.numpy().tobytes() for image in second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("wrong", ["twice", "changed", "left out"])
def test_a_way_that_delivers_other_images_is_refused(wrong: str, tmp_path: Path) -> None:
    def read(data: Data, folder: Path, _: int) -> Epochs:
        images = np.array(data.images)
        if wrong == "twice":
            images[3] = images[4]
        elif wrong == "changed":
            images[3, 0, 2, 2] = np.nextafter(images[3, 0, 2, 2], np.float32(1))
        kept = images[: 599 if wrong == "left out" else 600]
        return lambda epoch: iter([torch.from_numpy(kept)])

    data = data_in(tmp_path)
    require_same_images(entry_of(REFERENCE, data))
    way = replace(REFERENCE, name="wrong", stored="wrong", read=read)
    with pytest.raises(RuntimeError, match="different images than were written"):
        require_same_images(entry_of(way, data))


def is_in_memory(folder: Path) -> bool:
    """Whether a file system has no disk below it."""
    told = subprocess.run(["stat", "--file-system", "--format=%T", folder], capture_output=True, text=True, check=True)
    return told.stdout.strip() in ("tmpfs", "ramfs")


@pytest.mark.parametrize("way", [REFERENCE, OWN, FILES], ids=lambda way: way.name)
def test_what_was_dropped_comes_from_the_disk(way: Way, on_disk: Path) -> None:
    if is_in_memory(on_disk):
        pytest.skip(f"{on_disk} is no disk")
    entry = entry_of(way, data_in(on_disk, image_size=64))
    os.sync()
    assert time_epoch(replace(entry, cold=True), 1).disk_bytes >= entry.data.num_bytes
    assert time_epoch(entry, 1).disk_bytes < 0.1 * entry.data.num_bytes


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a whole benchmark of the least size writes, and what its folder holds then."""
    folder, output = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("output") / "numbers.json"
    assert benchmark_work.run(settings_in(folder, output=output)) == 0
    return json.loads(output.read_text()) | {"left": list(folder.iterdir())}


def test_a_benchmark_of_reading_measures_all_that_is_installed(told: dict[str, Any]) -> None:
    names = [row["what"] for row in told["rows"]]
    assert len(set(names)) == len(names)
    assert {name.removeprefix("warm: ") for name in names if name.startswith("warm: ")} == {way.name for way in WARM}
    assert {f"stored as {name}" for name in (*DTYPES, "lz4", "zstd")} | {f"cold: {way.name}" for way in COLD} < set(
        names
    )
    mixing = [row for row in told["rows"] if row["what"].startswith("variance: ")]
    assert [row["unit"] for row in mixing] == ["x chance"] * 3
    assert all(row["ours"] > 0 and row["extra"]["store_sorted"] > 0 for row in mixing)
    for row in [row for row in told["rows"] if row not in mixing]:
        if row["ours"] is None:
            assert "not installed" in row["note"]
            continue
        numbers = [row[name] for name in ("ours", "other", "ratio", "ratio_min", "ratio_max", "cpu_ratio")]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert (row["unit"], row["other_name"]) == ("images/s", REFERENCE.name)
        assert set(row["extra"]) == ({"from_disk"} if row["what"].startswith("cold") else {"stored", "write_s"})


def test_the_circumstances_of_a_benchmark_are_told(told: dict[str, Any]) -> None:
    assert told["settings"]["num_images"] == 20
    assert told["num_cores"] >= 1
    assert len(told["load_average_before"]) == len(told["load_average_after"]) == 3
    assert told["seconds"] > 0
    assert told["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "webdataset" in told["packages"]


def test_a_benchmark_leaves_nothing_in_its_folder(told: dict[str, Any]) -> None:
    assert told["left"] == []


@pytest.mark.parametrize("module", PEERS)
def test_a_package_that_is_not_installed_is_named_and_how_to_get_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("jobs.benchmark.data.WARM", [way for way in WARM if way.needs == module or way == REFERENCE])
    monkeypatch.setattr("jobs.benchmark.data.CODECS", [])
    rows = {row.what: row for row in measure_data_in(tmp_path)}
    assert rows[f"warm: {PEERS[module]}"].ours is None
    assert "not installed" in rows[f"warm: {PEERS[module]}"].note
    assert "pip install" in rows[f"warm: {PEERS[module]}"].note
    assert rows["warm: numpy memmap"].ours


def measure_data_in(folder: Path) -> list[Row]:
    """The rows of the least work; nothing is left in the folder."""
    rows = measure(settings_in(folder))
    assert list(folder.iterdir()) == []
    return rows


@pytest.mark.parametrize("where", ["write", "read"])
def test_nothing_is_left_after_an_error_in_another_package(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: Data, folder: Path, *_: int) -> Any:
        raise OSError("the other package gave up")

    failing = replace(FILES, name="failing", stored="failing", **{where: fail})
    monkeypatch.setattr("jobs.benchmark.data.WARM", [REFERENCE, FILES, failing])
    with pytest.raises(OSError, match="gave up"):
        measure(settings_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are needed; give a --folder"):
        measure(replace(settings_in(tmp_path), num_images=10**9, image_size=1000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((name, "-1") for name in ("rounds", "num_images", "batch_size", "image_size")),
        ("rounds", "0"),
        ("dtype", "int64"),
        ("folder", "/nowhere/at/all"),
    ],
)
def test_bad_settings_are_refused(setting: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.parse("benchmark", ["data", f"--{setting}={value}"])
    assert setting in capsys.readouterr().err


def test_memory_grows_by_what_is_kept_of_each_image(tmp_path: Path) -> None:
    few, many = memory_rows(tmp_path, batch_size=8, num_images=(1000, 201_000))
    assert few.unit == many.unit == "MB"
    assert few.ours is not None
    # A label alone has 8 bytes; the pixels have 16 more, which a reader does not keep.
    assert 8 <= many.extra["bytes_per_image"] < 500
    assert many.ours == pytest.approx(few.ours + 0.2 * many.extra["bytes_per_image"])


def test_anonymous_memory_is_what_no_file_holds(tmp_path: Path) -> None:
    np.save(tmp_path / "file.npy", np.ones(10**7))
    before = anonymous_bytes()
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    assert mapped.sum() == 10**7
    assert anonymous_bytes() - before < 10**7
    # malloc may give memory that this process had before.
    with mmap.mmap(-1, 8 * 10**7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as made:
        made.write(b"1" * len(made))
        assert anonymous_bytes() - before > 7 * 10**7
