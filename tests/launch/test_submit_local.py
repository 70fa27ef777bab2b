"""Submitting to this machine, for real: restarts by themselves, cancelling, resuming, and what is told meanwhile.

All processes of a job are real, started as for a user. One job trains; the others have ranks that count, which answer
signals, save and go on as a training does (tests/cluster/hooks/counting.py). Most commands are typed in a process that
is forked, with the same words; where a terminal is tested, in a new one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hooked
import pytest
from conftest import Command

from jobs.runs.attempts import EXIT_REFUSED, FOLDER, open_attempt, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH, STOPPED
from launch import queue, submit
from launch.clusters import Cluster
from launch.ends import begin_line, kind_of
from launch.submission import Submission
from tests.cluster.hooks.counted_state import last_state, newest

TRAINING = [
    "--model_name=simple_cnn",
    "--batch_size=16",
    "--evaluate_epochs=100",
    "--log_interval=1",
    "--checkpoint_minutes=0.01",
    "--device=cpu",
]
COUNTING = ["--device=cpu"]
NEVER = 10**9


def begin_in(folder: Path, python: Path) -> None:
    """What a typed command does first, in a process that is forked: it is this Python that starts others."""
    os.chdir(folder)
    sys.executable = str(python)
    queue.PYTHON = (str(python), *queue.PYTHON[1:])


@dataclass
class Place:
    """A folder in which commands are typed, with one run."""

    here: Path
    dataset: Path
    python: Path
    name: str = "run"
    counts: bool = True
    typed: int = 0

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.here / self.name

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which commands are typed."""
        return hooked.variables(self.here, counts=self.counts) | {"OMP_NUM_THREADS": "1"}

    def type(self, *words: str, here: Path | None = None) -> tuple[int, str]:
        """Type a command; returns its exit code and what it said."""
        self.typed += 1
        said = self.here / f"said{self.typed}.txt"
        command = Command(list(words), said, self.variables, partial(begin_in, here or self.here, self.python))
        return command.wait(), said.read_text()

    def words(self, *options: str, epochs: int, folder: str = "run", ranks: int = 2) -> list[str]:
        """The words that submit a training; one that counts makes a step of each epoch."""
        settings = COUNTING if self.counts else TRAINING
        job = ["train", f"--dataset={self.dataset}", f"--run={folder}", f"--epochs={epochs}", *settings]
        return ["submit", "--on", "local", f"--tasks_per_node={ranks}", "--allow_untracked", *options, *job]

    def submit(self, *options: str, epochs: int, folder: str = "run", ranks: int = 2) -> tuple[int, str]:
        """Submit a training."""
        return self.type(*self.words(*options, epochs=epochs, folder=folder, ranks=ranks))

    def hold(self, step: int) -> None:
        """Let no rank begin this step."""
        hooked.hold(self.here, step)

    def wait_until_held(self, attempt: int, *, step: int, ranks: int = 2) -> None:
        """Wait until all ranks of an attempt wait before this step, the steps before being done and, in a count,
        saved."""
        files = [self.here / f"samples_{attempt}_{rank}.txt" for rank in range(ranks)]
        deadline = time.monotonic() + 120
        while {last_step(path) for path in files} != {step - 1} or (self.counts and self.saved() != step):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        names = [path.name for path in (self.run / "checkpoints").glob("step_*")]
        return max((int(name.removeprefix("step_")) for name in names if name[5:].isdigit()), default=0)

    def attempts(self, count: int) -> list[tuple[str | None, int, int | None]]:
        """End, first and last step of the attempts, when there are so many."""
        told = read_attempts(self.run)
        assert len(told) == count, told
        return [(attempt["ended"], attempt["first_step"], attempt["last_step"]) for attempt in told]

    def processes(self) -> list[int]:
        """All processes of the run that have not ended."""
        mark, found = f"{FOLDER}=".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                given = [line for line in path.read_bytes().split(b"\0") if line.startswith(mark)]
                if given and Path(os.fsdecode(given[0].removeprefix(mark))).resolve() == self.run.resolve():
                    found.append(int(path.parent.name))
        return found

    def ranks(self) -> list[int]:
        """The processes of the ranks, the first rank first."""
        ranks = []
        for pid in self.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"jobs" in words and os.getpid() != pid:
                ranks.append(pid)
        return sorted(ranks, key=lambda pid: b"RANK=0" not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))

    def wait(self) -> None:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + 180
        while self.processes():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        """The log of the last submission."""
        return (self.run / "logs" / f"{json.loads((self.run / LAUNCH).read_text())['job_id']}_0_log.out").read_text()


def last_step(path: Path) -> int:
    """The last step in a file of samples; -1 before it."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(lines[-1].split()[0]) if lines else -1


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python that starts all processes."""
    return hooked.make_python(tmp_path_factory.mktemp("python"))


def make_place(folder: Path, dataset: Path, python: Path, *, counts: bool = True) -> Iterator[Place]:
    """A folder; what still runs in the end is killed."""
    place = Place(folder, dataset, python, counts=counts)
    try:
        yield place
    finally:
        while left := place.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@pytest.fixture
def place(tmp_path: Path, dataset: Path, python: Path) -> Iterator[Place]:
    """A new folder, for ranks that count."""
    yield from make_place(tmp_path, dataset, python)


@dataclass
class Story:
    """A run on the way to its end, with what was told."""

    place: Place
    submitted: str
    running: str
    submitted_twice: tuple[int, str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, dataset: Path, python: Path) -> Iterator[Story]:
    """A training that is submitted, asked for, submitted once more, sent SIGTERM in one rank, and followed to its
    end."""
    for place in make_place(tmp_path_factory.mktemp("story"), dataset, python, counts=False):
        place.hold(5)
        code, submitted = place.submit(epochs=6)
        assert code == 0, submitted
        place.wait_until_held(1, step=5)
        running = place.type("status")[1]
        twice = place.submit(epochs=6)
        os.kill(place.ranks()[1], signal.SIGTERM)
        place.hold(NEVER)
        place.wait()
        yield Story(place, submitted, running, twice)


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_by_itself(story: Story) -> None:
    (stopped, begun, first), (finished, second, last) = story.place.attempts(2)
    assert (stopped, finished) == ("stopped by SIGTERM", "finished"), story.place.log()
    assert begun == 0 < (first or 0) == second < (last or 0)
    assert f"stopped by SIGTERM; saved after step {first}" in story.place.log()
    assert (story.place.run / FINISHED).exists()
    assert not (story.place.run / STOPPED).exists()
    assert all("concluded" in attempt for attempt in read_attempts(story.place.run))
    assert {attempt["num_processes"] for attempt in read_attempts(story.place.run)} == {2}


def test_submitting_returns_at_once_and_says_how_to_go_on(story: Story) -> None:
    job_id = json.loads((story.place.run / LAUNCH).read_text())["job_id"]
    assert f"submitted as job {job_id}; `deeplense logs run --follow` shows its log" in story.submitted


def test_a_run_that_is_under_way_is_not_submitted_again(story: Story) -> None:
    code, said = story.submitted_twice
    assert code == EXIT_REFUSED
    assert "is already pending or running; cancel it with `deeplense cancel " in said
    assert said.count("\n") == 1


def test_the_status_tells_of_a_run_while_it_runs_and_after(story: Story) -> None:
    row = story.running.splitlines()[1].split()
    assert row[:3] == ["run", "running", "1"]
    _, line = story.place.type("status", "run")[1].splitlines()
    last = story.place.attempts(2)[1][2]
    assert line.split() == ["run", "finished", "2", f"{last}/{last}", "-", "-", "finished"]


def test_the_log_has_both_attempts_and_other_ranks_have_their_own(story: Story) -> None:
    told = story.place.type("logs", "run")[1]
    assert told == story.place.type("logs", "run", "--follow")[1] == story.place.log()
    for number in (1, 2):
        assert told.splitlines().count(begin_line(number)) == 1
    assert "deeplense: attempt 1 ended: stopped by SIGTERM; requesting another attempt" in told
    assert "deeplense: attempt 2 ended: finished; no further attempt" in told
    assert story.place.type("logs", "run", "--rank", "1")[0] == 0
    assert "has no rank 7" in story.place.type("logs", "run", "--rank", "7")[1]


def test_the_job_ran_the_code_that_was_copied(story: Story) -> None:
    assert (story.place.run / "code" / "snapshot.json").exists()
    assert (story.place.run / "code" / "jobs" / "train" / "work.py").exists()
    assert not list(story.place.run.rglob("__pycache__"))


def test_what_is_finished_is_not_resumed_submitted_or_cancelled(story: Story) -> None:
    assert story.place.type("resume", "run") == (0, "run is finished\n")
    for code, said in (story.place.submit(epochs=6), story.place.type("cancel", "run")):
        assert code == EXIT_REFUSED
        assert "is finished" in said or "nothing to cancel" in said
    story.place.attempts(2)
    assert story.place.processes() == []


def test_a_run_whose_rank_was_killed_goes_on_until_it_is_cancelled_and_is_resumed_from_anywhere(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place.hold(10)
    place.submit("--restarts", "crash=1,stopped=0", epochs=20)
    place.wait_until_held(1, step=10)
    os.kill(place.ranks()[1], signal.SIGKILL)
    place.hold(15)
    place.wait_until_held(2, step=15)
    assert place.type("cancel", "run")[0] == 0
    place.wait()
    (crash, _, _), (cancelled, first, last) = place.attempts(2)
    assert (kind_of(crash or ""), cancelled) == ("crash", "cancelled"), place.log()
    assert (first, last) == (10, 16)
    told = place.type("status", "run")[1].splitlines()
    assert any(line.rstrip().endswith("cancelled") for line in told), told
    assert "`deeplense resume " in told[-1]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deeper"
    elsewhere.mkdir()
    place.hold(NEVER)
    code, said = place.type("resume", os.path.relpath(place.run, elsewhere), here=elsewhere)
    assert code == 0, said
    place.wait()
    assert place.attempts(3)[2][:2] == ("finished", last), place.log()
    assert newest(place.run / "checkpoints") == (20, last_state(20))


def test_a_run_whose_supervisor_was_killed_leaves_nobody_behind_and_is_resumed(place: Place) -> None:
    place.hold(5)
    place.submit("--restarts", "node_lost=0,crash=0", epochs=10, ranks=1)
    place.wait_until_held(1, step=5, ranks=1)
    status = Path(f"/proc/{place.ranks()[0]}/stat").read_text()
    os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
    place.wait()
    assert [last for _, _, last in place.attempts(1)] == [6]
    place.hold(NEVER)
    assert place.type("resume", "run")[0] == 0
    place.wait()
    assert [end for end, _, _ in place.attempts(2)] == ["stopped by SIGTERM", "finished"], place.log()
    assert place.attempts(2)[1][1] == 6
    assert newest(place.run / "checkpoints") == (10, last_state(10))


def test_a_submitted_run_keeps_no_pipe_open_and_outlives_its_terminal(place: Place) -> None:
    command = [str(place.python), "-m", "launch", *place.words(epochs=10, ranks=1)]
    place.hold(5)
    environment = os.environ | place.variables
    with subprocess.Popen(
        command, cwd=place.here, env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as terminal:
        assert b"submitted as job" in terminal.communicate()[0]
        place.wait_until_held(1, step=5, ranks=1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(terminal.pid, signal.SIGINT)
        place.type("cancel", "run")
    place.wait()
    assert place.attempts(1) == [("cancelled", 0, 6)]
    assert newest(place.run / "checkpoints") == (6, last_state(6))


def test_a_job_that_has_no_run_is_submitted_with_a_folder_of_its_own(place: Place) -> None:
    words = ["verify", str(place.dataset / "train")]
    code, said = place.type("submit", "--on", "local", "--allow_untracked", *words)
    assert code == 0, said
    (folder,) = (place.here / "launches").iterdir()
    assert said.startswith(f"launches/{folder.name}: submitted as job ")
    code, said = place.type("logs", str(folder), "--follow")
    assert "attempt 1 ended: finished" in said
    assert place.type("status")[1].split()[-1] == "finished"
    assert "deeplense resume" not in said


def test_attempts_that_begin_before_the_submission_is_over_count_as_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(submission: Submission) -> list[str]:
        for folder in submission.folders:
            open_attempt(folder)
        return [f"17_{place}" for place in range(len(submission.folders))]

    monkeypatch.setattr(submit, "send_to_slurm", start)
    monkeypatch.setattr("launch.status.states", lambda runs: {})
    commands = [["train", f"--dataset={place.dataset}", f"--run={place.here / name}"] for name in "ab"]
    submission = submit.prepare_sweep(commands, Cluster(name="any"), folder=place.here / "sweep")
    for count in (0, 1):
        assert submit.send(submission, keep_code=True) == ["17_0", "17_1"]
        for name, job_id in (("a", "17_0"), ("b", "17_1")):
            told = json.loads((place.here / name / LAUNCH).read_text())
            assert (told["attempts_before"], told["job_id"]) == (count, job_id)


def test_a_sweep_runs_one_after_another_less_what_is_cancelled_while_it_waits(place: Place) -> None:
    job = ["train", f"--dataset={place.dataset}", "--run=runs/{seed}", "--seed=0:3", "--epochs=10", *COUNTING]
    place.hold(5)
    code, said = place.type("sweep", "--on", "local", "--allow_untracked", *job)
    assert code == 0, said
    assert said.count("queued; starts when the runs before it have ended") == 3
    place.name = "runs/0"
    place.wait_until_held(1, step=5, ranks=1)
    lines = place.type("status", "runs")[1].splitlines()[1:]
    assert [line.split("  ")[1] for line in lines] == [
        "running",
        "pending (queued on this machine)",
        "pending (queued on this machine)",
    ]
    assert place.type("cancel", "runs/1")[0] == 0
    assert not (place.here / "runs" / "2").exists() or read_attempts(place.here / "runs" / "2") == []
    place.hold(NEVER)
    for name in ("runs/0", "runs/2"):
        place.name = name
        deadline = time.monotonic() + 120
        while not (place.run / FINISHED).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.05)
        place.wait()
        assert place.attempts(1) == [("finished", 0, 10)]
    assert read_attempts(place.here / "runs" / "1") == []
    assert place.type("status", "runs/1")[1].splitlines()[1].split()[:3] == ["runs/1", "not", "running"]


def test_wrong_settings_are_refused_before_anything_is_written(place: Place) -> None:
    code, said = place.submit("--dry_run", epochs=0, folder="other")
    assert code == EXIT_REFUSED, said
    assert "epochs" in said
    assert not (place.here / "other").exists()
    code, said = place.submit("--dry_run", epochs=1, folder="other")
    assert code == 0
    assert not (place.here / "other").exists()
