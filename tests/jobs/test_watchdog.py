"""The watchdog, in real processes that hang in each of the ways that there are."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.frame.watchdog import hung
from jobs.runs.attempts import EXIT_HUNG, FOLDER, NUMBER, STACKS

CHILD = """
import ctypes, os, re, signal, sys, time
from pathlib import Path
from jobs.frame import watchdog

run, minutes, watchdog.SECONDS_FOR_OTHERS, deed = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def wait_for_a_peer():
    time.sleep(60)

def keep_the_lock():
    ctypes.PyDLL(None).sleep(60)

def match_for_ever():
    re.match(r"(a+)+$", "a" * 40 + "b")

def be_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)

def go_on():
    for _ in range(60):
        dog.beat()
        time.sleep(0.05)

def go_on_too_late():
    while not dog.given_up.is_set():
        time.sleep(0.01)
    dog.beat()
    sys.stderr.write("went on")

def end():
    pass

with watchdog.Watchdog(run, minutes=minutes) as dog:
    globals()[deed]()
if deed == "end":
    time.sleep(60 * minutes + 2 * watchdog.SECONDS_FOR_OTHERS + 0.5)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes that are watched, and ends those that are left."""
    started: list[subprocess.Popen[str]] = []

    def begin(deed: str, *, minutes: float = 0.005, others: float = 0.3, **variables: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", CHILD, str(tmp_path), str(minutes), str(others), deed]
        kept = {name: value for name, value in os.environ.items() if name not in (FOLDER, NUMBER, "RANK")}
        started.append(subprocess.Popen(words, env=kept | variables, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def state_of(process: subprocess.Popen[str]) -> str:
    """What the kernel says that a process does; T is stopped."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def guards_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The second clock of a process that is watched."""
    return [child for child in psutil.Process(process.pid).children() if "-I" in child.cmdline()]


def wait_until_stopped(*processes: subprocess.Popen[str]) -> None:
    """Wait until all of them are stopped."""
    deadline = time.monotonic() + 60
    while {state_of(process) for process in processes} != {"T"}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rank_that_makes_no_step_tells_what_it_does_and_leaves(start: Start, tmp_path: Path) -> None:
    process = start("wait_for_a_peer", **{NUMBER: "3", "RANK": "1"})
    assert process.wait(60) == EXIT_HUNG
    assert process.stderr
    said = process.stderr.read()
    assert "no step for 0.005 minutes (rank 1); stack traces of its threads:" in said
    stacks = (tmp_path / STACKS / "attempt_3_rank_1.txt").read_text()
    assert "in wait_for_a_peer" in said
    assert "in wait_for_a_peer" in stacks
    assert [hung(tmp_path, number) for number in (1, 3, 13)] == [False, True, False]


@pytest.mark.parametrize("deed", ["keep_the_lock", "match_for_ever"])
def test_one_that_keeps_pythons_lock_is_ended_all_the_same(deed: str, start: Start, tmp_path: Path) -> None:
    process = start(deed, **{NUMBER: "3", "RANK": "1"})
    assert process.wait(60) == -signal.SIGKILL
    assert process.stderr
    assert f"in {deed}" in process.stderr.read()
    assert hung(tmp_path, 3)


def test_one_that_goes_on_after_all_when_others_were_told_that_it_hangs_leaves_too(start: Start) -> None:
    process = start("go_on_too_late", others=1)
    assert process.wait(60) == EXIT_HUNG
    assert process.stderr
    assert "went on" not in process.stderr.read()


def test_a_full_disk_does_not_keep_it_from_leaving(start: Start, tmp_path: Path) -> None:
    (tmp_path / STACKS).write_text("this is no folder, and none can be made")
    assert start("wait_for_a_peer").wait(60) == EXIT_HUNG


def test_a_stopped_rank_of_the_same_run_is_woken_to_tell_what_it_did(start: Start, tmp_path: Path) -> None:
    stopped = start("be_stopped", others=3, **{NUMBER: "2", "RANK": "1", FOLDER: str(tmp_path)})
    others = [start("be_stopped", others=60, **variables) for variables in ({}, {FOLDER: str(tmp_path / "other")})]
    wait_until_stopped(stopped, *others)
    waiting = start("wait_for_a_peer", **{NUMBER: "2", "RANK": "0", FOLDER: str(tmp_path)})
    assert (waiting.wait(60), stopped.wait(60)) == (EXIT_HUNG, EXIT_HUNG)
    assert "in wait_for_a_peer" in (tmp_path / STACKS / "attempt_2_rank_0.txt").read_text()
    assert "in be_stopped" in (tmp_path / STACKS / "attempt_2_rank_1.txt").read_text()
    assert [state_of(other) for other in others] == ["T", "T"]


def test_one_that_is_stopped_alone_is_ended_by_its_second_clock(start: Start, tmp_path: Path) -> None:
    assert start("be_stopped", **{NUMBER: "2"}).wait(60) == -signal.SIGKILL
    assert hung(tmp_path, 2)


def test_a_job_that_was_suspended_as_a_whole_goes_on(start: Start, tmp_path: Path) -> None:
    process = start("go_on", minutes=0.005)
    deadline = time.monotonic() + 60
    while not (guards := guards_of(process)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for one in (process, *guards):
        one.send_signal(signal.SIGSTOP)
    time.sleep(2)  # Several times what is a hang, and what the second clock waits.
    for one in (*guards, process):
        one.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert not (tmp_path / STACKS).exists()


@pytest.mark.parametrize(
    ("deed", "minutes"),
    [("go_on", 0.03), ("end", 0.005), ("go_on", 0.0)],
    ids=["it makes steps", "it has ended", "nobody watches"],
)
def test_a_job_is_left_alone_where(deed: str, minutes: float, start: Start, tmp_path: Path) -> None:
    process = start(deed, minutes=minutes)
    assert process.wait(60) == 0
    assert process.stderr
    assert process.stderr.read() == ""
    assert not (tmp_path / STACKS).exists()
