"""Commands as processes of their own: their order, how many at once, and how all of them are told to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deeplense.training.stopping import StopFlag
from jobs.processes import Command, Queue, Steps
from jobs.runs.attempts import EXIT_STOPPED

WORKER = """
import os, signal, sys, time
name, seconds, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
def tell(*words):
    # In one write: others write to the same file.
    os.write(1, (" ".join([name, *words]) + "\\n").encode())
def leave(number, frame):
    tell("told", signal.Signals(number).name)
    sys.exit(85)
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, leave)
tell("begins", os.environ.get("SLOT", ""))
time.sleep(seconds)
tell("ends")
sys.exit(code)
"""
Make = Callable[..., Command]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes commands that write to one log when they begin, end or are told to stop."""
    (tmp_path / "worker.py").write_text(WORKER)

    def command(name: str, *, seconds: float = 0.0, code: int = 0) -> Command:
        words = ("worker", name, str(seconds), str(code))
        return Command(words, {"PYTHONPATH": str(tmp_path)}, tmp_path / "logs" / "log.txt")

    return command


def told(folder: Path) -> list[str]:
    """The lines of the log."""
    return [line.strip() for line in (folder / "logs" / "log.txt").read_text().splitlines()]


def work(*commands: Command, codes: list[int] | None = None) -> Steps:
    """Commands one after the other; their exit codes go to a list."""
    for command in commands:
        code = yield command
        if codes is not None:
            codes.append(code)


def test_commands_of_a_work_follow_each_other_and_each_is_answered_with_its_code(make: Make, tmp_path: Path) -> None:
    codes: list[int] = []
    failed = Queue([{}], StopFlag()).run(
        [work(make("a"), make("b", code=3), codes=codes), work(make("c"), codes=codes)]
    )
    assert codes == [0, 3, 0]
    assert failed == [3]
    assert told(tmp_path) == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_there_are_as_many_at_once_as_slots_each_with_the_environment_of_its_slot(make: Make, tmp_path: Path) -> None:
    works = [work(make(name, seconds=0.4)) for name in "abc"]
    assert Queue([{"SLOT": "first"}, {"SLOT": "second"}], StopFlag()).run(works) == []
    lines = told(tmp_path)
    assert sorted(lines[:2]) == ["a begins first", "b begins second"]
    assert "c begins" in " ".join(lines[2:])
    running = most = 0
    for line in lines:
        running += {"begins": 1, "ends": -1}[line.split()[1]]
        most = max(most, running)
    assert most == 2


def test_a_work_that_has_nothing_to_do_makes_room_for_the_next(make: Make, tmp_path: Path) -> None:
    assert Queue([{}], StopFlag()).run([work(), work(), work(make("a")), work()]) == []
    assert told(tmp_path) == ["a begins", "a ends"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_goes_on_to_all_that_run_and_nothing_more_is_begun(
    number: signal.Signals, make: Make, tmp_path: Path
) -> None:
    def signalling() -> Steps:
        while sum("begins" in line for line in (told(tmp_path) if (tmp_path / "logs").exists() else [])) < 2:
            yield make("x", seconds=0.01)
        os.kill(os.getpid(), number)

    codes: list[int] = []
    with StopFlag() as stop:
        works = [work(make(name, seconds=60), make("never"), codes=codes) for name in "ab"]
        Queue([{}, {}, {}], stop).run([*works, signalling(), work(make("never"))])
    assert stop.signal_name == number.name
    assert codes == [EXIT_STOPPED] * 2
    lines = told(tmp_path)
    assert {f"{name} told {number.name}" for name in "ab"} <= set(lines)
    assert not any("never" in line for line in lines)


def test_a_command_that_was_told_to_stop_by_others_stops_the_rest_too(make: Make, tmp_path: Path) -> None:
    stop, codes = StopFlag(), []
    failed = Queue([{}, {}], stop).run(
        [
            work(make("a", seconds=0.3, code=EXIT_STOPPED), codes=codes),
            work(make("b", seconds=60), make("never"), codes=codes),
        ]
    )
    assert failed == codes == [EXIT_STOPPED, EXIT_STOPPED]
    assert stop.signal_name == "SIGTERM"
    assert "b told SIGTERM" in told(tmp_path)


def test_commands_are_told_to_stop_when_their_parent_is_killed(make: Make, tmp_path: Path) -> None:
    command = make("a", seconds=60)
    code = f"""
from jobs.processes import Command, Queue
from deeplense.training.stopping import StopFlag
from pathlib import Path
def work():
    yield Command({command.words!r}, {command.environment!r}, Path({str(command.log)!r}))
Queue([{{}}], StopFlag()).run([work()])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for(lambda: (tmp_path / "logs").exists() and "a begins" in told(tmp_path)[:1])
    parent.kill()
    parent.wait()
    wait_for(lambda: "a told SIGTERM" in told(tmp_path))


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until something is so, for a minute at most."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
