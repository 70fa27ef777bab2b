"""What the batch script asks before and after an attempt: the ledger it leaves, and what it is told to do."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import write_json
from jobs.attempts import ATTEMPTS, FOLDER, NUMBER, STACKS, begin_attempt, end_attempt, open_attempt, read_attempts
from jobs.runs import LAUNCH
from launch import requeue
from launch.ends import begin_line

RUNNING = "JobId=4 JobState=RUNNING Restarts={} PreemptTime=None"
COMPLETING = "JobId=4 JobState=COMPLETING Restarts=0"
ENDED_BY_SLURM = "slurmstepd: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-22T05:10:04 DUE TO {} ***\n"


@dataclass
class Job:
    """Job 4 of a cluster, started again and again by Slurm, which runs in one folder."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    restart: int = -1

    @property
    def log(self) -> Path:
        """The log of the batch script."""
        return self.folder / "log.txt"

    def begin(self, *, by_slurm: bool = True, history: str = "") -> int:
        """The next attempt begins; `by_slurm` as the same job, else as a new one."""
        self.restart = self.restart + 1 if by_slurm else 0
        if not by_slurm:
            self.monkeypatch.setenv("SLURM_JOB_ID", str(int(os.environ["SLURM_JOB_ID"]) + 1))
        self.monkeypatch.setenv("SLURM_RESTART_COUNT", str(self.restart))
        scheduler = RUNNING.format(self.restart)
        number = requeue.begin(self.folder, log=self.log, scheduler=scheduler, history=history)
        self.monkeypatch.setenv(NUMBER, str(number))
        self.say(begin_line(number))
        return number

    def end(self, number: int, *, code: int, own: str | None = None, scheduler: str | None = None) -> str:
        """An attempt ends."""
        if own:
            end_attempt(self.folder, number, reason=own, last_step=number)
        given = RUNNING.format(self.restart) if scheduler is None else scheduler
        return requeue.end(self.folder, number, log=self.log, scheduler=given, code=code)

    def say(self, text: str) -> None:
        """Write to the log."""
        with self.log.open("a") as file:
            file.write(text.rstrip("\n") + "\n")

    def submitted(self, **restarts: int) -> None:
        """Submit the run, or submit it again, with these budgets."""
        budgets = {kind.replace("_", " "): budget for kind, budget in restarts.items()}
        before = len(read_attempts(self.folder))
        write_json(self.folder / LAUNCH, {"restarts": budgets, "attempts_before": before})

    def ends(self) -> list[str | None]:
        """How its attempts ended."""
        return [attempt["ended"] for attempt in read_attempts(self.folder)]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that was submitted and has not begun."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    job = Job(tmp_path, monkeypatch)
    job.submitted()
    return job


def test_a_crash_is_started_again_as_often_as_allowed(job: Job) -> None:
    job.submitted(crash=2)
    assert [job.end(job.begin(), code=code) for code in (1, 139, 1)] == ["requeue", "requeue", "end"]
    assert job.ends() == ["crash: exit code 1", "crash: exit code 139", "crash: exit code 1"]


def test_ends_of_another_kind_leave_the_budget_as_it_is(job: Job) -> None:
    job.submitted(crash=1)
    codes = [(1, None), (85, "stopped by SIGUSR2"), (86, None), (85, "stopped by SIGTERM"), (1, "error: KeyError: 'a'")]
    assert [job.end(job.begin(), code=code, own=own) for code, own in codes] == [*["requeue"] * 4, "end"]
    assert job.ends() == ["crash: exit code 1", "time limit", "hang", "stopped by SIGTERM", "crash: KeyError: 'a'"]


def test_attempts_of_an_earlier_submission_do_not_count(job: Job) -> None:
    for _ in range(2):
        job.submitted(crash=1)
        assert job.end(job.begin(by_slurm=False), code=1) == "requeue"
        assert job.end(job.begin(), code=1) == "end"
    assert len(job.ends()) == 4


@pytest.mark.parametrize(
    ("own", "code", "scheduler", "reason"),
    [
        ("finished", 0, None, "finished"),
        (None, 0, None, "finished"),
        ("stopped by SIGTERM", 85, COMPLETING, "cancelled"),
        ("error: ValueError: give less", 2, None, "refused: ValueError: give less"),
    ],
)
def test_what_is_settled_is_written_and_ends_the_run(
    own: str | None, code: int, scheduler: str | None, reason: str, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.end(job.begin(), code=code, own=own, scheduler=scheduler) == "end"
    assert job.ends() == [reason]
    assert "concluded" in read_attempts(job.folder)[0]
    assert f"deeplense: attempt 1 ended: {reason}; no further attempt\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("JOB REQUEUE", "requeued"), ("PREEMPTION", "preempted, without grace"), ("NODE FAILURE, SEE", "node lost")],
)
def test_what_slurm_starts_again_by_itself_is_left_to_it(cause: str, reason: str, job: Job) -> None:
    number = job.begin()
    job.say(ENDED_BY_SLURM.format(cause))
    assert job.end(number, code=143, scheduler="JobState=COMPLETING Restarts=1") == "leave"
    assert job.begin() == 2
    assert job.end(2, code=1) == "requeue"
    assert job.ends() == [reason, "crash: exit code 1"]


def test_a_rank_that_told_that_it_hangs_is_believed(job: Job) -> None:
    for number, rank in ((1, 0), (2, 1)):
        assert job.begin() == number
        (job.folder / STACKS).mkdir(exist_ok=True)
        (job.folder / STACKS / f"attempt_2_rank_{rank}.txt").write_text("Thread 0x1")
        if number == 2:
            job.end(number, code=137)
        else:
            job.end(number, code=143)
    assert job.ends() == ["crash: exit code 143", "hang"]


@pytest.mark.parametrize(
    ("said", "history", "reason"),
    [
        ("", "", "node lost"),
        (ENDED_BY_SLURM.format("PREEMPTION"), "", "preempted, without grace"),
        ("", "PREEMPTED\nRUNNING\n", "preempted, without grace"),
        (ENDED_BY_SLURM.format("NODE FAILURE, SEE"), "REQUEUED\nRUNNING\n", "node lost"),
    ],
)
def test_the_next_attempt_says_why_the_one_before_ended_whose_script_died(
    said: str, history: str, reason: str, job: Job
) -> None:
    begin_attempt(job.folder, first_step=0, num_processes=2)
    job.restart = 0
    job.say(begin_line(1) + "\n" + said)
    assert job.begin(history=history) == 2
    assert job.ends() == [reason, None]
    assert "concluded" in read_attempts(job.folder)[0]


def test_without_a_record_of_the_submission_every_attempt_counts(job: Job) -> None:
    (job.folder / LAUNCH).unlink(missing_ok=True)
    first = job.begin()
    job.say(ENDED_BY_SLURM.format("PREEMPTION"))
    assert job.begin() == first + 1
    assert read_attempts(job.folder)[0]["ended"] == "preempted, without grace"


def test_what_was_concluded_is_not_judged_again(job: Job) -> None:
    job.end(job.begin(), code=85, own="stopped by SIGUSR2")
    job.begin(history="REQUEUED\nRUNNING\n")
    assert job.ends() == ["time limit", None]


def test_an_attempt_of_an_earlier_job_is_only_called_killed(job: Job) -> None:
    job.begin()
    job.submitted(node_lost=0)
    assert job.begin(by_slurm=False) == 2
    assert job.ends() == ["killed", None]


def test_slurm_starts_it_again_but_the_budget_is_used_up(job: Job) -> None:
    job.submitted(node_lost=1)
    assert [job.begin(), job.begin()] == [1, 2]
    with pytest.raises(ValueError, match=r"ended too often by: node lost. `deeplense resume .*` starts it again"):
        job.begin()
    assert job.ends() == ["node lost", "node lost", "out of restarts: node lost"]
    job.submitted(node_lost=1)
    assert job.begin(by_slurm=False) == 4


@pytest.mark.parametrize(
    ("own", "history", "reason"), [("finished", "", "finished"), (None, "CANCELLED by 0", "cancelled")]
)
def test_slurm_starts_again_what_is_settled_and_it_stays_so(
    own: str | None, history: str, reason: str, job: Job
) -> None:
    number = job.begin()
    if own:
        end_attempt(job.folder, number, reason=own)
    with pytest.raises(ValueError, match=f"has ended: {reason}"):
        job.begin(history=history)
    assert reason in job.ends()
    assert not any("too often" in str(end) or "out of restarts" in str(end) for end in job.ends())


def test_without_a_scheduler_a_killed_run_is_called_so_and_continues(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    for number in (1, 2):
        job.submitted(node_lost=0, crash=0)
        assert requeue.begin(job.folder, log=job.log, scheduler="", history="") == number
    assert job.ends() == ["killed", None]


def test_an_attempt_that_slurm_has_given_up_writes_nothing(job: Job) -> None:
    first = job.begin()
    open_attempt(job.folder)
    before = (job.folder / ATTEMPTS).read_bytes()
    assert job.end(first, code=1) == "leave"
    assert (job.folder / ATTEMPTS).read_bytes() == before


def test_a_full_disk_does_not_keep_a_run_from_its_next_attempt(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    number = job.begin()
    monkeypatch.setattr(requeue, "end_attempt", full)
    assert job.end(number, code=87) == "requeue"
    assert "could not write why attempt 1 ended (disk full)" in capsys.readouterr().err


def ask(folder: Path, what: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Ask as the batch script does."""
    words = [sys.executable, "-m", "launch.requeue", what, "--log", str(folder / "log.txt"), *options]
    environment = os.environ | {FOLDER: str(folder)} | variables
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def test_the_script_reads_a_number_and_a_word_from_stdout_and_the_rest_is_for_the_log(job: Job) -> None:
    job.submitted(node_lost=0)
    folder = job.folder
    begun = ask(folder, "begin", "--scheduler", RUNNING.format(0), "--history", "")
    assert (begun.stdout, begun.stderr, begun.returncode) == ("1\n", "", 0)
    preempting = "JobState=RUNNING Restarts=0 PreemptTime=2026-11-22T05:10:04"
    ended = ask(folder, "end", "--scheduler", preempting, "--code", "143", **{NUMBER: "1"})
    assert (ended.stdout, ended.returncode) == ("requeue\n", 0)
    assert ended.stderr == "deeplense: attempt 1 ended: preempted, with grace; asking for another attempt\n"
    assert ask(folder, "begin", "--scheduler", "", SLURM_RESTART_COUNT="1").stdout == "2\n"
    refused = ask(folder, "begin", "--scheduler", "", "--history", "REQUEUED\nNODE_FAIL\n", SLURM_RESTART_COUNT="2")
    assert (refused.stdout, refused.returncode) == ("", 1)
    assert refused.stderr.startswith("deeplense: ")
    assert refused.stderr.count("\n") == 1
    assert json.loads((folder / ATTEMPTS).read_text().splitlines()[-1])["ended"] == "out of restarts: node lost"
