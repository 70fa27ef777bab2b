"""Notices: each event once, with its reason, and never at the cost of the run."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import write_json
from deeplense.records import line_of, write_record
from jobs.runs.attempts import EMPTY
from jobs.runs.folder import FINISHED, LAUNCH, NOTICES
from launch import notices
from launch.clusters import Cluster
from launch.notices import DONE, FAILED, STILL, due, send, send_due, standing_still, undelivered
from launch.sight import overview
from launch.sight.overview import Answers, read_all, tell_users
from tests.launch.made_up import program

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes runs with attempts, whose command notes its arguments and then does something."""

    def run(*ends: str | None, name: str = "run", does: str = "", saved: int = 0, **values: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        program(tmp_path, "tell", f'echo "$1|$2|$3|$4|$DEEPLENSE_EVENT" >> {tmp_path}/told.txt\n{does}')
        cluster = {"executor": "slurm", "slurm_conf": None, "notify": f"{tmp_path}/tell 'two words'"}
        told = {"job_id": "7", "logs": "", "cluster": cluster, "restarts": {"crash": 1, "hang": 3}} | values
        write_json(folder / LAUNCH, told)
        lines = [
            EMPTY
            | {"attempt": number, "job_id": "7", "first_step": 0, "saved": saved, "ended": end}
            | ({"concluded": "2026-11-29T10:00:00+0000"} if end else {})
            for number, end in enumerate(ends, start=1)
        ]
        (folder / "attempts.jsonl").write_text("".join(map(line_of, lines)))
        return folder

    return run


def told(folder: Path) -> list[list[str]]:
    """The calls: the arguments of the command, and its variable."""
    path = folder.parent / "told.txt"
    return [line.split("|") for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("ends", "event"),
    [
        (["finished"], DONE),
        (["time limit", "finished"], DONE),
        (["refused: ValueError: less"], FAILED),
        (["diverged: NaN"], FAILED),
        (["cancelled"], FAILED),
        (["crash: exit code 1", "crash: exit code 1"], FAILED),
        (["crash: exit code 1", "out of restarts: crash"], FAILED),
        (["hang"], STILL),
        (["crash: exit code 1"], None),
        (["crash: exit code 1", "time limit"], None),
        (["crash: exit code 1", None], None),
        ([None], None),
        ([], None),
    ],
)
def test_an_end_is_an_event_if_the_run_is_over_or_stood_still(
    ends: list[str | None], event: str | None, make: Make
) -> None:
    found = due(make(*ends))
    assert (found.event if found else None) == event


def test_an_end_that_was_not_concluded_is_no_event_yet(make: Make) -> None:
    folder = make("finished")
    path = folder / "attempts.jsonl"
    path.write_text(line_of(EMPTY | {"attempt": 1, "ended": "stopped by SIGTERM"}))
    assert due(folder) is None


def test_a_training_that_has_finished_is_told_even_if_its_script_could_not_conclude(make: Make) -> None:
    folder = make("time limit", None)
    write_record(folder / FINISHED, {"step": 5})
    found = due(folder)
    assert found
    assert (found.event, found.why) == (DONE, "finished in attempt 2")


def test_a_stage_that_is_made_again_is_told_again_and_not_before(make: Make) -> None:
    send_due(make("finished"))
    send_due(folder := make("finished", attempts_before=1))
    assert len(told(folder)) == 1
    send_due(make("finished", "finished", attempts_before=1))
    assert [call[2:4] for call in told(folder)] == [[DONE, f"finished in attempt {number}"] for number in (1, 2)]


def test_the_end_of_an_earlier_submission_is_no_event_of_this_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert due(make("finished", attempts_before=1)) is None
    assert due(make("diverged: NaN", attempts_before=1)) is None
    monkeypatch.setattr(overview, "SECONDS_TO_GO_ON", -1.0)
    look_at(folder := make("finished", attempts_before=1), None)
    assert [call[2] for call in told(folder)] == [STILL]


def test_who_cancels_a_run_is_not_told_so_and_others_are(make: Make) -> None:
    assert due(make("cancelled", cancelled="2026-11-29T10:00:00+0000")) is None
    assert due(make("cancelled")) is not None


def test_the_command_gets_the_run_the_event_and_why_once(make: Make) -> None:
    folder = make("diverged: the loss is\nnot finite\t\x1b[2J; $(touch /tmp/evil)")
    for _ in range(3):
        send_due(folder)
    ((first, run, event, why, variable),) = told(folder)
    assert (first, run, event, variable) == ("two words", str(folder), FAILED, FAILED)
    assert why == "attempt 1 ended: diverged: the loss is not finite ?[2J; $(touch /tmp/evil)"
    assert (folder / NOTICES / "1_failed.log").read_text() == "exit code 0\n"
    assert list(undelivered(folder)) == []


def test_many_that_tell_at_a_time_tell_once(make: Make) -> None:
    folder = make("finished")
    threads = [threading.Thread(target=send_due, args=(folder,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told(folder)) == 1


def test_a_later_failure_of_the_same_run_is_another_event(make: Make) -> None:
    send_due(make("diverged: NaN"))
    send_due(folder := make("diverged: NaN", "time limit"))
    send_due(make("diverged: NaN", "time limit", "diverged: NaN"))
    send_due(make("diverged: NaN", "time limit", "diverged: NaN", "finished"))
    assert [call[2] for call in told(folder)] == [FAILED, FAILED, DONE]
    assert [call[3].split(":")[0] for call in told(folder)[:2]] == ["attempt 1 ended", "attempt 3 ended"]


@pytest.mark.parametrize(
    ("does", "end"),
    [("exit 3", "exit code 3"), ("kill -9 $$", "exit code -9"), ("sleep 60", "exit code 124")],
    ids=["fails", "killed", "hangs"],
)
def test_a_command_that_fails_is_reported_and_does_not_last(
    does: str, end: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SECONDS", 2.0)
    folder = make("finished", does=does)
    begun = time.monotonic()
    send_due(folder)
    assert time.monotonic() - begun < 40
    (problem,) = undelivered(folder)
    assert problem.startswith(f"the notice 'finished' may not have arrived: its command ended with {end}, see ")


def test_a_hanging_command_and_its_children_are_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SECONDS", 1.0)
    folder = make("finished", does='sleep 61.5 & echo $! > "${2}.child"\nwait')
    send_due(folder)
    child = int((folder.parent / f"{folder.name}.child").read_text())
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_is_missing_or_a_folder_that_cannot_be_written_ends_nothing(make: Make) -> None:
    folder = make("finished")
    (folder.parent / "tell").unlink()
    send_due(folder)
    assert "exit code 127" in next(undelivered(folder))
    (folder / NOTICES).rename(folder / "aside")
    (folder / NOTICES).write_text("a file")
    send_due(folder)
    assert told(folder) == []


def test_a_notice_that_was_cut_off_is_reported_after_a_moment(make: Make) -> None:
    folder = make("finished")
    notice = due(folder)
    assert notice
    assert notices.claim(folder, notice)
    assert list(undelivered(folder)) == [], "its command may still run"
    old = time.time() - 600
    os.utime(folder / NOTICES / "1_finished.json", (old, old))
    assert "was cut off" in next(undelivered(folder))


def test_a_run_without_a_command_leaves_no_trace(make: Make) -> None:
    folder = make("finished", cluster={"executor": "slurm", "slurm_conf": None})
    send_due(folder)
    send(folder, standing_still(folder, "held"))
    assert not (folder / NOTICES).exists()


def test_the_batch_script_is_given_each_event_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("hang")
    monkeypatch.setenv("DEEPLENSE_FOLDER", str(folder))
    assert notices.main() == 0
    assert capsys.readouterr().out == (
        f"standing still\t{folder}/notices/1_hang.log\tattempt 1 ended: hang; it is started again\n"
    )
    assert notices.main() == 0
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("DEEPLENSE_FOLDER")
    assert notices.main() == 0


def look_at(folder: Path, *states: tuple[str, str] | None) -> None:
    """Look at a run, with these states in the queue one after another."""
    for state in states:
        readings, _ = read_all([folder])
        tell_users(readings, Answers({folder: state} if state else {}))


def test_a_run_that_is_held_or_that_nobody_continues_stands_still(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SECONDS_TO_GO_ON", -1.0)
    folder = make("preempted, with grace")
    look_at(folder, ("PENDING", "Priority"), ("RUNNING", "None"))
    assert told(folder) == []
    look_at(folder, ("PENDING", "JobHeldAdmin"), ("PENDING", "JobHeldAdmin"), None)
    ((_, _, event, why, _),) = told(folder)
    assert event == STILL
    assert "is held; release it with `scontrol release 7`" in why
    look_at(make("preempted, with grace", "time limit"), None)
    assert "another was requested but did not begin" in told(folder)[1][3]


def test_a_run_that_has_just_changed_may_be_about_to_go_on(make: Make) -> None:
    folder = make("preempted, with grace")
    look_at(folder, None)
    assert told(folder) == []
    old = time.time() - 600
    os.utime(folder / LAUNCH, (old, old))
    look_at(folder, None)
    assert [call[2] for call in told(folder)] == [STILL], "the negative control"


def test_a_run_that_was_cancelled_before_its_first_attempt_is_not_told_as_standing_still(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SECONDS_TO_GO_ON", -1.0)
    look_at(folder := make(cancelled="2026-11-29T10:00:00+0000"), None)
    assert told(folder) == []
    look_at(make(), None)
    assert [call[2] for call in told(folder)] == [STILL], "the negative control"


def test_what_its_job_could_not_tell_is_told_later(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SECONDS_TO_GO_ON", -1.0)
    folder = make("finished")
    write_record(folder / FINISHED, {"step": 5})
    look_at(folder, None, None)
    assert [call[2] for call in told(folder)] == [DONE]


def test_the_command_of_a_run_of_another_user_is_not_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SECONDS_TO_GO_ON", -1.0)
    folder = make("finished")
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    look_at(folder, None)
    assert told(folder) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"notify": "tell 'me"}, r"notify: \"tell 'me\" is not a command .*close the quotes"),
        ({"notify": ""}, "notify is empty"),
        ({"notify": "  "}, "notify is empty"),
        ({"notify": "tell\nme"}, "notify"),
        ({"mail": "me@here", "sbatch": {"mail-type": "END"}}, "mail sets mail-user and mail-type"),
        ({"mail": "me@here", "executor": "local"}, "leave out mail"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(name="x", **keys)
