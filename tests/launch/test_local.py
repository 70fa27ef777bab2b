"""Several ranks on one machine: they know each other, end together, and never outlive their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import EXIT_STOPPED
from launch import local
from launch.local import run_processes

RANK = """
# Stands for `python -m launch`: writes down what it is told, then does what its rank is asked to.
import json, os, signal, sys, time

def tell(**what):
    with open("told.jsonl", "a") as file:
        file.write(json.dumps({"rank": int(os.environ["RANK"]), "pid": os.getpid(), **what}) + "\\n")

def leave(number, frame):
    tell(signal=signal.Signals(number).name)
    os._exit(%(stopped)d)

deed = sys.argv[1:][int(os.environ["RANK"])]
if deed.startswith("wait"):
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, leave if deed == "wait" else signal.SIG_IGN if deed == "wait deaf" else signal.SIG_DFL)
tell(environment=dict(os.environ), arguments=sys.argv[1:])
if deed.startswith("wait"):
    time.sleep(60)
    sys.exit(1)
deadline = time.monotonic() + 60
while open("told.jsonl").read().count("environment") < int(os.environ["WORLD_SIZE"]) and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(int(deed))
"""
PARENT = """
import os, sys
from launch.local import run_processes
os.chdir(sys.argv[1])
sys.exit(run_processes(sys.argv[3:], len(sys.argv[3:]), restarts=int(sys.argv[2])))
"""


class Ranks:
    """A folder in which `python -m launch` is the small program above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "launch.py").write_text(RANK % {"stopped": EXIT_STOPPED})

    def told(self) -> list[dict[str, Any]]:
        """All that ranks wrote down."""
        path = self.folder / "told.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def signals(self) -> dict[int, str]:
        """Which signal each rank heard."""
        return {line["rank"]: line["signal"] for line in self.told() if "signal" in line}

    def starts(self) -> int:
        """How many ranks were started."""
        return sum("environment" in line for line in self.told())

    def wait_for(self, num_lines: int) -> None:
        """Wait until so many lines are written."""
        deadline = time.monotonic() + 60
        while len(self.told()) < num_lines:
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.01)

    def alive(self) -> list[int]:
        """Processes of ranks that still run."""
        return [line["pid"] for line in self.told() if "environment" in line and is_running(line["pid"])]


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """Ranks that are asked to end in some way; none is left behind, nor any handler of signals."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = [(number, signal.getsignal(number)) for number in numbers]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "SECONDS_TO_DIE", 0.5)
    ranks = Ranks(tmp_path)
    yield ranks
    for process in ranks.alive():
        os.kill(process, signal.SIGKILL)
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def parent(ranks: Ranks) -> Iterator[subprocess.Popen[bytes]]:
    """A process with two ranks that wait to be told to stop; it may start them again once."""
    command = [sys.executable, "-c", PARENT, str(ranks.folder), "1", "wait", "wait"]
    with subprocess.Popen(command, cwd=Path(local.__file__).parents[1]) as process:
        ranks.wait_for(2)
        yield process
        process.kill()


def test_ranks_find_each_other_by_their_environment(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MARK", "inherited")
    assert run_processes(["0", "0", "0"], 3, restarts=0) == 0
    told = {line["rank"]: line["environment"] for line in ranks.told()}
    assert told.keys() == {0, 1, 2}
    for rank, environment in told.items():
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "3"
        assert environment["MASTER_ADDR"] == "127.0.0.1"
        assert 1 <= int(environment["OMP_NUM_THREADS"]) <= max(1, (os.cpu_count() or 1) // 3)
        assert environment["MARK"] == "inherited"
    assert len({environment["MASTER_PORT"] for environment in told.values()}) == 1
    assert 1024 <= int(told[0]["MASTER_PORT"]) < 65536
    assert all(line["arguments"] == ["0", "0", "0"] for line in ranks.told())


def test_threads_that_the_user_chose_are_left_alone(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run_processes(["0", "0"], 2, restarts=0)
    assert {line["environment"]["OMP_NUM_THREADS"] for line in ranks.told()} == {"5"}


@pytest.mark.parametrize("deeds", [["3", "wait"], ["wait", "3"], ["3", "wait plainly"], ["wait plainly", "3"]])
def test_a_rank_that_fails_ends_the_others_and_gives_its_code(deeds: list[str], ranks: Ranks) -> None:
    command = [sys.executable, "-c", PARENT, str(ranks.folder), "1", *deeds]
    done = subprocess.run(command, cwd=Path(local.__file__).parents[1], timeout=15)
    assert done.returncode == 3
    assert ranks.alive() == []
    assert ranks.starts() == 2


def test_a_rank_that_does_not_heed_is_killed(ranks: Ranks) -> None:
    assert run_processes(["3", "wait deaf"], 2, restarts=0) == 3
    assert ranks.alive() == []


@pytest.mark.parametrize(("restarts", "starts"), [(0, 2), (1, 4), (2, 6)])
def test_ranks_that_were_told_to_stop_are_started_again_as_often_as_allowed(
    restarts: int, starts: int, ranks: Ranks
) -> None:
    stopped = str(EXIT_STOPPED)
    assert run_processes([stopped, stopped], 2, restarts=restarts) == EXIT_STOPPED
    assert ranks.starts() == starts


def test_a_crash_is_not_started_again(ranks: Ranks) -> None:
    assert run_processes(["1", "1"], 2, restarts=3) == 1
    assert ranks.starts() == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_parent_reaches_all_ranks_and_none_is_started_again(
    number: signal.Signals, parent: subprocess.Popen[bytes], ranks: Ranks
) -> None:
    parent.send_signal(number)
    assert parent.wait(timeout=30) == EXIT_STOPPED
    assert ranks.signals() == {0: number.name, 1: number.name}
    assert ranks.starts() == 2


def test_a_signal_while_ranks_are_started_reaches_those_that_are_there(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def start_and_signal(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        ranks.wait_for(1)
        if ranks.starts() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_signal)
    assert run_processes(["wait", "wait"], 2, restarts=1) != 0
    assert ranks.signals()[0] == "SIGTERM"
    assert ranks.alive() == []
    assert ranks.starts() <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_ranks_go_when_their_parent_is_killed(parent: subprocess.Popen[bytes], ranks: Ranks) -> None:
    parent.kill()
    parent.wait()
    ranks.wait_for(4)
    assert ranks.signals() == {0: "SIGTERM", 1: "SIGTERM"}
