"""The door for errors: what a user or a machine can cause is one line that names the file; our own bugs stay bugs."""

import csv
import errno
import os
import subprocess
import sys
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import yaml

from jobs import errors
from jobs.errors import ADVICE, Told, told_of
from jobs.runs.attempts import EXIT_DISK_FULL, EXIT_READ_ONLY, EXIT_REFUSED, FOLDER, NUMBER, first_failure
from launch.__main__ import main


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
    code = EXIT_READ_ONLY if number == errno.EROFS else 1
    assert said(OSError(number, os.strerror(number), "/scratch/x.h5")).code == code


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


def test_the_error_that_ends_a_rank_is_kept_for_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    assert main(["verify", str(missing)]) == EXIT_REFUSED
    assert first_failure(tmp_path, 3) is None
    for name, value in {FOLDER: str(tmp_path), NUMBER: "3", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", str(missing)]) != 0
    said = first_failure(tmp_path, 3)
    assert said is not None
    assert said.startswith("rank 2: ")
    assert str(missing) in said


def test_a_rank_that_is_not_the_first_speaks_in_a_log_of_its_own_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    errors.say(Told("boom", 2))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(NUMBER, "1")
    errors.say(Told("boom", 2))
    assert capsys.readouterr().err == "deeplense: rank 3: boom\n"


@pytest.mark.parametrize(
    ("failing", "said"), [((2,), "deeplense: rank 2: boom\n"), ((0,), "deeplense: boom\n"), ((), "")]
)
def test_of_the_ranks_of_this_machine_the_one_that_failed_is_told_once(
    failing: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    program = (
        "import os, sys, time\n"
        "sys.path.insert(0, os.environ['REAL'])\n"
        "from jobs.errors import Told, say\n"
        f"if int(os.environ['RANK']) in {failing}: sys.exit(say(Told('boom', 2)))\n"
        f"time.sleep({60 if failing else 0})\n"
    )
    (tmp_path / "rank.py").write_text(program)
    start = (
        "import sys, subprocess\n"
        "from launch import local\n"
        "make = subprocess.Popen\n"
        f"rank = [sys.executable, {str(tmp_path / 'rank.py')!r}]\n"
        "local.subprocess.Popen = lambda words, **options: make(rank, **options)\n"
        "sys.exit(local.run_processes(['train'], 3))\n"
    )
    environment = os.environ | {"REAL": str(Path(errors.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == (said, 2 if failing else 0)
