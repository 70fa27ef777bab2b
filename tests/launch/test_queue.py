"""Several runs on this machine: each begins when the one before has ended, and none is forgotten."""

import os
from pathlib import Path

import pytest

from deeplense.files import read_json, write_json
from jobs.runs.folder import FINISHED, LAUNCH
from launch import queue
from launch.cancelling import cancel
from launch.clusters import Cluster
from launch.record import Launched, launched, queue_of, told_in
from launch.status import states
from launch.submission import Submission

LOCAL = Cluster(name="local", executor="local")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three runs that wait for this process, which passes for one that works them off."""
    monkeypatch.setattr("launch.record.is_process", lambda pid, module: pid == os.getpid())
    monkeypatch.setattr(queue, "again", lambda folder, **_: Submission(LOCAL, (("train",),), (folder,), folder, folder))
    monkeypatch.setattr(queue, "SECONDS_BETWEEN_LOOKS", 0)
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        told = {"job_id": None, "queue": os.getpid(), "logs": str(tmp_path)}
        write_json(folder / LAUNCH, told | {"cluster": {"executor": "local", "slurm_conf": None}})
    return folders


def start_noting(monkeypatch: pytest.MonkeyPatch, begun: list[str], *, looks: int = 3) -> None:
    """Runs are started in name only; each is active for so many looks."""
    left: dict[str, int] = {}

    def start(submission: Submission) -> str:
        (folder,) = submission.folders
        assert all(count == 0 for count in left.values()), "the one before has ended"
        begun.append(folder.name)
        left[folder.name] = looks
        return "1"

    def is_active(folder: Path) -> bool:
        left[folder.name] = max(left.get(folder.name, 0) - 1, 0)
        return left[folder.name] > 0

    monkeypatch.setattr(queue, "start_run", start)
    monkeypatch.setattr(queue.status, "is_active", is_active)


def test_runs_begin_one_after_another(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    start_noting(monkeypatch, begun)
    queue.work_off(runs)
    assert begun == ["a", "b", "c"]


def test_waiting_runs_are_pending_and_a_cancelled_one_is_left_out(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Launched] = [launched(folder) for folder in runs]
    assert states(waiting) == {folder: ("PENDING", "queued on this machine") for folder in runs}
    cancel(waiting[1])
    assert states(waiting).keys() == {runs[0], runs[2]}
    assert ["cancelled" in told_in(folder) for folder in runs] == [False, True, False]
    begun: list[str] = []
    start_noting(monkeypatch, begun)
    queue.work_off(runs)
    assert begun == ["a", "c"]


def test_a_run_that_finished_otherwise_or_was_submitted_anew_is_left_out(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs[0] / FINISHED).touch()
    write_json(runs[1] / LAUNCH, read_json(runs[1] / LAUNCH) | {"queue": None, "job_id": "17"})
    begun: list[str] = []
    start_noting(monkeypatch, begun)
    queue.work_off(runs)
    assert begun == ["c"]


def test_a_run_that_cannot_be_started_does_not_stop_the_next(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []
    start_noting(monkeypatch, begun)
    start = queue.start_run

    def fail_first(submission: Submission) -> str:
        if submission.folders[0].name == "a":
            raise ValueError("its code is gone.")
        return start(submission)

    monkeypatch.setattr(queue, "start_run", fail_first)
    queue.work_off(runs)
    assert begun == ["b", "c"]
    assert "a could not be started: its code is gone." in capsys.readouterr().err
    assert queue_of(runs[0]) is None


def test_a_run_that_waits_for_another_does_not_keep_the_next_waiting(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    start_noting(monkeypatch, begun)
    # The first waits for one that somebody resumes only after the others have begun.
    monkeypatch.setattr(queue, "waited_for", lambda run: [run] if run == runs[0] and len(begun) < 2 else [])
    looks = iter(range(1000))
    monkeypatch.setattr(queue.time, "sleep", lambda seconds: next(looks))
    queue.work_off(runs)
    assert begun == ["b", "c", "a"]


def test_nobody_waits_for_a_process_that_is_gone(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.record.is_process", lambda pid, module: False)
    assert states([launched(folder) for folder in runs]) == {}
