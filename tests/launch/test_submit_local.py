"""Submitting to this machine, for real: restarts by themselves, cancelling, resuming, and what is told meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.runs.attempts import EXIT_REFUSED, FOLDER, open_attempt, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH, STOPPED
from launch import submit
from launch.clusters import Cluster
from launch.ends import begin_line, kind_of
from launch.submission import Submission

SETTINGS = [
    "--model_name=simple_cnn",
    "--batch_size=16",
    "--evaluate_epochs=100",
    "--log_interval=1",
    "--checkpoint_minutes=0.01",
    "--device=cpu",
]


@dataclass
class Place:
    """A folder in which commands are typed, with one run."""

    here: Path
    dataset: Path
    name: str = "run"

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.here / self.name

    def type(self, *words: str, here: Path | None = None) -> tuple[int, str]:
        """Type a command; returns its exit code and what it said."""
        said = self.here / "said.txt"
        with said.open("w") as file:
            command = [sys.executable, "-m", "launch", *words]
            done = subprocess.run(command, cwd=here or self.here, stdout=file, stderr=file, timeout=120)
        return done.returncode, said.read_text()

    def words(self, *options: str, epochs: int, folder: str = "run", ranks: int = 2) -> list[str]:
        """The words that submit a training."""
        job = ["train", f"--dataset={self.dataset}", f"--run={folder}", f"--epochs={epochs}", *SETTINGS]
        return ["submit", "--on", "local", f"--tasks_per_node={ranks}", "--allow_untracked", *options, *job]

    def submit(self, *options: str, epochs: int, folder: str = "run", ranks: int = 2) -> tuple[int, str]:
        """Submit a training."""
        return self.type(*self.words(*options, epochs=epochs, folder=folder, ranks=ranks))

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

    def wait_for(self, attempt: int, *, steps: int) -> None:
        """Wait until an attempt has made this number of steps and has written a checkpoint."""
        deadline, twice = time.monotonic() + 120, False
        while time.monotonic() < deadline:
            told = read_attempts(self.run)
            first = told[-1]["first_step"] if len(told) == attempt else None
            saved = any((self.run / "checkpoints").glob("step_*"))
            # An attempt first says where it begins, and then removes the steps after that from the metrics.
            good = first is not None and saved and self.last_step() >= first + steps
            if good and twice:
                return
            twice = good
            time.sleep(0.1)
        raise TimeoutError(self.log())

    def last_step(self) -> int:
        """The last step in the metrics."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def wait(self) -> None:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + 180
        while self.processes():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        """The log of the last submission."""
        return (self.run / "logs" / f"{json.loads((self.run / LAUNCH).read_text())['job_id']}_0_log.out").read_text()


def make_place(folder: Path, dataset: Path) -> Iterator[Place]:
    """A folder; what still runs in the end is killed."""
    place = Place(folder, dataset)
    yield place
    while left := place.processes():
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


@pytest.fixture
def place(tmp_path: Path, dataset: Path) -> Iterator[Place]:
    """A new folder."""
    yield from make_place(tmp_path, dataset)


@dataclass
class Story:
    """A run on the way to its end, with what was told."""

    place: Place
    submitted: str
    running: str
    submitted_twice: tuple[int, str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Iterator[Story]:
    """A run that is submitted, asked for, submitted once more, sent SIGTERM in one rank, and followed to its end."""
    for place in make_place(tmp_path_factory.mktemp("story"), dataset):
        code, submitted = place.submit(epochs=80)
        assert code == 0, submitted
        place.wait_for(1, steps=5)
        running = place.type("status")[1]
        twice = place.submit(epochs=80)
        os.kill(place.ranks()[1], signal.SIGTERM)
        place.wait()
        yield Story(place, submitted, running, twice)


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_by_itself(story: Story) -> None:
    (stopped, begun, first), (finished, second, last) = story.place.attempts(2)
    assert (stopped, finished) == ("stopped by SIGTERM", "finished"), story.place.log()
    assert begun == 0 < (first or 0) == second < (last or 0)
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
    for code, said in (story.place.submit(epochs=80), story.place.type("cancel", "run")):
        assert code == EXIT_REFUSED
        assert "is finished" in said or "nothing to cancel" in said
    story.place.attempts(2)
    assert story.place.processes() == []


def test_a_run_whose_rank_was_killed_goes_on_until_it_is_cancelled_and_is_resumed_from_anywhere(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place.submit("--restarts", "crash=1,stopped=0", epochs=70)
    place.wait_for(1, steps=40)
    os.kill(place.ranks()[1], signal.SIGKILL)
    place.wait_for(2, steps=5)
    assert place.type("cancel", "run")[0] == 0
    place.wait()
    (crash, _, _), (cancelled, first, last) = place.attempts(2)
    assert (kind_of(crash or ""), cancelled) == ("crash", "cancelled"), place.log()
    assert (last or 0) > first > 0
    told = place.type("status", "run")[1].splitlines()
    assert any(line.rstrip().endswith("cancelled") for line in told), told
    assert "`deeplense resume " in told[-1]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deeper"
    elsewhere.mkdir()
    code, said = place.type("resume", os.path.relpath(place.run, elsewhere), here=elsewhere)
    assert code == 0, said
    place.wait()
    assert place.attempts(3)[2][:2] == ("finished", last), place.log()


def test_a_run_whose_supervisor_was_killed_leaves_nobody_behind_and_is_resumed(place: Place) -> None:
    place.submit("--restarts", "node_lost=0,crash=0", epochs=30, ranks=1)
    place.wait_for(1, steps=5)
    status = Path(f"/proc/{place.ranks()[0]}/stat").read_text()
    os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
    place.wait()
    (step,) = [last for _, _, last in place.attempts(1)]
    assert place.type("resume", "run")[0] == 0
    place.wait()
    assert [end for end, _, _ in place.attempts(2)] == ["stopped by SIGTERM", "finished"], place.log()
    assert place.attempts(2)[1][1] == step


def test_a_submitted_run_keeps_no_pipe_open_and_outlives_its_terminal(place: Place) -> None:
    command = [sys.executable, "-m", "launch", *place.words(epochs=400, ranks=1)]
    with subprocess.Popen(command, cwd=place.here, stdout=subprocess.PIPE, start_new_session=True) as terminal:
        assert b"submitted as job" in terminal.communicate()[0]
        place.wait_for(1, steps=1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(terminal.pid, signal.SIGINT)
        place.type("cancel", "run")
    place.wait()
    assert [end for end, _, _ in place.attempts(1)] == ["cancelled"]
    assert "stopped by SIGTERM; saved after step" in place.log()


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
    job = ["train", f"--dataset={place.dataset}", "--run=runs/{seed}", "--seed=0:3", "--epochs=40", *SETTINGS]
    code, said = place.type("sweep", "--on", "local", "--allow_untracked", *job)
    assert code == 0, said
    assert said.count("queued; starts when the runs before it have ended") == 3
    place = Place(place.here, place.dataset, "runs/0")
    place.wait_for(1, steps=1)
    lines = place.type("status", "runs")[1].splitlines()[1:]
    assert [line.split("  ")[1] for line in lines] == [
        "running",
        "pending (queued on this machine)",
        "pending (queued on this machine)",
    ]
    assert place.type("cancel", "runs/1")[0] == 0
    place.wait()
    last = Place(place.here, place.dataset, "runs/2")
    last.wait_for(1, steps=1)
    last.wait()
    assert (place.run / FINISHED).exists()
    assert (last.run / FINISHED).exists()
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
