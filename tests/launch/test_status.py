"""What is told of submitted runs, with a squeue and a sacct that say what a test wants."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deeplense import locks
from deeplense.files import read_json, replacing, write_json
from deeplense.records import line_of, write_record
from jobs.runs.attempts import begin_attempt, end_attempt, open_attempt, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH, LOCK
from jobs.runs.progress import ProgressFile
from launch import commands, following, status
from launch.cancelling import cancel, to_cancel
from launch.following import follow, log_of
from launch.record import again, keep, launched
from launch.sight.overview import Answers
from launch.sight.reading import Reading
from launch.sight.search import find_runs
from launch.sight.table import MOST_NOTES, duration, state_of, table
from launch.status import is_active

Submit = Callable[..., Path]


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Makes folders as `deeplense submit` leaves them; the scheduler knows of nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    scheduler_says(tmp_path)

    def make(name: str, *, job_id: str | None, executor: str = "slurm") -> Path:
        folder = tmp_path / name
        (folder / "logs").mkdir(parents=True)
        told: dict[str, Any] = {"job_id": job_id, "logs": str(folder / "logs")}
        write_json(folder / LAUNCH, told | {"cluster": {"executor": executor, "slurm_conf": None}})
        return folder

    return make


def scheduler_says(folder: Path, *, squeue: str = "", sacct: str = "", answer: str = "") -> None:
    """Put commands on the PATH that print this, or do what `answer` says, and note that they were asked."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in {"squeue": squeue, "sacct": sacct, "scancel": ""}.items():
        # Another thread may run the old one at this moment.
        with replacing(folder / "bin" / name) as path:
            path.write_text(
                f'#!/bin/bash\necho "{name} $@" >> {folder / "asked.txt"}\n{answer or f"""printf "{text}" """}\n'
            )
            path.chmod(0o755)


def attempt(folder: Path, *, step: int | None = None, end: str | None = None, concluded: bool = False) -> None:
    """An attempt that came to a step of 200, and ended."""
    number = begin_attempt(folder, first_step=0, num_processes=1)
    if step is not None:
        ProgressFile(folder, total=200, first=0).update(step)
    if end:
        end_attempt(folder, number, reason=end, concluded=concluded)


def cells(*folders: Path) -> list[list[str]]:
    """The table without its head, and without what is said below it."""
    head, *lines = table(folders)
    assert head.split("  ")[0] == "RUN"
    return [[cell.strip() for cell in line.split("  ") if cell] for line in lines if not line.startswith("note: ")]


def notes(*folders: Path) -> list[str]:
    """What is said below the table."""
    return [line.removeprefix("note: ") for line in table(folders) if line.startswith("note: ")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3599, "0:59:59"), (3600, "1:00:00"), (360061, "100:01:01")],
)
def test_a_time_is_told_in_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_that_never_began_has_no_numbers(submit: Submit) -> None:
    assert cells(submit("first", job_id=None), submit("second", job_id=None, executor="local")) == [
        ["first", "not running", "0", *["-"] * 4],
        ["second", "not running", "0", *["-"] * 4],
    ]


def test_runs_are_told_with_what_the_scheduler_and_they_themselves_say(submit: Submit, tmp_path: Path) -> None:
    waits, runs, element, ended, lost, done = (
        submit(name, job_id=job) for name, job in zip("abcdef", ["7", "8", "9_1", "10", "11", "12"], strict=True)
    )
    scheduler_says(
        tmp_path,
        squeue="7|PENDING|Resources\\n8|RUNNING|None\\n9_0|RUNNING|None\\n9_1|PENDING|None\\n",
        sacct="11|CANCELLED by 0\\n",
    )
    attempt(waits, step=40, end="preempted, with grace", concluded=True)
    attempt(runs, step=40, end="time limit", concluded=True)
    attempt(runs, step=50)
    attempt(ended, step=9, end="crash: exit code 137", concluded=True)
    attempt(lost)
    attempt(done, step=200, end="finished", concluded=True)
    rows = cells(waits, runs, element, ended, lost, done)
    assert rows[0] == ["a", "pending (Resources)", "1", "40/200", "-", "-", "preempted, with grace"]
    assert rows[1][:4] + rows[1][6:] == ["b", "running", "2", "50/200", "time limit"]
    assert rows[1][4].endswith("/s")
    assert rows[1][5].startswith("0:00:")
    assert rows[2] == ["c", "pending", "0", *["-"] * 4]
    assert rows[3] == ["d", "not running", "1", "9/200", "-", "-", "crash: exit code 137"]
    assert rows[4] == ["e", "cancelled", "1", *["-"] * 4]
    assert rows[5] == ["f", "finished", "1", "200/200", "-", "-", "finished"]


def test_the_scheduler_is_asked_once_and_the_accounting_only_for_what_has_not_ended_for_good(
    submit: Submit, tmp_path: Path
) -> None:
    folders = [submit(f"run{number}", job_id=str(number)) for number in range(5)]
    for folder in folders[1:]:
        attempt(folder, end="refused: less", concluded=folder != folders[1])
    table(folders)
    squeue, sacct = (tmp_path / "asked.txt").read_text().splitlines()
    assert squeue.startswith("squeue --noheader --array --user=")
    assert sacct.endswith("--jobs=0,1")


@pytest.mark.parametrize(
    ("finished", "end", "state", "accounted", "word"),
    [
        (False, None, ("PENDING", "Priority"), "", "pending (Priority)"),
        (False, None, ("PENDING", ""), "", "pending"),
        (True, "finished", ("COMPLETING", "None"), "", "finished"),
        (True, "finished", ("PENDING", "BeginTime"), "", "finished"),
        (True, None, None, "COMPLETED", "finished"),
        (False, "finished", None, "", "finished"),
        (False, "hang", None, "CANCELLED by 1000", "cancelled"),
        (False, None, None, "", "not running"),
    ],
)
def test_one_word_says_what_a_run_does(
    finished: bool, end: str | None, state: tuple[str, str] | None, accounted: str, word: str, submit: Submit
) -> None:
    run = launched(submit("run", job_id="3"))
    attempts = [{"attempt": 1, "ended": end, "first_step": None}] if end else []
    answers = Answers({run.folder: state} if state else {}, {run.folder: accounted})
    assert state_of(Reading(run, attempts, finished_step=7 if finished else None), answers) == word


def as_job(job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on attempts are of this job."""
    monkeypatch.setenv("SLURM_JOB_ID", job_id)


SCANCEL = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-29T05:10:04 ***\n"
STANDING = {
    "its job was refused, or died before the first attempt": (None, "", "FAILED", "job 7 ended before its first"),
    "its script was killed": (("crash", False), "", "FAILED", "attempt 1 ended: crash: the batch script was killed"),
    "scancel, which the accounting tells": ((None, False), "", "CANCELLED by 0", "attempt 1 ended: cancelled"),
    "scancel, which the log tells": ((None, False), SCANCEL, "", "attempt 1 ended: cancelled"),
    "nobody knows": ((None, False), "", "", "attempt 1 ended: killed"),
    "no requeue came of it": (
        ("preempted, with grace", True),
        "",
        "FAILED",
        "attempt 1 ended: preempted, with grace; another was requested but did not begin (Slurm: failed)",
    ),
    "wrong settings": (("refused: ValueError: less", True), "", "", "attempt 1 ended: refused: ValueError: less"),
    "too many crashes": (("crash: exit code 1", True), "", "FAILED", "attempt 1 ended: crash: exit code 1"),
}


@pytest.mark.parametrize(("end", "log", "accounted", "why"), STANDING.values(), ids=STANDING)
def test_of_a_run_that_nobody_continues_is_said_why_and_what_does(
    end: tuple[str | None, bool] | None,
    log: str,
    accounted: str,
    why: str,
    submit: Submit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = submit("first", job_id="7")
    as_job("7", monkeypatch)
    scheduler_says(tmp_path, sacct=f"7|{accounted}\\n" if accounted else "")
    if end:
        attempt(folder, end=end[0] if end[1] else None, concluded=end[1])
        log_of(launched(folder), 0).write_text(f"deeplense: attempt 1 begins\n{log}")
    (said,) = notes(folder)
    assert said.startswith(f"first has stopped: {why}")
    assert said.endswith("; `deeplense resume first` resumes it")
    scheduler_says(tmp_path, squeue="7|PENDING|BeginTime|train\\n")
    assert notes(folder) == [], "the negative control: Slurm will start it again"


def test_below_a_log_is_said_that_nobody_continues_the_run(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submit("first", job_id="7")
    log_of(launched(folder), 0).write_text("step 3\n")
    assert commands.logs(["first"]) == 0
    said = capsys.readouterr()
    assert said.out == "step 3\n"
    assert said.err == (
        "note: first has stopped: job 7 ended before its first attempt; `deeplense resume first` resumes it\n"
    )
    scheduler_says(tmp_path, squeue="7|RUNNING|None|train\\n")
    assert commands.logs(["first"]) == 0
    assert capsys.readouterr().err == ""


def test_to_resume_says_after_which_step_and_how_the_last_attempt_ended(submit: Submit) -> None:
    folder = submit("first", job_id="7")
    assert status.goes_on_from(folder) == ""
    attempt(folder, end="crash: exit code 1", concluded=True)
    assert status.goes_on_from(folder) == "; attempt 1 ended: crash: exit code 1"
    saved = folder / "checkpoints" / "step_00000009"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    assert status.goes_on_from(folder) == "; it resumes after step 9; attempt 1 ended: crash: exit code 1"


@pytest.mark.parametrize(
    ("reason", "what"),
    [
        ("JobHeldUser", "first is held; release it with `scontrol release 7`"),
        ("JobHeldAdmin", "first is held; release it with `scontrol release 7`"),
        ("launch_failed_requeued_held", "first is held; release it with `scontrol release 7`"),
        ("DependencyNeverSatisfied", "first depends on a job that failed; `deeplense cancel first`, then"),
        ("Priority", ""),
        ("Dependency", ""),
    ],
)
def test_of_a_job_that_waits_and_will_not_start_is_said_what_lets_it(
    reason: str, what: str, submit: Submit, tmp_path: Path
) -> None:
    folder = submit("first", job_id="7")
    scheduler_says(tmp_path, squeue=f"7|PENDING|{reason}|train\\n")
    assert [note.startswith(what) for note in notes(folder)] == [True] * bool(what)
    scheduler_says(tmp_path, squeue=f"7|RUNNING|{reason}|train\\n")
    assert notes(folder) == []


def test_of_runs_that_are_finished_or_of_strangers_nothing_is_said(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, counted = submit("done", job_id="7"), submit("counted", job_id="8")
    write_record(done / FINISHED, {"step": 7})
    attempt(counted, end="finished", concluded=True)
    assert notes(done, counted) == []
    other = submit("other", job_id="9")
    assert len(notes(other)) == 1
    owned_by_another(monkeypatch)
    assert notes(other) == []


def test_a_job_without_checkpoints_that_was_submitted_again_has_not_finished_by_its_earlier_attempt(
    submit: Submit, tmp_path: Path
) -> None:
    stage = submit("stage", job_id="8")
    attempt(stage, end="finished", concluded=True)
    assert cells(stage)[0][1] == "finished"
    write_json(stage / LAUNCH, read_json(stage / LAUNCH) | {"attempts_before": 1})
    scheduler_says(tmp_path, sacct="8|CANCELLED by 0\\n")
    assert cells(stage)[0][1] == "cancelled"
    (note,) = notes(stage)
    assert note.startswith("stage has stopped: job 8 ended before its first attempt (Slurm: cancelled); ")
    attempt(stage, end="finished", concluded=True)
    assert (cells(stage)[0][1], notes(stage)) == ("finished", [])


def test_many_runs_that_nobody_continues_are_told_in_part(submit: Submit) -> None:
    folders = [submit(f"run{number}", job_id=str(number)) for number in range(MOST_NOTES + 3)]
    assert len(notes(*folders)) == MOST_NOTES + 1
    assert notes(*folders)[-1] == "and 3 more"


def test_a_job_that_follows_that_of_a_run_is_its_own(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = submit("first", job_id="7")
    as_job("7", monkeypatch)
    attempt(folder, end="time limit", concluded=True)
    waiting = "9|PENDING|{}|deeplense-after-7\\n"
    scheduler_says(tmp_path, squeue="7|RUNNING|None|train\\n" + waiting.format("Dependency"))
    assert cells(folder)[0][1] == "running"
    scheduler_says(tmp_path, squeue=waiting.format("Priority"))
    assert cells(folder)[0][1] == "pending (job 9 succeeds 7, Priority)"
    assert is_active(folder)
    scheduler_says(tmp_path, squeue="12|PENDING|Priority|deeplense-after-9.7\\n13|PENDING|None|deeplense-after-77\\n")
    assert cells(folder)[0][1] == "pending (job 12 succeeds 7, Priority)"
    scheduler_says(tmp_path, squeue="13|PENDING|None|deeplense-after-77\\n14|PENDING|None|after-7\\n")
    assert not is_active(folder), "the negative control: jobs of others"
    as_job("9", monkeypatch)
    open_attempt(folder, follows="7")
    scheduler_says(tmp_path, squeue="9|RUNNING|None|deeplense-after-7\\n")
    assert cells(folder)[0][1] == "running"
    assert log_of(launched(folder), 0).name == "9_0_log.out"


def test_to_cancel_a_run_takes_the_job_that_would_follow_first_and_it_stays_so(submit: Submit, tmp_path: Path) -> None:
    folder = submit("first", job_id="7")
    scheduler_says(tmp_path, squeue="7|RUNNING|None|train\\n9|PENDING|Dependency|deeplense-after-7\\n")
    cancel(launched(folder))
    assert (tmp_path / "asked.txt").read_text().splitlines()[-1] == "scancel 9 7"
    assert read_json(folder / LAUNCH)["cancelled"]


def test_before_a_run_is_resumed_is_written_why_its_last_attempt_ended(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = submit("first", job_id="7")
    as_job("7", monkeypatch)
    attempt(folder, step=5)
    scheduler_says(tmp_path, sacct="7|CANCELLED by 0\\n")
    for _ in range(2):
        status.conclude_last(folder)
        assert read_attempts(folder)[-1]["ended"] == "cancelled"
    assert "concluded" in read_attempts(folder)[-1]


def test_a_checkpoint_that_is_newer_than_the_last_look_counts(submit: Submit) -> None:
    folder = submit("first", job_id="7")
    attempt(folder, step=5)
    saved = folder / "checkpoints" / "step_00000009"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    assert cells(folder)[0][3] == "9/200"


def test_runs_are_found_below_folders_each_once(submit: Submit, tmp_path: Path) -> None:
    first, second = submit("group/b", job_id="2"), submit("group/a", job_id="1")
    (tmp_path / "group" / "c").mkdir()
    assert find_runs([tmp_path, tmp_path / "group", first]) == [second, first]
    assert find_runs([tmp_path / "group" / "c"]) == []


def test_each_rank_has_its_log(submit: Submit) -> None:
    folder = submit("run", job_id="9_1")
    assert [log_of(launched(folder), rank) for rank in (0, 3)] == [
        folder / "logs" / "9_1_0_log.out",
        folder / "logs" / "9_1_3_log.out",
    ]


def test_a_run_of_an_exported_script_is_found_by_what_its_attempts_say(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = submit("run", job_id=None)
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    attempt(folder)
    scheduler_says(tmp_path, squeue="31|RUNNING|None\\n")
    assert log_of(launched(folder), 0).name == "31_0_log.out"
    assert is_active(folder)


def test_a_folder_that_was_not_submitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"was not submitted: it has no launch\.json"):
        launched(tmp_path)
    assert not is_active(tmp_path)


def test_only_a_process_of_submitit_counts_as_a_run_on_this_machine(submit: Submit) -> None:
    assert not is_active(submit("mine", job_id=str(os.getpid()), executor="local"))
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "submitit.local._local"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as controller:
        assert controller.stdout
        controller.stdout.readline()
        run = submit("run", job_id=str(controller.pid), executor="local")
        assert is_active(run)
        cancel(launched(run))
        os.waitid(os.P_PID, controller.pid, os.WEXITED | os.WNOWAIT)
        assert not is_active(run)
    assert controller.returncode == -signal.SIGTERM
    with pytest.raises(ValueError, match="is neither pending nor running; there is nothing to cancel"):
        cancel(launched(run))


def test_a_log_is_followed_to_its_last_line(submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SECONDS_BETWEEN_LOOKS", 0.05)
    scheduler_says(tmp_path, squeue="5|RUNNING|None\\n")
    run = launched(submit("run", job_id="5"))

    def write() -> None:
        for number in range(5):
            with log_of(run, 0).open("a") as file:
                file.write(f"line {number}\n")
            time.sleep(0.1)
        scheduler_says(tmp_path)

    writer = threading.Thread(target=write)
    writer.start()
    assert "".join(follow(run, 0)) == "".join(f"line {number}\n" for number in range(5))
    writer.join()


def test_a_log_is_followed_on_while_slurm_does_not_answer(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "SECONDS_BETWEEN_LOOKS", 0.01)
    scheduler_says(tmp_path, answer='echo "Unable to contact slurm controller" >&2; exit 1')
    run = launched(submit("run", job_id="5"))
    log_of(run, 0).write_text("line 0\n")
    text = follow(run, 0)
    assert [next(text), next(text), next(text)] == ["line 0\n", "", ""]
    while (tmp_path / "asked.txt").read_text().count("squeue") < 3:
        assert next(text) == ""
    scheduler_says(tmp_path)
    assert "".join(text) == ""
    assert capfd.readouterr().err.count("Unable to contact slurm controller. Still following the log") == 1


def test_a_folder_of_runs_stands_for_those_that_wait_or_run(submit: Submit, tmp_path: Path) -> None:
    running, _, waiting = (submit(f"array/part-{k}", job_id=f"7_{k}") for k in (1, 2, 3))
    ended = submit("array/run", job_id="9")
    scheduler_says(tmp_path, squeue="7_1|RUNNING|None\\n7_3|PENDING|Priority\\n")
    assert [run.folder for run in to_cancel(tmp_path / "array")] == [running, waiting]
    assert [run.folder for run in to_cancel(ended)] == [ended]
    scheduler_says(tmp_path)
    with pytest.raises(
        ValueError, match=r"none of the 4 runs below .*array is pending or running; there is nothing to cancel"
    ):
        to_cancel(tmp_path / "array")
    with pytest.raises(ValueError, match="was not submitted"):
        to_cancel(tmp_path / "bin")


def owned_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on all files are somebody else's."""
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)


def test_the_scheduler_is_not_asked_about_runs_of_strangers(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = submit("first", job_id="7")
    told = read_json(folder / LAUNCH)
    write_json(folder / LAUNCH, told | {"cluster": told["cluster"] | {"slurm_conf": str(tmp_path / "evil.conf")}})
    scheduler_says(tmp_path, squeue="7|RUNNING|None\\n")
    assert cells(folder)[0][1] == "running", "the negative control: an own run is asked about"
    (tmp_path / "asked.txt").unlink()
    owned_by_another(monkeypatch)
    assert cells(folder)[0][1].startswith("not checked (writable by ")
    assert not is_active(folder)
    assert not (tmp_path / "asked.txt").exists()


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_runs_of_strangers_are_neither_cancelled_nor_resumed(
    executor: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = submit("first", job_id=str(os.getpid()), executor=executor)
    owned_by_another(monkeypatch)
    for act in (lambda: to_cancel(folder), lambda: again(folder, hours=None, update_code=False)):
        with pytest.raises(ValueError, match="its commands would run as you; only its owner can cancel or resume"):
            act()


def test_a_launch_record_that_everybody_can_write_is_not_believed(submit: Submit, tmp_path: Path) -> None:
    folder = submit("first", job_id="7")
    (folder / LAUNCH).chmod(0o666)
    assert cells(folder)[0][1] == "not checked (writable by everybody)"
    assert not (tmp_path / "asked.txt").exists()


def test_only_its_owner_can_write_a_launch_record(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keep(tmp_path, {"job_id": None})
    finally:
        os.umask(before)
    assert (tmp_path / LAUNCH).stat().st_mode & 0o022 == 0


def started_by_hand(folder: Path, pid: int, **changes: Any) -> None:
    """A run that a process trains, as `deeplense train` leaves it; it has made an attempt."""
    folder.mkdir()
    attempt(folder, step=50)
    holder = {**locks.holder_of_now(), "pid": pid, "started": psutil.Process(pid).create_time()}
    (folder / LOCK).write_text(line_of(holder | changes))


@pytest.fixture
def trainer() -> Iterator[subprocess.Popen[bytes]]:
    """A process that passes for one that trains."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_runs_that_were_started_by_hand_are_seen_and_cancelled(
    submit: Submit, tmp_path: Path, trainer: subprocess.Popen[bytes]
) -> None:
    submitted, run = submit("a", job_id=None), tmp_path / "b"
    started_by_hand(run, trainer.pid)
    assert find_runs([tmp_path]) == [submitted, run]
    here = platform.node()
    assert cells(run)[0][:4] == ["b", f"running (not submitted, on {here})", "1", "50/200"]
    assert is_active(run)
    assert [each.folder for each in to_cancel(tmp_path)] == [run]
    cancel(launched(run))
    assert trainer.wait(10) == -signal.SIGTERM
    assert cells(run)[0][1] == "not running"
    assert not is_active(run)
    with pytest.raises(ValueError, match=r"is not running; there is nothing to cancel\."):
        cancel(launched(run))


def test_another_process_with_the_number_of_a_dead_trainer_is_left_alone(
    submit: Submit, tmp_path: Path, trainer: subprocess.Popen[bytes]
) -> None:
    started_by_hand(tmp_path / "b", trainer.pid, started=1.0)
    assert cells(tmp_path / "b")[0][1] == "not running"
    with pytest.raises(ValueError, match="there is nothing to cancel"):
        cancel(launched(tmp_path / "b"))
    assert trainer.poll() is None


@pytest.mark.parametrize(("age_s", "state"), [(0, "running (not submitted, on far)"), (3600, "not running")])
def test_a_trainer_on_another_machine_lives_as_long_as_it_renews_its_lock(
    age_s: float, state: str, submit: Submit, tmp_path: Path, trainer: subprocess.Popen[bytes]
) -> None:
    run = tmp_path / "b"
    started_by_hand(run, trainer.pid, host="far", machine="far")
    changed = time.time() - age_s
    os.utime(run / LOCK, (changed, changed))
    assert cells(run)[0][1] == state
    with pytest.raises(ValueError, match="on far; cancel it on that machine" if age_s == 0 else "nothing to cancel"):
        cancel(launched(run))


def test_a_run_submitted_on_another_machine_with_the_same_disk_is_not_cancelled_by_its_number_here(
    submit: Submit, tmp_path: Path, trainer: subprocess.Popen[bytes]
) -> None:
    run = submit("first", job_id=str(trainer.pid), executor="local")
    attempt(run, step=50)
    (run / LOCK).write_text(line_of({**locks.holder_of_now(), "pid": 7, "host": "far", "machine": "far"}))
    assert cells(run)[0][1] == "running"
    with pytest.raises(ValueError, match="on far; cancel it on that machine"):
        cancel(launched(run))
    assert trainer.poll() is None


def test_how_to_resume_a_run_that_was_started_by_hand_is_said(
    submit: Submit, tmp_path: Path, trainer: subprocess.Popen[bytes]
) -> None:
    started_by_hand(tmp_path / "b", trainer.pid)
    with pytest.raises(
        ValueError,
        match=r"started directly, not submitted; run the same command again to resume it: deeplense JOB --config",
    ):
        again(tmp_path / "b", hours=None, update_code=False)
    command = ["/bin/deeplense", "train", "--run", "my runs/b"]
    rest = {"python": "", "host": "", "platform": "", "packages": {}}
    write_record(tmp_path / "b" / "environment.json", {"command": command} | rest)
    with pytest.raises(ValueError, match=r"resume it: deeplense train --run 'my runs/b'"):
        again(tmp_path / "b", hours=None, update_code=False)
    write_record(tmp_path / "b" / "environment.json", {"command": [*command, "\x1b[2J"]} | rest)
    with pytest.raises(ValueError, match=r"resume it: deeplense JOB --config"):
        again(tmp_path / "b", hours=None, update_code=False)


def test_a_lock_of_a_stranger_does_not_say_which_process_to_end(
    submit: Submit, tmp_path: Path, trainer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    started_by_hand(tmp_path / "b", trainer.pid)
    owned_by_another(monkeypatch)
    with pytest.raises(ValueError, match="only that user can stop it"):
        cancel(launched(tmp_path / "b"))
    assert trainer.poll() is None
