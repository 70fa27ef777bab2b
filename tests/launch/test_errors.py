"""The door for errors: what a user or a machine can cause is one line that names the file; our own bugs stay bugs."""

import csv
import errno
import os
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import yaml

from jobs.attempts import EXIT_DISK_FULL, EXIT_REFUSED, NUMBER
from launch import errors
from launch.errors import ADVICE, Told, told_of


@pytest.fixture(autouse=True)
def nobody_launched_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, and the only process."""
    for name in (NUMBER, "RANK"):
        monkeypatch.delenv(name, raising=False)


def said(error: BaseException) -> Told:
    """What is told of an error, which is one line."""
    told = told_of(error)
    assert told is not None
    assert "\n" not in told.message
    return told


@pytest.mark.parametrize("number", [*ADVICE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_of_a_file_names_the_file_and_what_to_do(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(OSError(number, os.strerror(number), "/scratch/x.h5"))
    assert told.message.startswith(f"/scratch/x.h5: {os.strerror(number)}. ")
    assert told.message.endswith(".")
    assert told.code == EXIT_REFUSED
    monkeypatch.setenv(NUMBER, "3")
    assert said(OSError(number, os.strerror(number), "/scratch/x.h5")).code == 1


def test_errors_of_the_system_itself_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for act in (
        lambda: (tmp_path / "file" / "below").read_text(),
        lambda: tmp_path.read_text(),
        lambda: (tmp_path / ("x" * 300)).write_text("x"),
        lambda: (tmp_path / "nowhere").read_text(),
        lambda: (tmp_path / "file").mkdir(),
    ):
        with pytest.raises(OSError, match=r"\[Errno") as found:
            act()
        assert str(tmp_path) in said(found.value).message


def test_the_two_names_of_a_rename_are_told_and_none_breaks_the_line() -> None:
    told = said(OSError(errno.EXDEV, "Invalid cross-device link", "/a\nb", None, "/c"))
    assert told.message.startswith("'/a\\nb' and /c: Invalid cross-device link. ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_its_code_under_a_launcher_too(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NUMBER, "1")
    assert said(OSError(number, os.strerror(number), "/scratch/run")).code == EXIT_DISK_FULL


@pytest.mark.parametrize(
    "error",
    [
        csv.Error("field larger than field limit (131072)"),
        yaml.YAMLError("while parsing"),
        zipfile.BadZipFile("File is not a zip file"),
        EOFError("No data left in file"),
        ValueError("two\nlines"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        OSError("Can't synchronously read data (wrong fletcher32 checksum)"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(error: Exception) -> None:
    assert said(error).code == EXIT_REFUSED


def test_an_error_from_a_process_of_the_loader_is_told_without_its_traceback() -> None:
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert said(ValueError(f"{text}ValueError: shard-00000.h5 is damaged: cut short.\n")).message == (
        "shard-00000.h5 is damaged: cut short."
    )


def test_a_long_folder_for_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 90)
    assert said(OSError("AF_UNIX path too long")).message.startswith("TMPDIR=/scratch/xxx")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"), BrokenProcessPool("terminated abruptly")])
def test_memory_that_is_not_enough_may_be_enough_next_time(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(error).code == EXIT_REFUSED
    monkeypatch.setenv(NUMBER, "1")
    assert said(error).code == 1


@pytest.mark.parametrize(
    "error",
    [KeyError("model"), TypeError("x"), AttributeError("x"), RuntimeError("x"), AssertionError(), IndexError(1)],
)
def test_our_own_bugs_are_not_hidden(error: Exception) -> None:
    assert told_of(error) is None


def test_what_cannot_be_printed_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    errors.say(Told("there is no r\udcff", 2))
    assert capsys.readouterr().err == "deeplense: there is no r\\udcff\n"
