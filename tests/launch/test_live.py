"""The live view: places in the queue, what fits on a terminal, and Ctrl-C."""

import io
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from deeplense.files import read_json, write_json
from deeplense.records import line_of, write_record
from jobs.runs.attempts import EMPTY
from jobs.runs.folder import FINISHED, LAUNCH
from launch import commands
from launch.sight import live
from launch.sight.live import HEAD, View, drawn, print_changes, watch, widths_of
from launch.sight.overview import Answers
from launch.sight.places import Place, Waiting, parsed, placed
from launch.sight.reading import read_run
from tests.launch.made_up import program

ROOT = Path(__file__).parents[2]


def run_in(folder: Path, *, job: str = "7", ended: str | None = None) -> Path:
    """A run with an attempt."""
    folder.mkdir(parents=True)
    cluster = {"executor": "slurm", "slurm_conf": None}
    write_json(folder / LAUNCH, {"job_id": job, "logs": str(folder), "cluster": cluster})
    line = EMPTY | {"attempt": 1, "job_id": job, "first_step": 0, "ended": ended}
    (folder / "attempts.jsonl").write_text(line_of(line))
    (folder / "progress.json").write_text(line_of({"step": 50, "total": 200, "rate": 2.0, "attempt": 1}))
    (folder / "metrics.jsonl").write_text('{"step": 50, "train/loss": 0.3217}\n')
    return folder


def job(number: int, priority: int, *partitions: str, reason: str = "Priority") -> Waiting:
    """A pending job."""
    return Waiting(str(number), frozenset(partitions or ("gpu",)), priority, reason)


def test_a_place_counts_the_jobs_of_the_same_partition_that_come_first() -> None:
    waiting = [job(1, 5), job(2, 9), job(3, 5), job(4, 99, "cpu"), job(5, 7, "cpu", "gpu")]
    waiting += [job(6, 99, reason="Dependency"), job(7, 99, reason="JobHeldUser")]
    found = placed(waiting, {"1", "3", "4", "6"})
    assert found == {"1": Place(3, 4), "3": Place(4, 4), "4": Place(1, 2), "6": Place(None, 4)}


@pytest.mark.parametrize("seed", range(10))
def test_places_do_not_depend_on_the_order_of_the_answer_and_are_all_different(seed: int) -> None:
    draw = random.Random(seed)
    waiting = [job(number, draw.randrange(4)) for number in range(30)]
    ids = {each.job_id for each in waiting}
    before = placed(waiting, ids)
    draw.shuffle(waiting)
    assert placed(waiting, ids) == before
    assert sorted(place.rank or 0 for place in before.values()) == list(range(1, 31))
    best = min(waiting, key=lambda each: (-each.priority, int(each.job_id)))
    assert before[best.job_id].rank == 1


def test_a_line_of_squeue_is_read_and_nonsense_is_left_out() -> None:
    found = parsed("9_4|a,b|4294901758|1796125692|Resources")
    assert found == Waiting("9_4", frozenset("ab"), 4294901758, "Resources", 1796125692.0)
    assert parsed("9|a|7|N/A|Priority") == Waiting("9", frozenset("a"), 7, "Priority", None)
    assert [parsed(line) for line in ("", "a|b", "1|a|high|2|x")] == [None] * 3


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_the_view_fits_every_terminal_and_keeps_what_matters(width: int, tmp_path: Path) -> None:
    readings = [read_run(run_in(tmp_path / f"a_long_name_of_a_run_{k}", job=str(k))) for k in range(60)]
    answers = Answers({each.folder: ("PENDING" if k % 2 else "RUNNING", "Priority") for k, each in enumerate(readings)})
    view = View(readings, answers, {str(k): Place(k, 99, time.time() + 600) for k in range(60)})
    file = io.StringIO()
    Console(file=file, width=width, height=20, force_terminal=False).print(drawn(view, width, 20))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 20
    assert lines[1].split()[0] == "RUN"
    assert "STEP" in lines[1]
    assert any(line.startswith("and 47 more") for line in lines)
    if width >= 120:
        assert lines[1].split()[:3] == ["RUN", "STATE", "QUEUE"]
        assert "0.3217" in lines[2]


def test_pipelines_are_below_the_table_and_the_view_still_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run_in(tmp_path / f"run{k}", job=str(k)) for k in range(30)]
    for k, run in enumerate(runs[:9]):
        write_json(run / LAUNCH, read_json(run / LAUNCH) | {"stage": [f"lenses{k}", 1, "train", "m"]})
    monkeypatch.setattr(live, "ask", lambda readings: Answers({run: ("RUNNING", "None") for run in runs}))
    monkeypatch.setattr(live, "places_of", lambda readings, answers: {})
    file = io.StringIO()
    view = live.look(lambda: runs, live.Asker())
    Console(file=file, width=80, height=20, force_terminal=False).print(drawn(view, 80, 20))
    lines = file.getvalue().splitlines()
    assert len(lines) <= 20
    below = lines.index("and 20 more runs")
    assert lines[below + 1 : below + 4] == [f"pipeline lenses{k}: train running" for k in range(3)]


def test_columns_without_content_are_left_out() -> None:
    rows = [("a", "running", "-", "1", "5/9", "2.0/s", "0.5", "0:00:02", "-")]
    assert [HEAD[k] for k in widths_of(rows, 200)] == ["RUN", "STATE", "ATTEMPT", "STEP", "RATE", "LOSS", "TIME LEFT"]


def test_without_a_terminal_only_changes_are_printed(tmp_path: Path) -> None:
    run, other = run_in(tmp_path / "run"), run_in(tmp_path / "other")
    file = io.StringIO()
    console = Console(file=file, force_terminal=False)

    def look(state: str) -> View:
        return View([read_run(run), read_run(other)], Answers({run: (state, "None"), other: ("RUNNING", "None")}))

    before = print_changes(look("PENDING"), {}, console)
    assert len(file.getvalue().splitlines()) == 3
    before = print_changes(look("PENDING"), before, console)
    assert len(file.getvalue().splitlines()) == 3
    print_changes(look("RUNNING"), before, console)
    assert file.getvalue().splitlines()[3].split()[1:3] == [str(run), "running"]


def on_a_terminal(folder: Path, *words: str, term: str, until: bytes) -> tuple[bytes, int, float]:
    """What `deeplense status` shows on a terminal until it has shown something and Ctrl-C is pressed; its exit code,
    and how long it took to leave."""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell ignores for what it starts in the background
        os.chdir(folder)
        variables = os.environ | {"TERM": term, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "LINES": "30"}
        os.execve(sys.executable, [sys.executable, "-m", "launch", "status", *words], variables)
    text, deadline = b"", time.monotonic() + 60
    while until not in text and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 65536)
    begun = time.monotonic()
    os.write(terminal, b"\x03")
    try:
        while more := os.read(terminal, 65536):
            text += more
    except OSError:  # the other side is closed
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return text, code, time.monotonic() - begun


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_ctrl_c_leaves_the_view_at_once_even_while_slurm_does_not_answer(
    term: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(tmp_path / "run")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "squeue", "exec sleep 50")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    text, code, seconds = on_a_terminal(tmp_path, "--watch", "1", term=term, until=b"asking Slurm")
    assert code == 0
    assert b"Traceback" not in text
    assert seconds < 20, "squeue would have answered after 50 s"
    assert (b"\x1b[?25l" in text) == (term != "dumb")
    assert text.count(b"\x1b[?25l") == text.count(b"\x1b[?25h"), "the cursor is back"
    assert b"0.3217" in text


def test_in_a_pipe_the_view_is_lines_and_ends_by_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in(tmp_path / "run", ended="finished")
    (tmp_path / "bin").mkdir()
    for name in ("squeue", "sacct"):
        program(tmp_path / "bin", name, "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    words = [sys.executable, "-m", "launch", "status", "--watch"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # it may be ignored, and that is inherited
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout
        head, row = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert "\x1b" not in head + row
    assert (head.split()[1:3], row.split()[1:3]) == (["RUN", "STATE"], ["run", "finished"])


def test_slurm_is_asked_seldom_and_new_runs_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, looks = [], []
    monkeypatch.setattr(live, "ask", lambda readings: asked.append(len(readings)) or Answers())

    def find() -> list[Path]:
        looks.append(1)
        if len(looks) == 6:
            raise KeyboardInterrupt
        run_in(tmp_path / f"run{len(looks)}", ended="finished")
        return sorted(tmp_path.glob("run*"))

    file = io.StringIO()
    assert watch(find, 0.01, console=Console(file=file, force_terminal=False)) == 0
    assert asked == [1], "ten seconds have not passed"
    assert [f"run{k}" in file.getvalue() for k in range(1, 7)] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("words", "with_value"),
    [
        (["--watch"], ["--watch", "5"]),
        (["--watch", "runs"], ["--watch", "5", "runs"]),
        (["--watch", "2.5", "runs"], ["--watch", "2.5", "runs"]),
        (["runs", "--watch"], ["runs", "--watch", "5"]),
        (["--watch", "-1"], ["--watch", "-1"]),
        ([], []),
    ],
)
def test_the_seconds_of_watch_may_be_left_out(words: list[str], with_value: list[str]) -> None:
    assert commands.with_value(words, "--watch", "5") == with_value


@pytest.mark.parametrize("seconds", ["0", "-1", "0.1", "99999"])
def test_seconds_that_cannot_be_meant_are_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.show_status(["--watch", seconds])
    assert "from 0.5 to 3600" in capsys.readouterr().err


def test_a_finished_run_is_read_once_and_others_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "ask", lambda readings: Answers())
    works, done = run_in(tmp_path / "works"), run_in(tmp_path / "done", ended="finished")
    write_record(done / FINISHED, {"step": 200})
    read: list[str] = []
    kept = live.read_all
    monkeypatch.setattr(live, "read_all", lambda folders: read.extend(f.name for f in folders) or kept(folders))
    asker = live.Asker()
    views = [live.look(lambda: [works, done], asker) for _ in range(3)]
    assert read == ["works", "done", "works", "works"]
    assert [len(view.readings) for view in views] == [2, 2, 2]
    assert [len(live.look(lambda: [works], asker).readings)] == [1], "a run that was removed is gone"


def test_a_finished_run_that_is_made_again_in_its_folder_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ask", lambda readings: Answers())
    run, asker = run_in(tmp_path / "run", ended="finished"), live.Asker()

    def is_finished() -> bool:
        (reading,) = live.look(lambda: [run], asker).readings
        return reading.finished_step is not None

    write_record(run / FINISHED, {"step": 200})
    assert is_finished()
    run.rename(tmp_path / "aside")
    run_in(run)
    assert not is_finished()
    write_record(run / FINISHED, {"step": 200})
    assert is_finished()
