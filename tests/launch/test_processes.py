"""The real command line with two processes: what a user types, and what can happen to it.

One command starts all its processes anew. The others are forked, and so are their ranks, from a process that has loaded
torch: they have the same parents, process groups and signals.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Command
from forks import fork_runs

from jobs.runs.attempts import EXIT_STOPPED, read_attempts
from jobs.runs.folder import STOPPED

SETTINGS = [
    "--model_name=simple_cnn",
    "--batch_size=16",
    "--epochs=20",
    "--evaluate_epochs=20",
    "--log_interval=1",
    "--checkpoint_minutes=0.002",
    "--device=cpu",
]


def lead_group() -> None:
    """What a forked command does first: lead a process group of its own, and fork its ranks."""
    os.setsid()
    fork_runs()


class Launched:
    """A `deeplense` command in a process group of its own: forked, or started `anew`."""

    def __init__(self, words: list[str], log: Path, *, anew: bool = False) -> None:
        self.log = log
        if anew:
            with log.open("w") as file:
                command = [sys.executable, "-m", "launch", *words]
                started = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            self.pid, self.wait = started.pid, lambda: started.wait(120)
        else:
            forked = Command(words, log, prepare=lead_group)
            self.pid, self.wait = forked.process.pid or 0, forked.wait

    def kill(self) -> None:
        """kill -9, to it and not to its ranks."""
        os.kill(self.pid, signal.SIGKILL)

    def members(self) -> list[int]:
        """Processes of its group that still run."""
        found = subprocess.run(["ps", "-o", "pid=,stat=", "-g", str(self.pid)], capture_output=True, text=True)
        lines = [line.split() for line in found.stdout.splitlines()]
        return [int(pid) for pid, state in lines if not state.startswith("Z")]


@pytest.fixture
def launched(dataset: Path, tmp_path: Path) -> Iterator[list[Launched]]:
    """Started commands, ended when the test is over."""
    commands: list[Launched] = []
    yield commands
    for command in commands:
        for pid in command.members():
            os.kill(pid, signal.SIGKILL)
        command.wait()


def train(commands: list[Launched], dataset: Path, run: Path, *, anew: bool = False) -> Launched:
    """Start a training on two processes."""
    words = ["--num_processes", "2", "train", f"--dataset={dataset}", f"--run={run}", *SETTINGS]
    commands.append(Launched(words, run.parent / f"log{len(commands)}.txt", anew=anew))
    return commands[-1]


def last_step(run: Path) -> int:
    """The last step that a run has logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_for_attempt(run: Path, count: int) -> None:
    """Wait until a run has been begun so many times: before, its metrics are those of earlier attempts."""
    deadline = time.monotonic() + 90
    while not run.exists() or len(read_attempts(run)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if last_step(run) >= step:
            return
        time.sleep(0.01)
    raise TimeoutError(step)


def wait_until_gone(command: Launched) -> None:
    """Wait until no process of a command is left; killed ones need a moment to end."""
    deadline = time.monotonic() + 60
    while command.members():
        assert time.monotonic() < deadline, command.members()
        time.sleep(0.1)


def test_a_killed_rank_takes_the_others_with_it_a_signal_to_one_stops_all_and_the_same_command_continues(
    dataset: Path, tmp_path: Path, launched: list[Launched]
) -> None:
    run = tmp_path / "run"
    for rank, number in ((1, signal.SIGKILL), (0, signal.SIGKILL), (0, signal.SIGTERM)):
        before, reached = len(read_attempts(run)) if run.exists() else 0, last_step(run)
        command = train(launched, dataset, run)
        wait_for_attempt(run, before + 1)
        wait_for_step(run, reached + 10)
        main = read_attempts(run)[-1]["pid"]
        others = [pid for pid in command.members() if pid not in (command.pid, main)]
        os.kill(main if rank == 0 else others[0], number)
        code = command.wait()
        assert (code == EXIT_STOPPED) == (number == signal.SIGTERM), command.log.read_text()
        assert code != 0
        wait_until_gone(command)
    assert (run / STOPPED).exists()
    assert train(launched, dataset, run).wait() == 0
    *killed, stopped, finished = read_attempts(run)
    assert len(killed) == 2
    assert (stopped["ended"], finished["ended"]) == ("stopped by SIGTERM", "finished")
    assert stopped["last_step"] == finished["first_step"] >= 30
    assert not (run / STOPPED).exists()


def assert_heard_on_this_machine_only(command: Launched) -> None:
    """Ranks trust what they are sent: no socket of theirs may be reached from another machine."""
    sockets = [c for pid in command.members() for c in psutil.Process(pid).net_connections("inet")]
    listening = {connection.laddr.ip for connection in sockets if connection.status == psutil.CONN_LISTEN}
    connected = {connection.laddr.ip for connection in sockets if connection.status == psutil.CONN_ESTABLISHED}
    assert connected == {"127.0.0.1"}, "the negative control: the ranks are connected"
    assert listening <= {"127.0.0.1"}


def test_a_signal_to_the_launcher_stops_all_ranks(dataset: Path, tmp_path: Path, launched: list[Launched]) -> None:
    run = tmp_path / "run"
    command = train(launched, dataset, run, anew=True)
    wait_for_step(run, 10)
    assert_heard_on_this_machine_only(command)
    os.kill(command.pid, signal.SIGINT)
    assert command.wait() == EXIT_STOPPED, command.log.read_text()
    assert [attempt["ended"] for attempt in read_attempts(run)] == ["stopped by SIGINT"]
    assert command.members() == []


def test_a_killed_launcher_leaves_no_rank_behind(dataset: Path, tmp_path: Path, launched: list[Launched]) -> None:
    run = tmp_path / "run"
    command = train(launched, dataset, run)
    wait_for_step(run, 5)
    command.kill()
    wait_until_gone(command)
    assert command.members() == []
    assert (run / STOPPED).exists()


def test_a_batch_that_is_too_small_is_told_once(dataset: Path, tmp_path: Path, launched: list[Launched]) -> None:
    words = ["--num_processes", "3", "train", f"--dataset={dataset}", f"--run={tmp_path / 'other'}", *SETTINGS]
    words.append("--batch_size=2")
    three = Launched(words, tmp_path / "three.txt")
    launched.append(three)
    assert three.wait() == 2
    told = three.log.read_text()
    assert (
        told.count("batch_size=2 is too small for 3 ranks, as each part needs at least one sample; use 3 or more") == 1
    )
    assert "Traceback" not in told


def train_with_readers(commands: list[Launched], dataset: Path, run: Path) -> Launched:
    """Start a training on one process that three others read for; its checkpoints are minutes apart."""
    changed = {"--checkpoint_minutes=0.002": "--checkpoint_minutes=60", "--epochs=20": "--epochs=3000"}
    settings = [changed.get(word, word) for word in SETTINGS]
    words = ["train", f"--dataset={dataset}", f"--run={run}", *settings, "--num_workers=3"]
    commands.append(Launched(words, run.parent / "log.txt"))
    wait_for_step(run, 10)
    assert len(commands[-1].members()) >= 5, "the negative control: there are processes that read"
    return commands[-1]


def wait_until_alone(command: Launched) -> list[int]:
    """Processes of a command's group that are left after some seconds."""
    deadline = time.monotonic() + 10
    while command.members() and time.monotonic() < deadline:
        time.sleep(0.05)
    return command.members()


def test_a_killed_run_leaves_no_process_that_reads_for_it(
    dataset: Path, tmp_path: Path, launched: list[Launched]
) -> None:
    command = train_with_readers(launched, dataset, tmp_path / "run")
    command.kill()
    command.wait()
    assert wait_until_alone(command) == []


def test_signals_to_every_process_of_a_run_stop_it_with_its_state_saved(
    dataset: Path, tmp_path: Path, launched: list[Launched]
) -> None:
    run = tmp_path / "run"
    command = train_with_readers(launched, dataset, run)
    for pid in command.members():
        if pid != command.pid:
            os.kill(pid, signal.SIGTERM)
    # Longer than a process that reads needs to see that its parent is gone.
    os.kill(command.pid, signal.SIGSTOP)
    time.sleep(8)
    at = last_step(run)
    os.kill(command.pid, signal.SIGCONT)
    wait_for_step(run, at + 20)
    os.killpg(command.pid, signal.SIGTERM)
    assert command.wait() == EXIT_STOPPED, command.log.read_text()
    (attempt,) = read_attempts(run)
    assert attempt["ended"] == "stopped by SIGTERM"
    assert (run / "checkpoints" / f"step_{attempt['last_step']:08d}").is_dir()
    assert wait_until_alone(command) == []
