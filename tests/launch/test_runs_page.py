"""The page on runs: complete in one file, readable, and with the numbers of the accounting."""

import json
import os
import re
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import write_json
from deeplense.records import line_of, write_record
from jobs.runs.attempts import EMPTY
from jobs.runs.folder import FINISHED, LAUNCH
from launch import commands
from launch.sight.gathering import gather, names_of
from launch.sight.proposal import in_hours, number, paragraph
from launch.sight.spending import Spell
from launch.sight.timeline import MOST_ROWS, NAMES, ticks, timeline
from tests.jobs.browser import chromium
from tests.launch.made_up import program

BEGAN = 1_700_000_000.0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs: one was preempted once and finished; one has diverged. The accounting has energies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    first = [("preempted, without grace", 0, 0, 80, 60), ("finished", 10_000, 60, 200, 200)]
    make(tmp_path / "runs" / "first", "7", first, finished=200)
    make(tmp_path / "runs" / "se<b>cond", "8", [("diverged: <script>alert(1)</script>", 500, 0, 90, 50)])
    rows = [sacct_row("7", 0, 3600), sacct_row("7", 10_000, 17_200), sacct_row("8", 500, 4100)]
    program(tmp_path / "bin", "sacct", f"cat <<'END'\n{''.join(rows)}END")
    program(tmp_path / "bin", "squeue", "")
    return tmp_path / "runs"


def make(folder: Path, job: str, attempts: list[tuple[str, int, int, int, int]], finished: int | None = None) -> None:
    """A run: why each attempt ended, when it began, its first step, the last that it reached and the last saved."""
    folder.mkdir(parents=True)
    cluster = {"executor": "slurm", "slurm_conf": None, "nodes": 1, "cpus_per_task": 8, "gpus_per_node": 4}
    write_json(folder / LAUNCH, {"job_id": job, "logs": "", "cluster": cluster})
    lines = [
        EMPTY
        | {"attempt": k + 1, "job_id": job, "restart": k, "begun": at(begun + 5), "first_step": step, "ended": end}
        | {"concluded": at(begun + 3500), "reached": reached, "saved": saved, "rate": 0.05, "num_processes": 4}
        for k, (end, begun, step, reached, saved) in enumerate(attempts)
    ]
    (folder / "attempts.jsonl").write_text("".join(map(line_of, lines)))
    metrics = [{"step": step, "train/loss": 1 / step, "lr": 0.1} for step in range(1, attempts[-1][3], 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if finished:
        write_record(folder / FINISHED, {"step": finished})


def at(second: float) -> str:
    """A time as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(BEGAN + second))


def sacct_row(job: str, begun: int, ended: int) -> str:
    """The start of a job on 32 cores and 4 GPUs, and its step with 3.6 MJ for each hour."""
    times = f"{BEGAN + begun - 60:.0f}|{BEGAN + begun:.0f}|{BEGAN + ended:.0f}|{ended - begun}"
    tres = "cpu=32,gres/gpu=4,node=1"
    return f"{job}|COMPLETED|{times}|32|{tres}|\n{job}.0|COMPLETED|{times}|32|{tres}|{1000 * (ended - begun)}\n"


class Reader(HTMLParser):
    """Collects what a page loads, its text, and the elements that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def page_of(runs: Path) -> str:
    """The page on these runs."""
    assert commands.report([str(runs), "--output", "page.html"]) == 0
    return Path("page.html").read_text()


def test_the_page_needs_nothing_from_elsewhere_and_is_light(runs: Path) -> None:
    page = page_of(runs)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.loaded
    assert all(url.startswith("data:image/png;base64,") for url in reader.loaded)
    assert "@import" not in page
    assert "url(" not in page
    assert len(page) < 500_000


def test_what_records_say_is_text_and_nothing_else(runs: Path) -> None:
    page = page_of(runs)
    assert "<script>alert" not in page
    assert "se<b>cond" not in page
    reader = Reader()
    reader.feed(page)
    assert "diverged: <script>alert(1)</script>" in reader.text
    assert "se<b>cond" in reader.text


def test_the_numbers_are_those_of_the_accounting(runs: Path) -> None:
    page = page_of(runs)
    found: dict[str, Any] = json.loads(re.findall(r'id="numbers">(.*?)</script>', page, re.DOTALL)[0])
    hours = (3600 + 7200 + 3600) / 3600
    assert found["used"] == {"cpu": pytest.approx(32 * hours), "gpu": pytest.approx(4 * hours)}
    assert found["energy_kwh"] == pytest.approx(hours)
    # 20 steps at 0.05 steps/s are lost by the preemption, 40 by the divergence.
    assert found["again"]["gpu"] == pytest.approx(4 * (400 + 800) / 3600)
    assert [(loss["cause"], loss["steps"]) for loss in found["losses"]] == [("preempted", 20), ("diverged", 40)]
    assert found["waited_h"] == pytest.approx((60 + 6400 + 60) / 3600)
    for text in ("16.0", "128", "work that is in the results", "preempted, requeued or stopped"):
        assert text in page


def test_the_paragraph_has_the_numbers_in_plain_words(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page_of(runs)
    said = capsys.readouterr().out
    told = paragraph(gather([runs / "first", runs / "se<b>cond"]))
    assert said == f"{told}\npage: page.html\n"
    assert told.startswith("2 runs were made ")
    assert "in 3 attempts. Together they used 16.0 GPU hours and 128 core hours." in told
    assert "(1 x preempted, 1 x diverged)" in told
    assert "The finished run cost 12.0 GPU hours." in told
    assert told.endswith("The nodes used 4 kWh according to Slurm.")


def test_without_accounting_that_is_said_and_the_records_count(runs: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin", "sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    page = page_of(runs)
    assert "Slurm&#39;s accounting has none of these attempts (sacct" in page
    assert "The energy is not known: it is only in Slurm&#39;s accounting." in page
    found = json.loads(re.findall(r'id="numbers">(.*?)</script>', page, re.DOTALL)[0])
    assert found["used"]["gpu"] == pytest.approx(4 * 3 * 3495 / 3600, rel=1e-3)


def test_without_energies_that_is_said(runs: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin", "sacct", f"cat <<'END'\n{sacct_row('7', 0, 3600).splitlines()[0]}\nEND")
    page = page_of(runs)
    assert "Slurm does not measure it here (AcctGatherEnergyType)" in page
    assert "Times, cores and GPUs of 1 of 3 attempts are those of Slurm&#39;s accounting" in page


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere"], "no run found in or below nowhere"),
        (["runs", "--output", "page.pdf"], "must be a file that ends in .html"),
        (["runs/empty"], "none of these runs has made an attempt yet"),
    ],
)
def test_what_cannot_be_reported_is_refused_and_nothing_is_written(words: list[str], problem: str, runs: Path) -> None:
    make(runs / "empty", "9", [("finished", 0, 0, 1, 1)])
    (runs / "empty" / "attempts.jsonl").unlink()
    with pytest.raises(ValueError, match=re.escape(problem)):
        commands.report(words)
    assert not list(Path().glob("*.html"))


def test_a_run_with_a_damaged_record_is_named_and_the_others_are_shown(runs: Path) -> None:
    (runs / "se<b>cond" / LAUNCH).write_text("{}")
    page = page_of(runs)
    assert re.search(r"Not included: .*launch.json is damaged", page)
    assert "12.0" in page


def spell(run: str, begun: float, ended: float, cause: str = "finished", waited: float = 0.0) -> Spell:
    """An attempt on one core."""
    return Spell(run, 1, cause, cause, BEGAN + begun, BEGAN + ended, waited_s=waited, seconds=ended - begun, cpus=1)


def test_bars_are_where_the_times_are() -> None:
    drawn = timeline([spell("a", 100, 200, "crash", waited=100), spell("b", 300, 400, "hang")])
    (wait, crash), (hang,) = (row.bars for row in drawn.rows)
    assert (wait.left, wait.width, crash.left, crash.width) == (0, 25, 25, 25)
    assert (hang.left, hang.width) == (75, 25)
    assert (wait.kind, crash.kind, hang.kind) == ("wait", "crash", "crash")
    assert set(drawn.legend) == {"crash", "wait"} <= set(NAMES)


def test_many_short_attempts_become_one_bar_and_many_runs_are_drawn_in_part() -> None:
    short = [spell("a", 10 * k, 10 * k + 9, "time limit") for k in range(5000)]
    drawn = timeline([*short, spell("a", 50_000, 90_000)])
    assert len(drawn.rows[0].bars) < 1000
    assert sum(bar.width for bar in drawn.rows[0].bars) == pytest.approx(100, rel=0.05)
    many = timeline([spell(f"run{k}", 0, k + 1) for k in range(MOST_ROWS + 7)])
    assert (len(many.rows), many.left_out) == (MOST_ROWS, 7)
    assert "run0" not in [row.name for row in many.rows]


@pytest.mark.parametrize("length", [20, 500, 5000, 90_000, 10**6, 10**7, 10**8])
def test_marks_are_few_in_order_and_inside(length: float) -> None:
    found = ticks(BEGAN, BEGAN + length)
    assert 1 <= len(found) <= 10
    assert [tick.left for tick in found] == sorted(tick.left for tick in found)
    assert all(0 <= tick.left <= 100 for tick in found)


def test_names_are_short_and_different() -> None:
    assert names_of([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert names_of([Path("/x/a/run")]) == ["run"]
    assert names_of([Path("/x/a"), Path("/x/a/b")]) == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0012345, "0.00123"),
        (0.5, "0.5"),
        (9.876, "9.88"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1e6, "1,000,000"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_times_are_in_hours_minutes_or_seconds() -> None:
    assert [in_hours(value) for value in (100, 1, 0.99, 0.01, 0)] == ["100 h", "1 h", "59 min", "36 s", "0 s"]


def test_the_page_is_drawn_by_a_browser_at_both_widths(runs: Path, tmp_path: Path) -> None:
    page_of(runs)
    words = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    code = (
        "<script>onload = () => {document.title = [400, 1200].map(width => {let frame = "
        "document.querySelector('iframe'); frame.width = width; let inner = frame.contentDocument.documentElement; "
        "return inner.scrollWidth <= width}).join()}</script>"
    )
    page = Path("page.html").read_text().replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "frame.html").write_text(f'<body><iframe srcdoc="{page}" height="800"></iframe>{code}</body>')
    done = subprocess.run(
        [*words, "--dump-dom", f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=120
    )
    assert "<title>true,true</title>" in done.stdout, "the page is wider than its window"
