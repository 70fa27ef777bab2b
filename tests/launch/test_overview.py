"""All runs at a glance: few questions, few reads, runs of others too, and a table even if Slurm does not answer."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import read_json, write_json
from deeplense.records import line_of, write_record
from jobs.runs.attempts import EMPTY, newest_attempts, newest_step, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH, is_finished
from jobs.runs.progress import PROGRESS, last_loss
from launch.sight.attempts import attempt_lines
from launch.sight.gathering import accounted_starts
from launch.sight.overview import Answers, of_others, read_all
from launch.sight.reading import Reading, read_run
from launch.sight.search import find_runs
from launch.sight.table import row, table
from tests.launch.made_up import program

ROOT = Path(__file__).parents[2]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes run folders as a submission and its attempts leave them. Slurm knows of nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    says(tmp_path)

    def run(name: str, *ends: str | None, job: str = "7", step: int = 50, **cluster: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        known = {"executor": "slurm", "slurm_conf": None} | cluster
        write_json(folder / LAUNCH, {"job_id": job, "logs": str(folder), "cluster": known})
        lines = [
            EMPTY | {"attempt": number, "job_id": job, "first_step": 0, "ended": end, "begun": now()}
            for number, end in enumerate(ends, start=1)
        ]
        (folder / "attempts.jsonl").write_text("".join(map(line_of, lines)))
        (folder / PROGRESS).write_text(line_of({"step": step, "total": 200, "rate": 2.0, "attempt": len(ends)}))
        if ends and ends[-1] == "finished":
            write_record(folder / FINISHED, {"step": 200})
        return folder

    return run


def now() -> str:
    """The time as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def says(folder: Path, squeue: str = "", *, sacct: str = "") -> None:
    """What Slurm's commands print; each call is noted."""
    for name, text in {"squeue": squeue, "sacct": sacct}.items():
        program(folder / "bin", name, f'echo "{name} $@ conf=$SLURM_CONF" >> {folder}/asked.txt\nprintf "{text}"')


def asked(folder: Path) -> list[str]:
    """The calls."""
    path = folder / "asked.txt"
    return path.read_text().splitlines() if path.exists() else []


def rows(*folders: Path) -> list[list[str]]:
    """The cells of the table without its head and notes."""
    lines = [line for line in table(folders)[1:] if not line.startswith("note: ")]
    return [[cell.strip() for cell in line.split("  ") if cell] for line in lines]


def test_of_a_thousand_runs_slurm_is_asked_once(make: Make, tmp_path: Path) -> None:
    folders = [
        make(f"group{k % 10}/run{k}", "time limit", "finished" if k % 2 else None, job=str(k)) for k in range(1000)
    ]
    says(tmp_path, "".join(f"{k}|RUNNING|None|train\\n" for k in range(0, 1000, 2)))
    found = rows(*folders)
    assert [cells[1] for cells in found] == ["running", "finished"] * 500
    assert [call.split(" ")[0] for call in asked(tmp_path)] == ["squeue"]


def test_the_files_that_are_opened_for_a_run_are_few_and_read_from_their_end(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("run", *["time limit"] * 3000, None)
    for step in range(100, 3000, 100):
        checkpoint = run / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "train/loss": k}) + "\n" for k in range(100_000)))
    code = "import sys; sys.addaudithook(lambda name, given: name == 'open' and print(given[0], file=sys.stderr)); "
    code += "from pathlib import Path; from launch.sight.reading import read_run; "
    code += "from jobs.runs.progress import last_loss; run = Path(sys.argv[1]); read_run(run); read_run(run); "
    code += "print('FROM HERE', file=sys.stderr); print(read_run(run).num_attempts, last_loss(run))"
    words = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert done.stdout == "3001 99999.0\n"
    opened = done.stderr.partition("FROM HERE")[2].split()
    assert sorted(Path(name).name for name in opened) == [
        "attempts.jsonl",
        "finished.json",
        "launch.json",
        "metrics.jsonl",
        "progress.json",
    ]


def test_status_does_not_load_the_libraries_of_trainings(make: Make, tmp_path: Path) -> None:
    make("run", None)
    code = "import sys; from launch.__main__ import main; main(['status']); "
    code += "print([name for name in ('torch', 'matplotlib', 'wandb', 'submitit') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 50])
def test_the_newest_attempts_are_the_last_of_all(count: int, make: Make) -> None:
    run = make("run", *(f"crash: {'x' * (37 * k % 200)}" for k in range(count)))
    found = newest_attempts(run)
    assert found == read_attempts(run)[-len(found) :] if found else count == 0
    assert len(found) >= min(count, 2)


@pytest.mark.parametrize("damage", ["torn", "in the middle", "a long line", "a lost line"])
def test_if_a_line_of_attempts_is_damaged_all_are_read(damage: str, make: Make) -> None:
    run = make("run", *["time limit"] * 30, "x" * 5000 if damage == "a long line" else "hang")
    path = run / "attempts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "torn":
        lines[-1] = lines[-1][:50]
    elif damage == "in the middle":
        lines[-2] = lines[-2].replace("time limit", "time LIMIT")
    elif damage == "a lost line":
        del lines[-2]
    path.write_text("".join(lines))
    assert newest_attempts(run) == read_attempts(run)


def test_the_newest_checkpoint_is_complete(make: Make) -> None:
    run = make("run", None)
    assert newest_step(run) == 0
    for name, manifest in {
        "step_00000009": True,
        "step_00000010": False,
        "step_x": True,
        "best_00000099": True,
    }.items():
        (run / "checkpoints" / name).mkdir(parents=True)
        if manifest:
            (run / "checkpoints" / name / "manifest.json").write_text("{}")
    assert newest_step(run) == 9


def test_runs_of_another_user_are_shown_with_their_job_and_its_owner(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = make("theirs", None, job="7"), make("elsewhere", None, job="8", slurm_conf="/evil.conf")
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    says(tmp_path, "7|PENDING|Priority|train\\n8|RUNNING|None|train\\n")
    first, second = rows(run, elsewhere)
    assert first[1].startswith("pending (of ")
    assert first[1].endswith(", Priority)")
    assert second[1].startswith("not checked (writable by "), "a configuration of another user is not loaded"
    (question,) = asked(tmp_path)
    assert f"--user={uid + 1},{uid} " in question
    assert question.endswith("conf=")


def test_a_run_of_a_script_of_the_users_own_is_found_in_the_queue_by_its_last_attempt(
    make: Make, tmp_path: Path
) -> None:
    run = make("run", "stopped by SIGTERM", job="31")
    (run / LAUNCH).unlink()
    says(tmp_path, "31|PENDING|BeginTime|mine\\n")
    assert rows(run)[0][1] == "pending (BeginTime)"
    says(tmp_path)
    assert rows(run)[0][1] == "not running"


def test_if_slurm_does_not_answer_the_files_are_shown_and_the_reason_once(make: Make, tmp_path: Path) -> None:
    works, done = make("works", None, step=60), make("done", "finished")
    program(tmp_path / "bin", "squeue", 'echo "Unable to contact slurm controller" >&2; exit 1')
    assert [cells[1] for cells in rows(works, done)] == ["unknown", "finished"]
    assert rows(works)[0][3] == "60/200"
    (note,) = [line for line in table([works, done]) if line.startswith("note: ")]
    assert note.startswith("note: the state of 1 run is unknown: squeue --noheader")
    assert "Unable to contact slurm controller" in note


def test_a_run_that_makes_no_step_says_for_how_long(make: Make, tmp_path: Path) -> None:
    run = make("run", "time limit", None)
    says(tmp_path, "7|RUNNING|None|train\\n")
    assert rows(run)[0][1] == "running"
    old = time.time() - 720
    os.utime(run / PROGRESS, (old, old))
    assert rows(run)[0][1] == "running (no step for 12 min)"
    (run / PROGRESS).write_text(line_of({"step": 5, "total": 200, "rate": 2.0, "attempt": 1}))
    os.utime(run / PROGRESS, (old, old))
    cells = rows(run)[0]
    assert (cells[1], cells[4:6]) == ("running", ["-", "-"]), "the progress is that of the attempt before"


def test_control_characters_of_a_record_do_not_reach_the_terminal(make: Make) -> None:
    run = make("run", "crash: \x1b[2J\x07bad\nnews")
    assert rows(run)[0][-1] == "crash: ?[2J?bad news"


def test_control_characters_of_names_and_of_attempts_do_not_reach_the_terminal(make: Make) -> None:
    run = make("a\x1b[2Jrun", "crash: \x1b[2Jbad", job="7\x1b[2J")
    for line in [*table([run]), *attempt_lines(run)]:
        assert line.isprintable()
    damaged = make("dam\x1b[2Jaged")
    (damaged / LAUNCH).write_text("{")
    assert all(line.isprintable() for line in table([damaged]))


def test_the_user_is_told_to_resume_only_own_runs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = make("parent", "diverged: NaN", job="7"), make("child", job="8")
    write_json(child / LAUNCH, read_json(child / LAUNCH) | {"after": [str(parent)]})
    says(tmp_path, "8|PENDING|Dependency|train\\n")
    assert any("`deeplense resume parent` continues both" in line for line in table([parent, child]))
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    found = table([parent, child])
    assert "pending (of " in found[2]
    assert not any("deeplense resume" in line for line in found)


@pytest.mark.parametrize("job", ["x", "8,9", "8;", "--help", "8_"])
def test_the_accounting_is_asked_only_about_what_can_be_a_job(job: str, make: Make, tmp_path: Path) -> None:
    make("theirs", "time limit", job=job)
    good, part = make("good", "time limit", job="7"), make("part", "time limit", job="9_3")
    accounted_starts(read_all([tmp_path / "theirs", good, part])[0])
    assert [word for call in asked(tmp_path) for word in call.split() if word.startswith("--jobs")] == ["--jobs=7,9_3"]


def test_the_run_that_a_run_waits_for_is_in_its_state(make: Make, tmp_path: Path) -> None:
    parent, child = make("parent", None), make("child", "time limit")
    record = read_json(child / LAUNCH)
    write_json(child / LAUNCH, record | {"after": [str(parent)]})
    answers = Answers({child: ("PENDING", "Dependency"), parent: ("RUNNING", "None")})
    assert row(read_run(child), answers)[1] == "pending (after parent)"
    assert row(read_run(parent), answers)[1] == "running"
    write_record(parent / FINISHED, {"step": 200})
    assert row(read_run(child), answers)[1] == "pending (Dependency)"


@pytest.mark.parametrize(("reason", "is_told"), [("JobHeldUser", True), ("Dependency", False)])
def test_a_job_that_waits_for_a_run_and_is_held_is_told(reason: str, is_told: bool, make: Make, tmp_path: Path) -> None:
    parent, child = make("parent", None, job="7"), make("child", job="8")
    write_json(child / LAUNCH, read_json(child / LAUNCH) | {"after": [str(parent)]})
    says(tmp_path, f"7|RUNNING|None|train\\n8|PENDING|{reason}|train\\n")
    assert rows(parent, child)[1][1] == ("pending (JobHeldUser)" if is_told else "pending (after parent)")
    told = [line for line in table([parent, child]) if line.startswith("note: ")]
    assert [line.split(";")[0] for line in told] == ["note: child is held"] * is_told


def test_copies_of_code_checkpoints_and_hidden_folders_are_not_searched(make: Make, tmp_path: Path) -> None:
    run = make("a/run", None)
    for hidden in ("a/run/code", "a/run/checkpoints/x", "a/.cache/x"):
        make(f"{hidden}/inner", None)
    (run / "code" / "snapshot.json").write_text("{}")
    nested = make("a/run/finetuned", None)
    assert find_runs([tmp_path]) == [run, nested]


def test_runs_that_a_pipeline_moved_aside_are_found_only_where_they_are_named(make: Make, tmp_path: Path) -> None:
    new, old, older = make("runs/first", None), make("runs/old-20261201-120000/first"), make("runs/old-runs/first")
    assert find_runs([tmp_path]) == [new, older]
    assert find_runs([old.parent]) == find_runs([old]) == [old]


def test_the_folder_runs_may_be_a_link_and_a_circle_of_links_ends(make: Make, tmp_path: Path) -> None:
    make("scratch/one", None)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "runs").symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch" / "runs").symlink_to(tmp_path / "scratch")
    assert find_runs([tmp_path / "work"]) == [tmp_path / "work" / "runs" / "one"]


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("", None),
        ('{"step": 1, "train/loss": 0.5}\n{"step": 1, "val/loss": 9}\n', 0.5),
        ('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.2', 0.5),
        ('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": null}\n', 0.5),
        ('["train/loss"]\n', None),
        ("x" * 40000, None),
    ],
)
def test_the_last_loss_is_that_of_the_last_whole_line_of_training(
    text: str, loss: float | None, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_loss(tmp_path) == loss
    assert last_loss(tmp_path / "nowhere") is None


def test_only_jobs_of_others_that_may_still_be_there_are_asked_about(make: Make) -> None:
    folders = [make("a", "finished"), make("b", None)]
    readings, _ = read_all(folders)
    assert of_others(readings) == {}, "own runs need no other question"
    (folders[1] / LAUNCH).unlink()
    (folders[0] / LAUNCH).unlink()
    readings, _ = read_all(folders)
    assert of_others(readings) == {folders[1]: ("7", os.geteuid())}
    assert is_finished(folders[0])
    assert isinstance(readings[0], Reading)
