"""Checksums at opening: every shard is compared once, is remembered while it stays the same, and never longer."""

import fcntl
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deeplense.data import remembered
from deeplense.data.dataset import Split
from deeplense.data.shards import Manifest
from deeplense.files import checksum
from tests.data.made_up import SCHEMA, forge, made


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A split of four shards; what is read is settled at once, and remembered below the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SECONDS_TO_SETTLE", -60.0)
    made(tmp_path / "data" / "train")
    return tmp_path / "data" / "train"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are read, as they are."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return checksum(path)

    monkeypatch.setattr(remembered, "checksum", noted)
    return names


def flip(path: Path, place: int = -3000) -> None:
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    path.write_bytes(changed)


def test_every_shard_is_read_once(split: Path, read: list[str]) -> None:
    Split(split)
    assert sorted(read) == [f"shard-0000{k}.h5" for k in range(4)]
    Split(split)
    Split(split.parent / "." / "train")
    assert len(read) == 4


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_flipped_bit_is_found_whether_the_shard_was_right_before_or_not(
    split: Path, tmp_path: Path, compression: str
) -> None:
    folder = tmp_path / "other" / "train"
    made(folder, replace(SCHEMA, compression=compression))
    for was_open in (False, True):
        if was_open:
            Split(folder)
        flip(folder / "shard-00000.h5")
        with pytest.raises(ValueError, match=r"shard-00000\.h5 does not match its checksum.*deeplense verify .*other"):
            Split(folder)
        flip(folder / "shard-00000.h5")
        Split(folder)


def replaced(path: Path) -> None:
    """The same bytes in another file of the same time."""
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)
    os.utime(path, ns=times)


def with_the_time_of_before(path: Path) -> None:
    """Other bytes in the same file, with the same times as far as a user can set them."""
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=times)


@pytest.mark.parametrize("change", [replaced, with_the_time_of_before, Path.touch])
def test_a_shard_that_was_touched_is_read_again(split: Path, read: list[str], change: Callable[[Path], None]) -> None:
    Split(split)
    change(split / "shard-00002.h5")
    Split(split)
    assert read[4:] == ["shard-00002.h5"]


def test_a_shard_that_was_right_for_another_checksum_is_read_again(split: Path, read: list[str]) -> None:
    Split(split)
    forge(split, lambda told: told["shards"][1].update(xxh3_128="0" * 32))
    with pytest.raises(ValueError, match=r"shard-00001\.h5 does not match"):
        Split(split)
    assert read[4:] == ["shard-00001.h5"]


def test_a_shard_that_was_changed_just_now_is_not_remembered(
    split: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SECONDS_TO_SETTLE", 60.0)
    Split(split)
    Split(split)
    assert len(read) == 8


def test_a_shard_that_changes_while_it_is_read_is_not_remembered(
    split: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path) -> str:
        found = checksum(path)
        path.touch()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(remembered, "checksum", slow)
        Split(split)
    Split(split)
    assert len(read) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"folder": 3, "shards": 3}', "[" * 100000, "\x00"])
def test_what_is_remembered_may_be_damaged(split: Path, read: list[str], content: str) -> None:
    Split(split)
    remembered.file_of(Manifest.read(split)).write_text(content)
    Split(split)
    Split(split)
    assert len(read) == 8


@pytest.mark.parametrize("place", ["a file", "no folder", "a folder of nobody"])
def test_nothing_need_be_remembered(
    split: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("")
    homes = {"a file": tmp_path / "file", "no folder": Path("/proc/nowhere"), "a folder of nobody": Path("/sys")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(homes[place]))
    Split(split)
    Split(split)
    assert len(read) == 8


def test_only_so_many_splits_are_remembered(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_SPLITS", 3)
    for number in range(5):
        shutil.copytree(split, split.parent / f"split{number}")
        Split(split.parent / f"split{number}")
    names = [json.loads(path.read_text())["folder"][-1] for path in remembered.cache().glob("*.json")]
    assert sorted(names) == ["2", "3", "4"]


def test_who_waits_for_another_process_does_not_read(split: Path, read: list[str]) -> None:
    Split(split)
    path = remembered.file_of(Manifest.read(split))
    known = path.read_text()
    path.unlink()
    descriptor = os.open(remembered.cache() / f"{socket.gethostname()}.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    waiting = threading.Thread(target=Split, args=(split,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    path.write_text(known)
    waiting.join(60)
    os.close(descriptor)
    assert not waiting.is_alive()
    assert len(read) == 4


def test_who_waits_too_long_reads(split: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_SECONDS_TO_WAIT", 0.2)
    remembered.cache().mkdir(parents=True)
    descriptor = os.open(remembered.cache() / f"{socket.gethostname()}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    Split(split)
    os.close(descriptor)
    assert len(read) == 4
