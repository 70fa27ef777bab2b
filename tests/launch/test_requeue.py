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
from deeplense.records import write_record
from jobs.runs.attempts import (
    ATTEMPTS,
    EXIT_REFUSED,
    FOLDER,
    NUMBER,
    STACKS,
    begin_attempt,
    end_attempt,
    note_failure,
    open_attempt,
    read_attempts,
)
from jobs.runs.folder import FINISHED, LAUNCH
from launch import requeue
from launch.ends import begin_line
from launch.judging import Job as Told
from launch.requeue import EXIT_AWAY, EXIT_ERROR, EXIT_OVER, Over

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
        job = Told(RUNNING.format(self.restart), history)
        number = requeue.begin(self.folder, log=self.log, job=job)
        self.monkeypatch.setenv(NUMBER, str(number))
        self.say(begin_line(number))
        return number

    def end(self, number: int, *, code: int, own: str | None = None, scheduler: str | None = None) -> str:
        """An attempt ends."""
        if own:
            end_attempt(self.folder, number, reason=own, last_step=number)
        given = RUNNING.format(self.restart) if scheduler is None else scheduler
        return requeue.end(self.folder, number, log=self.log, job=Told(given), code=code)

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
    assert job.end(job.begin(), code=code, own=own, scheduler=scheduler) == ("finished" if code == 0 else "end")
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
    with pytest.raises(
        ValueError, match=r"too often without progress \(reason: node lost\). Resume it with `deeplense resume .*`"
    ):
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
    with pytest.raises(Over if own else ValueError, match="is finished" if own else f"has ended: {reason}"):
        job.begin(history=history)
    assert reason in job.ends()
    assert not any("too often" in str(end) or "out of restarts" in str(end) for end in job.ends())


def test_without_a_scheduler_a_killed_run_is_called_so_and_continues(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    for number in (1, 2):
        job.submitted(node_lost=0, crash=0)
        assert requeue.begin(job.folder, log=job.log, job=Told()) == number
    assert job.ends() == ["killed", None]


def test_an_attempt_that_slurm_has_given_up_writes_nothing(job: Job) -> None:
    first = job.begin()
    open_attempt(job.folder)
    before = (job.folder / ATTEMPTS).read_bytes()
    assert job.end(first, code=1) == "leave"
    assert (job.folder / ATTEMPTS).read_bytes() == before


def away(number: int) -> Any:
    """What fails as where a file cannot be written or read."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EINTR, errno.ENOENT]


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_where_a_file_is_away_the_script_is_told_to_ask_again_and_nothing_is_lost(
    number: int, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--log", str(job.log), "--scheduler", RUNNING.format(0)]
    with monkeypatch.context() as broken:
        broken.setattr("jobs.runs.attempts.write_attempts", away(number))
        assert requeue.main(["begin", *words]) == EXIT_AWAY
    assert requeue.main(["begin", *words]) == 0
    monkeypatch.setenv(NUMBER, "1")
    with monkeypatch.context() as broken:
        broken.setattr("jobs.runs.attempts.write_attempts", away(number))
        assert requeue.main(["end", *words, "--code", "87"]) == EXIT_AWAY
    assert requeue.main(["end", *words, "--code", "87"]) == 0
    assert capsys.readouterr().out == "1\nrequeue\n"
    assert job.ends() == ["disk full"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError("attempt"), EXIT_ERROR),
        (AssertionError(), EXIT_ERROR),
        (ModuleNotFoundError("No module named 'launch.ends'"), EXIT_AWAY),
        (MemoryError(), EXIT_AWAY),
    ],
    ids=repr,
)
@pytest.mark.parametrize("what", ["begin", "end"])
def test_an_error_of_the_code_is_told_from_what_may_pass(
    what: str,
    error: Exception,
    code: int,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setenv(NUMBER, "1")
    monkeypatch.setattr(requeue, what, fail)
    assert requeue.main([what, "--log", str(job.log)]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert ("Traceback" in told.err) == (code == EXIT_ERROR)
    assert code == EXIT_ERROR or told.err.removeprefix("deeplense: ").strip()


def test_a_run_whose_disk_is_away_does_not_begin_anew_in_an_empty_folder(job: Job, tmp_path: Path) -> None:
    gone = tmp_path / "mount" / "run"
    with pytest.raises(FileNotFoundError):
        requeue.begin(gone, log=job.log, job=Told())
    assert not (tmp_path / "mount").exists()


def test_asked_twice_the_same_attempt_is_meant(job: Job) -> None:
    first = job.begin()
    again = Told(RUNNING.format(0))
    assert requeue.begin(job.folder, log=job.log, job=again) == first
    assert job.end(first, code=1) == job.end(first, code=1) == "requeue"
    assert job.ends() == ["crash: exit code 1"]
    assert job.begin() == first + 1


def follow(job: Job, before: Told, *, after: tuple[str, ...] = ("4",)) -> int:
    """Job 5, which was to start when another has ended for good, begins."""
    job.monkeypatch.setenv("SLURM_JOB_ID", "5")
    job.monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    log = job.folder / "5_0_log.out"
    return requeue.begin(job.folder, log=log, job=Told(RUNNING.format(0)), after=after, before=before)


ENDED = "JobId=4 JobState={} Restarts=0"


@pytest.mark.parametrize(
    ("said", "before", "reason"),
    [
        ("", Told(ENDED.format("FAILED")), "crash: the batch script was killed (Slurm: failed)"),
        ("", Told(ENDED.format("TIMEOUT")), "time limit"),
        ("", Told(history="PREEMPTED\n"), "preempted, without grace"),
        (ENDED_BY_SLURM.format("TIME LIMIT"), Told(), "time limit"),
        ("", Told(), "killed"),
    ],
)
def test_a_job_that_follows_goes_on_where_the_script_of_the_one_before_died(
    said: str, before: Told, reason: str, job: Job
) -> None:
    number = job.begin()
    (job.folder / "4_0_log.out").write_text(f"{begin_line(number)}\n{said}")
    assert follow(job, before) == number + 1
    assert job.ends() == [reason, None]
    assert [attempt.get("follows") for attempt in read_attempts(job.folder)] == [None, "4"]


def test_it_leaves_a_run_alone_that_was_submitted_once_more(job: Job) -> None:
    ended = Told(ENDED.format("FAILED"))
    job.begin()
    write_json(job.folder / LAUNCH, {"job_id": "9", "attempts_before": 1})
    with pytest.raises(Over, match="was resubmitted as job 9"):
        follow(job, ended)
    write_json(job.folder / LAUNCH, {"job_id": "3", "attempts_before": 0})
    assert follow(job, ended) == 2, "job 4 went on for job 3"
    assert follow(job, ended, after=("4", "3")) == 2, "asked once more"


@pytest.mark.parametrize("state", ["FAILED", "NODE_FAIL", "COMPLETED"])
def test_it_goes_on_where_no_requeue_came_of_an_attempt_that_asked_for_it(state: str, job: Job) -> None:
    job.end(job.begin(), code=85, own="stopped by SIGUSR2")
    assert follow(job, Told(ENDED.format(state))) == 2
    assert job.ends() == ["time limit", None]


def test_it_goes_on_where_the_job_before_ended_before_its_first_attempt(job: Job) -> None:
    assert follow(job, Told(ENDED.format("FAILED"))) == 1


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (Told(ENDED.format("CANCELLED")), "job 4 was cancelled; resume the run with `deeplense resume .*`"),
        (Told(history="REQUEUED\nCANCELLED by 1000\n"), "job 4 was cancelled"),
        (Told(ENDED.format("PENDING")), "is still pending or running"),
        (Told(ENDED.format("RUNNING")), "is still pending or running"),
        (Told(), "it is unknown whether job 4 was cancelled while pending"),
    ],
)
def test_it_leaves_a_run_alone_that_was_cancelled_or_lives(before: Told, why: str, job: Job) -> None:
    job.end(job.begin(), code=85, own="stopped by SIGUSR2")
    with pytest.raises(Over, match=why):
        follow(job, before)
    assert job.ends() == ["time limit"]


def test_it_leaves_a_run_alone_whose_log_says_that_it_was_cancelled(job: Job) -> None:
    number = job.begin()
    line = ENDED_BY_SLURM.replace(" DUE TO {}", "")
    (job.folder / "4_0_log.out").write_text(f"{begin_line(number)}\n{line}")
    with pytest.raises(Over, match="job 4 was cancelled"):
        follow(job, Told())
    assert job.ends() == ["cancelled"]


def test_a_job_whose_place_another_has_taken_leaves_the_run_to_it(job: Job) -> None:
    job.begin()
    assert follow(job, Told(ENDED.format("FAILED"))) == 2
    job.monkeypatch.setenv("SLURM_JOB_ID", "4")
    with pytest.raises(Over, match="job 5 has replaced this job, 4"):
        job.begin()
    assert len(job.ends()) == 2


def test_what_deeplense_cancel_ended_goes_on_nowhere(job: Job) -> None:
    job.end(job.begin(), code=85, own="stopped by SIGUSR2")
    write_json(job.folder / LAUNCH, {"restarts": {}, "attempts_before": 0, "cancelled": "2026-11-29T20:00:00"})
    with pytest.raises(ValueError, match="was cancelled"):
        job.begin()
    with pytest.raises(Over, match="was cancelled"):
        follow(job, Told(ENDED.format("COMPLETED")))


def test_a_crash_after_progress_does_not_count(job: Job) -> None:
    job.submitted(crash=1)
    for step in (10, 20, 30, 40):
        number = job.begin()
        folder = job.folder / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        assert job.end(number, code=1) == "requeue"
    assert job.end(job.begin(), code=1) == "end", "the negative control: nothing was saved in between"


def test_the_error_of_the_rank_that_failed_first_is_the_reason(job: Job) -> None:
    number = job.begin()
    for rank, error in [(2, "gloo: Connection reset by peer"), (3, "RuntimeError: boom"), (0, "OSError: later")]:
        job.monkeypatch.setenv("RANK", str(rank))
        note_failure(error)
        note_failure("what comes of it")
    job.end(number, code=1, own="error: RuntimeError: Connection closed by peer")
    assert job.ends() == ["crash: rank 3: RuntimeError: boom"]


def test_the_code_of_a_run_that_was_removed_is_refused_and_code_that_is_away_is_waited_for(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["begin", "--log", str(job.log), "--code_folder"]
    assert requeue.main([*words, str(tmp_path / "away" / "code")]) == EXIT_AWAY
    assert requeue.main([*words, str(tmp_path / "code")]) == EXIT_REFUSED
    assert f"{tmp_path / 'code'}, is gone; `deeplense resume --update_code RUN` resumes it" in capsys.readouterr().err
    (tmp_path / "code").symlink_to(Path(requeue.__file__).parents[1])
    assert requeue.main([*words, str(tmp_path / "code")]) == 0


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
    assert ended.stderr == "deeplense: attempt 1 ended: preempted, with grace; requesting another attempt\n"
    assert ask(folder, "begin", "--scheduler", "", SLURM_RESTART_COUNT="1").stdout == "2\n"
    refused = ask(folder, "begin", "--scheduler", "", "--history", "REQUEUED\nNODE_FAIL\n", SLURM_RESTART_COUNT="2")
    assert (refused.stdout, refused.returncode) == ("", EXIT_REFUSED)
    assert refused.stderr.startswith("deeplense: ")
    assert refused.stderr.count("\n") == 1
    assert json.loads((folder / ATTEMPTS).read_text().splitlines()[-1])["ended"] == "out of restarts: node lost"
    write_record(folder / FINISHED, {"step": 7})
    over = ask(folder, "begin", SLURM_RESTART_COUNT="3")
    assert (over.stdout, over.returncode) == ("finished\n", EXIT_OVER)


def test_a_run_whose_submission_left_no_record_has_all_its_attempts_counted(job: Job) -> None:
    assert job.begin() == 1
    job.say(ENDED_BY_SLURM.format("PREEMPTION"))
    assert job.begin() == 2
    assert job.ends() == ["preempted, without grace", None]
    assert requeue.counted(job.folder, 2) == ["preempted, without grace"]
