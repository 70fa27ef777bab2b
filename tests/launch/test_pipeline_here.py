"""Pipelines on this machine, for real: what is left is run, what is finished is left, and nothing is overwritten."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.runs.folder import LAUNCH
from launch.__main__ import main
from launch.parents import is_done
from launch.pipelines.making import RECORD
from launch.record import launched
from launch.status import is_active

FILE = {
    "last": {"job": "grades second.csv one.csv --output third.csv"},
    "first": {"job": "grades one.csv two.csv --output first.csv"},
    "second": {"job": {"grades": {"files": ["first.csv", "two.csv"], "output": "second.csv"}}, "hours": 2},
    "beside": {"job": "grades two.csv --output beside.csv"},
}
RESULTS = ("first.csv", "second.csv", "third.csv", "beside.csv")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with grades of two people, and the file of a pipeline."""
    monkeypatch.chdir(tmp_path)
    Path("one.csv").write_text("id,grade\na,A\nb,B\n")
    Path("two.csv").write_text("id,grade\na,A\nb,not\n")
    write(FILE)
    return tmp_path


def write(stages: object) -> None:
    """Write the file."""
    Path("grades.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))


def tree() -> dict[str, tuple[int, bytes]]:
    """All files here, with the times at which they were written and their bytes."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in Path().rglob("*") if path.is_file()}


def pipeline(*words: str) -> int:
    """Type the command."""
    return main(["pipeline", "grades.yaml", *words])


def rows(capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the table says that is done for each stage."""
    lines = capfd.readouterr().out.splitlines()
    return {line.split()[0]: line.split()[1] for line in lines[1 : 1 + len(FILE)]}


def test_what_is_finished_is_left_and_what_changed_is_made_again_beside_the_old(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pipeline() == 0
    assert rows(capfd) == {"first": "run", "second": "run", "last": "run", "beside": "run"}
    before = tree()
    assert pipeline() == 0
    assert set(rows(capfd).values()) == {"-"}
    assert tree() == before

    write(FILE | {"second": {"job": "grades first.csv two.csv --output second.csv --rule median"}})
    assert pipeline("--dry_run") == 0
    assert rows(capfd) == {"first": "-", "second": "run", "last": "run", "beside": "-"}
    del before["grades.yaml"]
    assert {name: there for name, there in tree().items() if name in before} == before
    assert pipeline() == 0
    old = {path.name: path.read_bytes() for path in Path().glob("old-*/*")}
    assert old == {name: before[name][1] for name in ("second.csv", "third.csv")}
    after = tree()
    assert all(after[name] == before[name] for name in ("first.csv", "beside.csv"))
    assert all(after[name][0] > before[name][0] for name in ("second.csv", "third.csv"))
    assert pipeline() == 0
    assert tree() == after


def test_it_stops_at_the_first_failure_and_continues_there(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("two.csv").rename("away.csv")
    write({name: stage | {"after": ["beside"]} if name == "first" else stage for name, stage in FILE.items()})
    assert pipeline() == 2
    captured = capfd.readouterr()
    assert "stage beside failed (exit code 2); the same command continues with it" in captured.out
    assert captured.err.count("\n") == 1, "one line says why"
    assert not any(map(os.path.exists, RESULTS))
    Path("away.csv").rename("two.csv")
    assert pipeline() == 0
    assert rows(capfd) == {"beside": "resume", "first": "run", "second": "run", "last": "run"}
    assert all(map(os.path.exists, RESULTS))
    assert not list(Path().glob("old-*"))


def test_a_signal_stops_the_stage_and_all_after_it(here: Path) -> None:
    os.mkfifo("slow.csv")
    write(
        {"slow": {"job": "grades slow.csv --output slow-merged.csv"}}
        | FILE
        | {"first": FILE["first"] | {"after": ["slow"]}}
    )
    with Path("said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", "pipeline", "grades.yaml"], stdout=said, stderr=said
        )
    # The stage waits for a writer of its input, which never comes.
    wait_for(lambda: "== stage slow" in Path("said.txt").read_text() and read_children(process.pid))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert "stage slow was stopped" in Path("said.txt").read_text()
    assert not os.path.exists("first.csv")
    Path("slow.csv").unlink()
    Path("slow.csv").write_text(Path("one.csv").read_text())
    assert pipeline() == 0
    assert all(map(os.path.exists, RESULTS))


def read_children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_is_gone_or_asked_for_is_made_again(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert pipeline() == 0
    capfd.readouterr()
    Path("second.csv").unlink()
    assert pipeline("--dry_run") == 0
    assert rows(capfd) == {"first": "-", "second": "run", "last": "run", "beside": "-"}
    assert pipeline() == 0
    capfd.readouterr()
    assert pipeline("--dry_run", "--again", "beside,last") == 0
    assert rows(capfd) == {"first": "-", "second": "-", "last": "run", "beside": "run"}


def test_what_a_stage_of_another_name_or_folder_has_made_is_moved_not_overwritten(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pipeline() == 0
    before = tree()
    write({("renamed" if name == "beside" else name): stage for name, stage in FILE.items()})
    capfd.readouterr()
    assert pipeline("--dry_run") == 0
    assert "note: beside.csv will be moved aside, not deleted" in capfd.readouterr().out
    assert pipeline() == 0
    (old,) = Path().glob("old-*/*")
    assert (old.name, old.read_bytes()) == ("beside.csv", before["beside.csv"][1])
    assert pipeline("--folder", "elsewhere") == 0
    kept = {path.name for path in Path().glob("old-*/*") if path.read_bytes() == before[path.name][1]}
    assert kept == set(RESULTS)


def test_a_stage_that_is_added_runs_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    added = {name: FILE[name] for name in ("first", "second", "beside")}
    write(added)
    assert pipeline() == 0
    capfd.readouterr()
    write(FILE | {"second": FILE["second"] | {"after": ["beside"]}})
    assert pipeline() == 0
    assert rows(capfd) == {"first": "-", "second": "-", "beside": "-", "last": "run"}
    assert pipeline("--again", "beside") == 0
    assert rows(capfd) == {"first": "-", "second": "run", "beside": "run", "last": "run"}


def refuse(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Type a command that is refused; returns the line that says why."""
    before = tree()
    capfd.readouterr()
    assert pipeline(*words) == 2
    assert tree() == before
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_what_cannot_be_meant_is_refused_in_a_line_and_changes_nothing(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "--again names 'frist', which is no stage. Did you mean first?" in refuse(capfd, "--again", "frist")
    write(FILE | {"last": {"job": "grades first.csv --output second.csv"}})
    assert "stages last and second both write" in refuse(capfd)
    write(FILE)
    assert "unknown cluster 'nowhere'" in refuse(capfd, "--on", "nowhere")
    shutil.copy("grades.yaml", "kept.yaml")
    assert pipeline() == 0
    record = Path("launches/grades/first") / RECORD
    text = record.read_text()
    record.write_text(text[:-20])
    assert "Remove it; the stage is then taken as not made yet." in refuse(capfd)
    record.write_text(text)
    Path("other").mkdir()
    shutil.copy("grades.yaml", "other/grades.yaml")
    capfd.readouterr()
    assert main(["pipeline", "other/grades.yaml"]) == 2
    assert "has the records of" in capfd.readouterr().err
    assert main(["pipeline", "other/grades.yaml", "--folder", "elsewhere", "--dry_run"]) == 0


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_jobs_of_this_machine_wait_for_one_another_and_for_one_that_is_resumed(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("two.csv").rename("away.csv")
    assert pipeline("--on", "local", "--allow_untracked") == 0
    runs = {name: here / "launches" / "grades" / name for name in FILE}
    # Both need the missing file.
    wait_for(lambda: not is_active(runs["first"]) and not is_active(runs["beside"]))
    assert not any(map(os.path.exists, RESULTS))
    capfd.readouterr()
    assert main(["status"]) == 0
    told = capfd.readouterr().out
    assert "pipeline grades: first stopped, second pending (after first), last pending (after second)" in told
    first = f"{Path('launches/grades/first')}"
    assert f"waits for {first}, not running; `deeplense resume {first}` continues both" in told
    time.sleep(1.5)
    assert not any(is_done(run) for run in runs.values())

    Path("away.csv").rename("two.csv")
    assert pipeline("--on", "local") == 0
    wait_for(lambda: all(map(is_done, runs.values())))
    wait_for(lambda: not any(map(is_active, runs.values())))
    assert all(map(os.path.exists, RESULTS))
    assert Path("second.csv").stat().st_mtime_ns > Path("first.csv").stat().st_mtime_ns
    assert all(launched(run).local for run in runs.values())
    before = tree()
    assert pipeline() == 0
    assert tree() == before


def test_a_job_of_this_machine_that_waits_can_be_cancelled(here: Path) -> None:
    submit = ["submit", "--on", "local", "--allow_untracked", "--folder"]
    assert main([*submit, "parent", "grades", "none.csv", "--output", "made.csv"]) == 0
    wait_for(lambda: not is_active(here / "parent"))
    assert main([*submit, "child", "--after", "parent", "grades", "made.csv", "--output", "last.csv"]) == 0
    assert is_active(here / "child")
    assert (here / "child" / LAUNCH).exists()
    assert main(["cancel", "child"]) == 0
    wait_for(lambda: not is_active(here / "child"))
    assert not Path("last.csv").exists()
