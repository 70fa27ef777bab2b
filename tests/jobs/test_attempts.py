"""The attempts of a run: a line for each start, whether a scheduler's script opens it or the job itself."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.runs.attempts import (
    ATTEMPTS,
    FOLDER,
    NUMBER,
    begin_attempt,
    end_attempt,
    has_begun,
    job_id,
    open_attempt,
    read_attempts,
    refuse_if_superseded,
    write_attempts,
)


@pytest.fixture(autouse=True)
def nobody_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a scheduler nor a script."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in (NUMBER, FOLDER)]:
        monkeypatch.delenv(name)


def told(run: Path) -> list[tuple[object, ...]]:
    """Number, first and last step and end of all attempts."""
    return [tuple(a[name] for name in ("attempt", "first_step", "last_step", "ended")) for a in read_attempts(run)]


def script_opens(run: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a script does before its job."""
    number = open_attempt(run)
    monkeypatch.setenv(NUMBER, str(number))
    monkeypatch.setenv(FOLDER, str(run))
    return number


def test_each_attempt_is_told_with_its_end_and_a_killed_one_at_the_next_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    assert read_attempts(tmp_path) == []
    first = begin_attempt(tmp_path, first_step=0, num_processes=2)
    end_attempt(tmp_path, first, last_step=40, reason="stopped by SIGTERM")
    begin_attempt(tmp_path, first_step=40, num_processes=2)
    third = begin_attempt(tmp_path, first_step=60, num_processes=1)
    assert told(tmp_path) == [(1, 0, 40, "stopped by SIGTERM"), (2, 40, 60, "killed"), (3, 60, None, None)]
    assert {(a["job_id"], a["pid"]) for a in read_attempts(tmp_path)} == {("123", os.getpid())}
    end_attempt(tmp_path, third, last_step=90, reason="finished")
    assert told(tmp_path)[-1] == (3, 60, 90, "finished")
    assert len((tmp_path / ATTEMPTS).read_text().splitlines()) == 3


def test_a_job_goes_on_with_the_line_that_its_script_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    number = script_opens(tmp_path, monkeypatch)
    assert told(tmp_path) == [(1, None, None, None)]
    assert not has_begun(tmp_path)
    assert begin_attempt(tmp_path, first_step=7, num_processes=4) == number == 1
    (attempt,) = read_attempts(tmp_path)
    assert (attempt["restart"], attempt["nodes"], attempt["num_processes"]) == (2, "n[1-2]", 4)
    assert (attempt["pid"], attempt["first_step"]) == (os.getpid(), 7)
    assert has_begun(tmp_path)


def test_a_run_behind_a_link_is_the_one_that_the_script_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk7" / "run").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to("disk7")
    for name in ("scratch/run", "scratch/../scratch/run", "disk7/run"):
        number = script_opens(tmp_path / name, monkeypatch)
        for other in ("scratch/run", "disk7/run"):
            assert begin_attempt(tmp_path / other, first_step=0, num_processes=1) == number


def test_the_number_of_another_folders_script_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        script_opens(tmp_path / "sweep", monkeypatch)
    assert begin_attempt(tmp_path / "run", first_step=0, num_processes=1) == 1
    monkeypatch.delenv(FOLDER)
    assert begin_attempt(tmp_path / "sweep", first_step=0, num_processes=1) == 4


def test_where_an_attempt_was_lost_is_told_by_the_next_that_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_attempt(tmp_path, first_step=0, num_processes=1)
    script_opens(tmp_path, monkeypatch)
    script_opens(tmp_path, monkeypatch)
    begin_attempt(tmp_path, first_step=30, num_processes=1)
    assert told(tmp_path) == [(1, 0, 30, "killed"), (2, None, 30, "killed"), (3, 30, None, None)]


def test_what_the_launcher_says_replaces_what_the_job_said_and_keeps_its_step(tmp_path: Path) -> None:
    number = begin_attempt(tmp_path, first_step=0, num_processes=1)
    end_attempt(tmp_path, number, last_step=12, reason="stopped by SIGUSR2")
    assert "concluded" not in read_attempts(tmp_path)[0]
    end_attempt(tmp_path, number, reason="time limit", concluded=True)
    assert told(tmp_path) == [(1, 0, 12, "time limit")]
    assert read_attempts(tmp_path)[0]["concluded"] >= read_attempts(tmp_path)[0]["begun"]


def test_an_attempt_that_another_has_followed_writes_no_more(tmp_path: Path) -> None:
    first = open_attempt(tmp_path)
    refuse_if_superseded(tmp_path, first)
    second = open_attempt(tmp_path)
    refuse_if_superseded(tmp_path, second)
    with pytest.raises(ValueError, match=r"attempt 2 of .* has started; this one, 1, writes nothing more"):
        refuse_if_superseded(tmp_path, first)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}, "17_0"),
    ],
)
def test_a_job_is_called_what_the_scheduler_calls_it(
    variables: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    open_attempt(tmp_path)
    assert job_id() == read_attempts(tmp_path)[0]["job_id"] == expected


def test_what_a_killed_writer_left_goes_when_the_next_begins(tmp_path: Path) -> None:
    (tmp_path / ".writing-config.yaml-0").write_text("half")
    (tmp_path / "config.yaml").write_text("whole")
    open_attempt(tmp_path)
    assert (tmp_path / ".writing-config.yaml-0").exists()
    begin_attempt(tmp_path, first_step=0, num_processes=1)
    assert {path.name for path in tmp_path.iterdir()} == {ATTEMPTS, "config.yaml"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["open", "begin", "end"]), min_size=1, max_size=8))
def test_whatever_happens_attempts_are_counted_and_all_but_the_last_have_an_end(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    run = tmp_path_factory.mktemp("run")
    number = 0
    for step, event in enumerate(events):
        if event == "end" and number:
            end_attempt(run, number, reason="finished", last_step=step)
        elif event != "end":
            number = open_attempt(run) if event == "open" else begin_attempt(run, first_step=step, num_processes=1)
    attempts = read_attempts(run)
    assert [attempt["attempt"] for attempt in attempts] == list(range(1, number + 1))
    assert all(attempt["ended"] for attempt in attempts[:-1])
    assert number == len(events) - events.count("end")
    write_attempts(run, attempts)
    assert read_attempts(run) == attempts


def test_what_the_launcher_has_concluded_is_not_written_over_by_a_rank_that_was_left_behind(tmp_path: Path) -> None:
    number = open_attempt(tmp_path)
    end_attempt(tmp_path, number, reason="node lost", concluded=True)
    open_attempt(tmp_path)
    before = (tmp_path / ATTEMPTS).read_bytes()
    end_attempt(tmp_path, number, last_step=18, reason="error: RuntimeError: connection reset by peer")
    assert (tmp_path / ATTEMPTS).read_bytes() == before
    end_attempt(tmp_path, number, reason="hang", concluded=True)
    assert told(tmp_path)[0][3] == "hang"
