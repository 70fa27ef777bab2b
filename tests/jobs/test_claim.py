"""A run that is trained is locked: who trains it is told, the dead are told from the living, and what was refused
leaves no folder behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from conftest import Command

from deeplense import locks
from deeplense.locks import Held, Lock, holder_of_now
from deeplense.records import read_record, write_record
from jobs import command_line
from jobs.runs.attempts import EXIT_REFUSED, FOLDER, NUMBER, open_attempt, read_attempts
from jobs.runs.claim import Claim
from jobs.runs.folder import LOCK
from jobs.runs.stored import CONFIG

Start = Callable[..., Command]


@pytest.fixture(autouse=True)
def nobody_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a scheduler nor a script; a lease that tests can wait for."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in (NUMBER, FOLDER)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_BEATS", 0.05)
    monkeypatch.setattr(locks, "SECONDS_OF_A_LEASE", 1.0)


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def settings_of(run: Path, **values: object) -> Any:
    """Settings of a training in a folder."""
    words = [f"--{name}={value}" for name, value in values.items()]
    return command_line.parse("train", [f"--run={run}", "--dataset=d", "--model_name=simple_cnn", *words])


def held_by(pid: int, **facts: object) -> dict[str, Any]:
    """What the lock of another process of this machine says."""
    return holder_of_now() | {"pid": pid, "started": psutil.Process(pid).create_time()} | facts


def lock_of(run: Path, values: dict[str, Any]) -> Path:
    """The lock of a run, held by another one."""
    run.mkdir(parents=True, exist_ok=True)
    write_record(run / LOCK, values)
    return run / LOCK


def script_begins(run: Path, number: int, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the attempt of this number, of a job of Slurm."""
    while len(read_attempts(run)) < number:
        open_attempt(run)
    monkeypatch.setenv(NUMBER, str(number))
    monkeypatch.setenv(FOLDER, str(run))
    monkeypatch.setenv("SLURM_JOB_ID", job)


def test_a_run_that_a_living_process_trains_is_refused_with_who_and_since_when(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    run = tmp_path / "run"
    lock_of(run, held_by(sleeper.pid, attempt=3, job_id="17", user="vera", since="2026-11-29T12:00:00+0000"))
    with (
        pytest.raises(
            ValueError,
            match=rf"run is being trained by process {sleeper.pid} of vera on .*, since 2026-11-29T12:00:00\+0000 "
            r"\(attempt 3 of job 17\)\. Wait for it, or stop it; --take_over 1 trains anyway",
        ),
        Claim(settings_of(run)) as claim,
    ):
        claim.open()
    assert [path.name for path in run.iterdir()] == [LOCK]
    with pytest.raises(ValueError, match="is being trained by"):
        Claim(settings_of(run)).check()


def test_what_a_killed_process_held_is_free_at_once(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    run = tmp_path / "run"
    lock_of(run, held_by(sleeper.pid))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    with Claim(settings_of(run)) as claim:
        claim.check()
        claim.open()
        assert read_record(run / LOCK, locks.KINDS)["pid"] == os.getpid()


def test_the_number_of_a_dead_process_that_another_one_has_now_is_no_life(tmp_path: Path) -> None:
    lock_of(tmp_path, held_by(os.getpid()) | {"started": 1.0})
    lock = Lock(tmp_path / LOCK)
    lock.take({})
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_another_machine_lives_as_long_as_it_renews_its_lock(tmp_path: Path) -> None:
    elsewhere = {"machine": "node7 x pid:[1]", "host": "node7", "pid": 1}
    path = lock_of(tmp_path, holder_of_now() | elsewhere)
    told: list[str] = []
    other = Lock(path)
    other.content = path.read_bytes()
    Thread(target=other.renew, daemon=True).start()
    with pytest.raises(Held, match=r"is being written by process 1 of .* on node7"):
        Lock(path).take({}, tell=told.append)
    assert "may be in use by process 1" in told[0]
    other.over.set()
    lock = Lock(path)
    lock.take({})
    assert read_record(path, locks.KINDS)["pid"] == os.getpid()
    lock.release()


@pytest.mark.parametrize(
    ("number", "job", "passes"), [(4, "17", True), (3, "17", False), (4, "18", False), (None, "17", False)]
)
def test_a_later_attempt_of_the_same_job_passes_without_asking_and_nothing_else_does(
    number: int | None,
    job: str,
    passes: bool,
    tmp_path: Path,
    sleeper: "subprocess.Popen[bytes]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    lock_of(run, held_by(sleeper.pid, attempt=3, job_id="17"))
    if number is not None:
        script_begins(run, number, job, monkeypatch)
    else:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    claim = Claim(settings_of(run))
    if passes:
        with claim:
            claim.open()
        return
    with pytest.raises(ValueError, match="is being trained by"):
        claim.open()


def test_a_run_is_taken_over_where_that_is_said_and_the_config_does_not_keep_it(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    run = tmp_path / "run"
    lock_of(run, held_by(sleeper.pid))
    settings = settings_of(run, take_over=1)
    with Claim(settings, take_over=True) as claim:
        claim.check()
        claim.open()
        assert "take_over: 0" in (run / CONFIG).read_text()


def test_a_damaged_lock_is_free_once_nobody_renews_it(tmp_path: Path) -> None:
    for content in (b"", b"{", b'{"pid": "x"}', b"\xff\x00"):
        (tmp_path / LOCK).write_bytes(content)
        lock = Lock(tmp_path / LOCK)
        lock.take({})
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_of_many_who_take_a_lock_at_once_one_has_it(tmp_path: Path) -> None:
    lock_of(tmp_path, holder_of_now() | {"pid": 2**22 + 1, "started": 1.0})
    code = (
        "import sys, time; from pathlib import Path; from deeplense.locks import Held, Lock\n"
        "lock = Lock(Path(sys.argv[1]))\n"
        "try:\n    lock.take({})\nexcept Held:\n    print('held', flush=True)\nelse:\n    print('taken', flush=True)\n"
        "sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / LOCK)]
    started = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.stdout.readline().strip() for process in started if process.stdout]
    for process in started:
        process.communicate()
    assert sorted(said) == ["held"] * 5 + ["taken"]


def begin_and_fail(run: Path) -> None:
    """Open a run, whose data are then refused."""
    with contextlib.suppress(ValueError), Claim(settings_of(run)) as claim:
        claim.open()
        assert (run / CONFIG).exists()
        raise ValueError("bad data")


def test_what_is_refused_leaves_no_folder_and_what_was_there_stays(tmp_path: Path) -> None:
    run = tmp_path / "new" / "deep" / "run"
    begin_and_fail(run)
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    begin_and_fail(run)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset=nowhere"],
        ["--dataset={dataset}", "--batch_size=5000"],
        ["--dataset={dataset}", "--model_name=simple_cnn", "--mix=1,2"],
    ],
)
def test_a_refused_training_leaves_nothing(
    words: list[str], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.__main__ import main

    given = [word.format(dataset=dataset) for word in words]
    assert main(["train", f"--run={tmp_path / 'runs' / 'a'}", "--device=cpu", *given]) == EXIT_REFUSED
    assert capsys.readouterr().err.startswith("deeplense: ")
    assert list(tmp_path.iterdir()) == []


def metrics_of(run: Path) -> str:
    """What a run has logged."""
    return (run / "metrics.jsonl").read_text()


def wait_at_first_step(seconds: float) -> None:
    """In a training: stay in the first step for so long."""
    from jobs.frame import updates

    log = updates.log_update

    def log_and_wait(training: Any, update: Any) -> float:
        loss = log(training, update)
        if update.step == 1:
            time.sleep(seconds)
        return loss

    updates.log_update = log_and_wait


def test_a_second_training_is_refused_and_goes_on_once_the_first_is_killed(
    dataset: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    words = ["train", f"--dataset={dataset}", f"--run={run}", "--model_name=simple_cnn", "--batch_size=16"]
    words += ["--epochs=1", "--device=cpu", "--log_interval=1"]
    first = start(*words, prepare=partial(wait_at_first_step, 600.0))
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not ((run / "metrics.jsonl").exists() and metrics_of(run)):
        time.sleep(0.05)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert start(*words).wait() == EXIT_REFUSED
    assert f"is being trained by process {json.loads(before[LOCK])['pid']}" in first.log.read_text()
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert after == before
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert start(*words).wait() == 0
    assert not (run / LOCK).exists()
    assert [attempt["ended"] for attempt in read_attempts(run)] == ["killed", "finished"]
