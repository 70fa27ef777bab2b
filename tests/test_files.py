"""Files that must survive: the old content or the new one, whole, whatever happens in between."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from deeplense import files
from deeplense.files import TEMPORARY, checksum, find_below, inside, read_json, remove_leftovers, replacing


def write_file(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_folder(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        (temporary / "deep").mkdir(parents=True)
        for name in ("a.txt", f"{text}.txt", "deep/b.txt"):
            (temporary / name).write_text(text)


def read(path: Path) -> dict[str, str]:
    """The content of a file or folder, by name."""
    if path.is_file():
        return {"": path.read_text()}
    return {str(inner.relative_to(path)): inner.read_text() for inner in path.rglob("*") if inner.is_file()}


def expected(write: Callable[[Path, str], None], text: str) -> dict[str, str]:
    return {"": text} if write is write_file else dict.fromkeys(["a.txt", f"{text}.txt", "deep/b.txt"], text)


either = pytest.mark.parametrize("write", [write_file, write_folder])


@either
def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path = tmp_path / "new" / "folder" / "it"
    for text in ("first", "second"):
        write(path, text)
        assert read(path) == expected(write, text)
        assert list(path.parent.iterdir()) == [path]


@either
def test_an_exception_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, write: Callable[[Path, str], None]
) -> None:
    path = tmp_path / "it"
    write(path, "old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("new")
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        fail_half_way()
    assert read(path) == expected(write, "old")
    assert list(tmp_path.iterdir()) == [path]


def die(*_: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = ["write 0", "write 1", "sync", "rename 0", "rename 1", "rename 2", "rmtree"]
METHODS = {"write": ("write_text",), "rename": ("rename", "replace")}


def replace_and_die(path: str, what: str, moment: str) -> None:
    """Write new content, and be killed at a moment: at a write, the sync, a rename, or the removal of the old."""
    kind, _, number = moment.partition(" ")
    if kind == "sync":
        files.sync_tree = die
    elif kind == "rmtree":
        files.shutil.rmtree = die
    calls = itertools.count()
    for name in METHODS.get(kind, ()):
        original = getattr(Path, name)
        setattr(Path, name, lambda *told, go=original: go(*told) if next(calls) < int(number) else die())
    write = write_file if what == "file" else write_folder
    write(Path(path), "new")


@pytest.mark.parametrize("moment", MOMENTS)
@either
def test_a_kill_at_any_moment_leaves_the_old_content_or_the_new(
    tmp_path: Path, write: Callable[[Path, str], None], moment: str
) -> None:
    path = tmp_path / "it"
    write(path, "old")
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_files as t"
    arguments = (str(path), write.__name__.removeprefix("write_"), moment)
    command = [sys.executable, "-c", f"{program}; t.replace_and_die(*{arguments!r})"]
    ended = subprocess.run(command, check=False, timeout=60).returncode
    assert ended in (0, -signal.SIGKILL)
    assert read(path) in (expected(write, "old"), expected(write, "new"))
    if ended == 0:
        assert read(path) == expected(write, "new")
    remove_leftovers(tmp_path)
    assert read(path) in (expected(write, "old"), expected(write, "new"))
    assert list(tmp_path.iterdir()) == [path]
    write(path, "newer")
    assert read(path) == expected(write, "newer")


@pytest.mark.parametrize("before", [False, True])
@either
def test_all_that_is_written_is_on_the_disk_before_it_takes_its_place_and_the_place_after(
    tmp_path: Path, write: Callable[[Path, str], None], before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it"
    if before:
        write(path, "old")
    events: list[tuple[str, str]] = []
    sync, replace, exchange = os.fsync, os.replace, files.exchange

    def note(kind: str, name: Any, act: Callable[[], None]) -> None:
        events.append((kind, str(name)))
        act()

    monkeypatch.setattr(
        os, "fsync", lambda opened: note("sync", os.readlink(f"/proc/self/fd/{opened}"), lambda: sync(opened))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: note("place", paths[0], lambda: replace(*paths)))
    monkeypatch.setattr(files, "exchange", lambda *paths: note("place", paths[0], lambda: exchange(*paths)))
    write(path, "new")
    (moment,) = [k for k, (kind, _) in enumerate(events) if kind == "place"]
    temporary = Path(events[moment][1])
    inner = expected(write, "new")
    synced = {name for kind, name in events[:moment] if kind == "sync"}
    assert {str(temporary / name) for name in inner} | {str(temporary)} <= synced
    assert ("sync", str(tmp_path)) in events[moment:]


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}shard.h5-1234").write_text("torn")
    (tmp_path / f"{TEMPORARY}step-1").mkdir()
    (tmp_path / f"{TEMPORARY}step-1" / "model").write_text("torn")
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path)
    (tmp_path / "shard.h5").write_text("whole")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "shard.h5"]


def test_files_are_found_where_folders_vanish_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "it").touch()
    scan = os.scandir

    def vanishing(path: str) -> Any:
        if os.fspath(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert find_below(tmp_path, "it") == [tmp_path / "a" / "it", tmp_path / "b" / "it"]
    assert find_below(tmp_path / "nowhere", "it") == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"{'a': 1}"])
def test_damaged_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "it.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"it\.json is not valid JSON"):
        read_json(tmp_path / "it.json")


@pytest.mark.parametrize("size", [0, 1, 1000, 2**22, 2**22 + 1])
def test_a_checksum_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    (tmp_path / "it").write_bytes(content)
    assert checksum(tmp_path / "it") == xxhash.xxh3_128_hexdigest(content)


@pytest.mark.parametrize("name", ["shard-00000.h5", "..h5", "a b", "числ", "x" * 255])
def test_a_plain_name_is_of_a_file_beside_the_record_that_names_it(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, record=tmp_path / "it.json") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/etc/passwd", "../x", "a/b", "a/", "a\nb", "a\0b", "\x1b[2J", "x" * 256, "\u202ea", "\ud800"),
        *(None, 3, ["a"]),
    ],
)
def test_a_name_that_is_of_another_place_or_no_plain_one_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"it\.json lists the file .* not a plain file name"):
        inside(tmp_path, name, record=tmp_path / "it.json")


def test_a_link_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder, linked = tmp_path / "folder", tmp_path / "linked"
    folder.mkdir()
    linked.symlink_to(folder)
    (folder / "within").symlink_to("a.h5")
    (folder / "out").symlink_to(tmp_path / "secret")
    assert inside(linked, "within", record=folder / "it.json") == linked / "within"
    with pytest.raises(ValueError, match="out is a symbolic link"):
        inside(linked, "out", record=folder / "it.json")
