"""Several ranks on one machine: they know each other, end together, and never outlive their parent."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import write_json
from deeplense.training import meeting
from jobs.runs.attempts import EXIT_DISK_FULL, EXIT_HUNG, EXIT_STOPPED, FOLDER, read_attempts
from jobs.runs.folder import LAUNCH
from launch import local
from launch.ends import begin_line
from launch.local import RESTART_BY_SUBMITIT, VISIBLE, loopback, run_processes

RANK = """
# Stands for `python -m jobs`: writes down what it is told, then does what its rank is asked to.
import json, os, signal, sys, time

def tell(**what):
    with open("told.jsonl", "a") as file:
        file.write(json.dumps({"rank": int(os.environ["RANK"]), "pid": os.getpid(), **what}) + "\\n")

def leave(number, frame):
    tell(signal=signal.Signals(number).name)
    os._exit(%(stopped)d)

deeds = sys.argv[1:][int(os.environ["RANK"])].split(",")
deed = deeds[min(int(os.environ.get("DEEPLENSE_ATTEMPT", "1")), len(deeds)) - 1]
print("rank", os.environ["RANK"], "speaks", flush=True)
if deed.startswith("wait"):
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, leave if deed == "wait" else signal.SIG_IGN if deed == "wait deaf" else signal.SIG_DFL)
tell(environment=dict(os.environ), arguments=sys.argv[1:])
if deed.startswith("wait"):
    time.sleep(60)
    sys.exit(1)
# Whoever ends first ends the others, which have not begun yet on a slow machine.
deadline = time.monotonic() + 60
while open("told.jsonl").read().count("environment") %% int(os.environ["WORLD_SIZE"]) and time.monotonic() < deadline:
    time.sleep(0.01)
if deed == "die":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(deed))
"""
PARENT = """
import os, signal, sys
from launch import local
local.SECONDS_TO_DIE = 2
os.chdir(sys.argv[1])
if sys.argv[2] == "supervise":
    signal.signal(signal.SIGTERM, lambda *arguments: print("submitit bypasses SIGTERM"))
    sys.exit(local.supervise(sys.argv[3:]))
sys.exit(local.run_processes(sys.argv[3:], len(sys.argv[3:])))
"""


class Ranks:
    """A folder with the small program above, which is `python -m jobs` where PYTHONPATH names the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs.py").write_text(RANK % {"stopped": EXIT_STOPPED})

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
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "SECONDS_TO_DIE", 0.5)
    ranks = Ranks(tmp_path)
    yield ranks
    for process in ranks.alive():
        os.kill(process, signal.SIGKILL)
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def parent(ranks: Ranks) -> Iterator[subprocess.Popen[bytes]]:
    """A process with two ranks that wait to be told to stop."""
    command = [sys.executable, "-c", PARENT, str(ranks.folder), "run", "wait", "wait"]
    with subprocess.Popen(command, cwd=Path(local.__file__).parents[1]) as process:
        ranks.wait_for(2)
        yield process
        process.kill()


def test_ranks_find_each_other_by_their_environment(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MARK", "inherited")
    assert run_processes(["0", "0", "0"], 3) == 0
    told = {line["rank"]: line["environment"] for line in ranks.told()}
    assert told.keys() == {0, 1, 2}
    for rank, environment in told.items():
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "3"
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == loopback()
        assert 1 <= int(environment["OMP_NUM_THREADS"]) <= max(1, (os.cpu_count() or 1) // 3)
        assert environment["MARK"] == "inherited"
    (place,) = {environment[meeting.VARIABLE] for environment in told.values()}
    assert Path(place).is_relative_to(tempfile.gettempdir())
    assert not Path(place).parent.exists()
    assert all(line["arguments"] == ["0", "0", "0"] for line in ranks.told())


def test_threads_that_the_user_chose_are_left_alone(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run_processes(["0", "0"], 2)
    assert {line["environment"]["OMP_NUM_THREADS"] for line in ranks.told()} == {"5"}


@pytest.mark.parametrize("deeds", [["3", "wait"], ["wait", "3"], ["3", "wait plainly"], ["wait plainly", "3"]])
def test_a_rank_that_fails_ends_the_others_and_gives_its_code(deeds: list[str], ranks: Ranks) -> None:
    command = [sys.executable, "-c", PARENT, str(ranks.folder), "run", *deeds]
    done = subprocess.run(command, cwd=Path(local.__file__).parents[1], timeout=15)
    assert done.returncode == 3
    assert ranks.alive() == []
    assert ranks.starts() == 2


def test_a_rank_that_does_not_heed_is_killed(ranks: Ranks) -> None:
    assert run_processes(["3", "wait deaf"], 2) == 3
    assert ranks.alive() == []


@pytest.mark.parametrize("code", [0, 1, EXIT_STOPPED])
def test_ranks_that_end_alike_give_their_code_and_are_not_started_again(code: int, ranks: Ranks) -> None:
    assert run_processes([str(code), str(code)], 2) == code
    assert ranks.starts() == 2


def test_a_rank_that_was_killed_gives_the_code_that_a_shell_would(ranks: Ranks) -> None:
    assert run_processes(["0", "die"], 2) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_parent_reaches_all_ranks_(
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
    assert run_processes(["wait", "wait"], 2) != 0
    assert ranks.signals()[0] == "SIGTERM"
    assert ranks.alive() == []
    assert ranks.starts() <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_ranks_go_when_their_parent_is_killed(parent: subprocess.Popen[bytes], ranks: Ranks) -> None:
    parent.kill()
    parent.wait()
    ranks.wait_for(4)
    assert ranks.signals() == {0: "SIGTERM", 1: "SIGTERM"}


class Supervised(Ranks):
    """The same ranks as a submitted run, which submitit's local executor would have started."""

    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """The log of the first rank, and of what supervises all."""
        return self.folder / "logs" / "17_0_log.out"

    def start(self, *deeds: str, **variables: str) -> None:
        """Submit it."""
        self.log.parent.mkdir(exist_ok=True)
        job = {"logs": str(self.log.parent), "tasks": len(deeds), "restarts": {"crash": 1, "stopped": 2, "hang": 0}}
        write_json(self.folder / LAUNCH, job)
        told = {FOLDER: str(self.folder), "SUBMITIT_LOCAL_JOB_ID": "17"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, str(self.folder), "supervise", *deeds],
                cwd=Path(local.__file__).parents[1],
                env=kept | told | variables,
                stdout=file,
                stderr=file,
            )

    def ends(self) -> list[str]:
        """How its attempts ended."""
        return [attempt["ended"] for attempt in read_attempts(self.folder)]


@pytest.fixture
def supervised(ranks: Ranks) -> Iterator[Supervised]:
    """A submitted run, ended when the test is over."""
    run = Supervised(ranks.folder)
    yield run
    run.process.kill()
    run.process.wait()


STOP = str(EXIT_STOPPED)
CASES = {
    "it finishes": (["0", "0"], 0, ["finished"]),
    "it was killed once": (["die,0", "0,0"], 0, ["crash: exit code 137", "finished"]),
    "it crashes each time": (["1", "1"], 1, ["crash: exit code 1"] * 2),
    "it is refused": (["2", "2"], 2, ["refused"]),
    "it hangs": ([str(EXIT_HUNG)] * 2, EXIT_HUNG, ["hang"]),
    "each has its own budget": (
        [f"1,{STOP},{EXIT_DISK_FULL},0"] * 2,
        0,
        ["crash: exit code 1", "stopped", "disk full", "finished"],
    ),
    "it is stopped by hand": ([STOP, STOP], EXIT_STOPPED, ["stopped"] * 3),
}


@pytest.mark.parametrize(("deeds", "code", "ends"), CASES.values(), ids=CASES)
def test_a_submitted_run_is_started_again_as_its_ends_allow(
    deeds: list[str], code: int, ends: list[str], supervised: Supervised
) -> None:
    supervised.start(*deeds)
    assert supervised.process.wait(60) == code, supervised.log.read_text()
    assert supervised.ends() == ends
    assert supervised.starts() == 2 * len(ends)
    told = supervised.log.read_text()
    for number, reason in enumerate(ends, 1):
        assert f"{begin_line(number)}\n" in told
        assert f"deeplense: attempt {number} ended: {reason}; " in told
    assert told.count("rank 0 speaks") == len(ends)
    assert "rank 1 speaks" not in told
    assert supervised.log.with_name("17_1_log.out").read_text().count("rank 1 speaks") == len(ends)


@pytest.mark.parametrize(
    ("number", "code", "end"),
    [(signal.SIGTERM, EXIT_STOPPED, "cancelled"), (signal.SIGUSR2, RESTART_BY_SUBMITIT, "time limit")],
)
def test_a_submitted_run_that_is_cancelled_ends_and_near_its_limit_submitit_restarts_it(
    number: signal.Signals, code: int, end: str, supervised: Supervised
) -> None:
    supervised.start("wait", "wait")
    supervised.wait_for(2)
    supervised.process.send_signal(number)
    assert supervised.process.wait(60) == code
    assert supervised.ends() == [end]
    assert supervised.starts() == 2


@pytest.mark.parametrize(("variables", "seen"), [({VISIBLE: "1,3"}, "1,3"), ({VISIBLE: ""}, ""), ({}, None)])
def test_a_submitted_run_sees_the_gpus_that_were_there_when_it_was_submitted(
    variables: dict[str, str], seen: str | None, supervised: Supervised
) -> None:
    supervised.start("0", "0", CUDA_VISIBLE_DEVICES="", **variables)
    assert supervised.process.wait(60) == 0
    assert supervised.told()[0]["environment"].get("CUDA_VISIBLE_DEVICES") == seen
