"""Metrics of a run: each step once, however often it was killed, and one id at W&B."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.training.tracking import METRICS, Tracker, trim, wandb_id
from jobs import command_line
from jobs.train import work as train_work

ATTEMPT = """
import sys
from pathlib import Path
from deeplense.training.tracking import Tracker

first, run = int(sys.argv[1]), Path(sys.argv[2])
tracker = Tracker(run, mode="offline", project="deeplense", config={"lr": 0.1}, last_step=first)
for step in range(first + 1, first + 4):
    tracker.log(step, {"loss": 1 / step})
tracker.close(exit_code=0)
"""


def track(run: Path, last_step: int) -> Tracker:
    """A tracker without W&B."""
    return Tracker(run, mode="off", project="deeplense", config={}, last_step=last_step)


def steps_of(run: Path) -> list[int]:
    """The steps of all lines, each of which must be whole."""
    return [json.loads(line)["step"] for line in (run / METRICS).read_text().splitlines()]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    for last_step in (0, 3, 3, 9):
        tracker = track(tmp_path, last_step)
        for step in range(last_step + 1, last_step + 6):
            tracker.log(step, {"loss": 0.1 * step, "lr": 1e-3})
        tracker.close(exit_code=1)
    assert steps_of(tmp_path) == [*range(1, 9), *range(10, 15)]
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[0]) == {"step": 1, "loss": 0.1, "lr": 1e-3}


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = track(tmp_path, 0)
    tracker.log(1, {"loss": 0.5})
    assert steps_of(tmp_path) == [1]
    tracker.close(exit_code=0)


def test_the_lines_of_steps_that_a_checkpoint_counts_are_on_the_disk_before_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood: list[int] = []
    sync = Tracker.sync

    def noted(tracker: Tracker) -> None:
        sync(tracker)
        stood.append(len(list((tmp_path / "run" / "checkpoints").glob("step_*"))))

    monkeypatch.setattr(Tracker, "sync", noted)
    words = [f"--dataset={dataset}", f"--run={tmp_path / 'run'}", "--model_name=simple_cnn"]
    settings = command_line.parse("train", [*words, "--batch_size=16", "--epochs=1", "--device=cpu"])
    assert train_work.run(settings) == 0
    assert stood == [0]
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 1


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 12), st.floats(0, 1))
def test_whatever_a_kill_leaves_the_whole_lines_up_to_the_resumed_step_stay(
    tmp_path_factory: pytest.TempPathFactory, last_step: int, part: float
) -> None:
    path = tmp_path_factory.mktemp("run") / METRICS
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 11)]
    text = "".join(f"{line}\n" for line in lines)
    cut = round(part * len(text))
    path.write_text(text[:cut])
    trim(path, last_step=last_step)
    whole = [line for k, line in enumerate(lines) if sum(map(len, lines[: k + 1])) + k <= cut]
    assert path.read_text() == "".join(f"{line}\n" for line in whole[:last_step])


def test_a_run_without_metrics_needs_no_trimming(tmp_path: Path) -> None:
    trim(tmp_path / METRICS, last_step=5)
    assert list(tmp_path.iterdir()) == []


def test_without_wandb_there_is_nothing_of_it_in_the_run(tmp_path: Path) -> None:
    tracker = track(tmp_path, 0)
    tracker.log(1, {"loss": 0.5})
    tracker.close(exit_code=0)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_a_run_keeps_its_wandb_id_and_another_run_has_another(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "second")]
    ids = [wandb_id(run) for run in runs]
    assert ids[0] != ids[1]
    assert [wandb_id(run) for run in runs] == ids


def run_without_login(code: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where nobody ever logged in, and nobody can be asked."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home, where W&B itself can start."""
    for name in ("home", "probe"):
        (tmp_path / name).mkdir()
    probe = f"import wandb; wandb.init(mode='offline', dir={str(tmp_path / 'probe')!r}).finish()"
    done = run_without_login(probe, home=tmp_path / "home")
    if done.returncode:
        pytest.skip(f"wandb cannot start here: {done.stderr[-300:]}")
    return tmp_path / "home"


def test_wandb_offline_needs_no_login_and_has_one_id_over_all_attempts(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for first in ("0", "2"):
        done = run_without_login(ATTEMPT, first, str(run), home=home)
        assert done.returncode == 0, done.stderr
        assert "api" not in (done.stdout + done.stderr).lower()
    assert steps_of(run) == [1, 2, 3, 4, 5]
    attempts = sorted((run / "wandb").glob("offline-run-*"))
    assert len(attempts) == 2
    for attempt in attempts:
        assert (attempt / f"run-{wandb_id(run)}.wandb").stat().st_size > 0


SIGNALLED = """
import os, signal, subprocess, sys
from pathlib import Path
import deeplense.training.tracking as tracking
run, number = Path(sys.argv[1]), signal.Signals[sys.argv[2]]
signal.signal(number, lambda *seen: print("the process heard it", flush=True))
tracker = tracking.Tracker(run, mode="offline", project="p", config={}, last_step=0)
tracker.log(1, {"x": 1.0})
def family(pid):
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(other for child in children for other in family(int(child)))]
members = family(os.getpid())
names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in members if Path(f"/proc/{pid}").exists()}
(service,) = [pid for pid, name in names.items() if "wandb-core" in name]
for pid in names:
    os.kill(pid, number)
for _ in range(200):
    if Path(f"/proc/{service}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
        print("W&B has ended", flush=True)
        break
    __import__("time").sleep(0.01)
tracker.log(2, {"x": 2.0})
tracker.mark_preempting()
tracker.close(exit_code=0)
os._exit(0)
"""


@pytest.mark.parametrize(("number", "ends"), [("SIGUSR2", False), ("SIGTERM", True)])
def test_a_signal_to_all_processes_of_a_job_ends_no_training_even_where_it_ends_wandb(
    number: str, ends: bool, home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    done = run_without_login(SIGNALLED, str(run), number, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["the process heard it", *["W&B has ended"] * ends]
    assert ("W&B failed" in done.stderr) == ends
    assert steps_of(run) == [1, 2]
