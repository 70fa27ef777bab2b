"""Runs in sight on a real Slurm: the live view, the sums of a report, and notices."""

import json
import os
import pty
import re
import select
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.sight import overview
from launch.sight.overview import ask, read_all, tell_users
from launch.sight.table import table
from tests.cluster.conftest import FIRST_NUMBER, missing
from tests.cluster.private_slurm import PrivateSlurm, surroundings, take_number
from tests.cluster.trainings import (
    NEVER,
    ROOT,
    Training,
    assert_counted_to_the_end,
    counting,
    kill,
    take_all_nodes,
    wait_for,
)

GPUS = 2
WITHIN = 0.01


@dataclass(frozen=True)
class SlurmWithGpus(PrivateSlurm):
    """Each host has two GPUs as far as Slurm knows."""

    def write_configuration(self) -> None:
        super().write_configuration()
        for k in range(GPUS):
            os.mknod(self.folder / f"gpu{k}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        conf = self.folder / "slurm.conf"
        text = conf.read_text().replace("RealMemory=8000", f"RealMemory=8000 Gres=gpu:{GPUS}")
        conf.write_text(f"{text}GresTypes=gpu\nAccountingStorageTRES=gres/gpu\n")
        gpus = f"NodeName=node[1-4] Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gpus)


@pytest.fixture(scope="module")
def slurm_with_gpus() -> Iterator[PrivateSlurm]:
    """Four hosts with GPUs and accounting."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True))
        cluster = SlurmWithGpus(Path(folder), number=take_number(stack, FIRST_NUMBER))
        if os.geteuid() != 0 or cluster.missing:
            missing(f"needs root's rights and {', '.join(cluster.missing)}")
        cluster.start()
        stack.callback(cluster.stop)
        yield cluster


@pytest.fixture
def counted_on_gpus(
    slurm_with_gpus: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Training]:
    """Ranks that count, without torch, on two nodes with GPUs."""
    monkeypatch.setenv("PATH", slurm_with_gpus.environment["PATH"])
    yield counting(slurm_with_gpus, tmp_path)
    slurm_with_gpus.clear()


def held(training: Training, *, attempt: int, step: int) -> None:
    """Let a run come to a step, and wait there."""
    training.hold(step)
    training.wait_until_held(attempt=attempt, step=step)


def sums_of_sacct(training: Training, *options: str) -> tuple[float, float]:
    """Hours of cores and of GPUs by a question of our own to the accounting."""
    jobs = sorted({attempt["job_id"] for attempt in training.attempts()})
    form = "--format=CPUTimeRAW,ElapsedRaw,AllocTRES"
    rows = training.slurm.ask("sacct", "-n", "-P", "-X", *options, form, f"--jobs={','.join(jobs)}") or ""
    cells = [row.split("|") for row in rows.splitlines()]
    gpus = [int((re.search(r"gres/gpu=(\d+)", tres) or [0, 0])[1]) for _, _, tres in cells]
    cpu_s = sum(int(cpu) for cpu, _, _ in cells)
    return cpu_s / 3600, sum(int(row[1]) * n for row, n in zip(cells, gpus, strict=True)) / 3600


def numbers_in(page: Path) -> dict[str, Any]:
    """The sums that a page has for other programs."""
    found = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_sums_of_a_report_are_those_of_the_accounting_through_preemptions_and_requeues(
    counted_on_gpus: Training,
) -> None:
    run = counted_on_gpus
    run.hold(4)
    run.submit("--restarts", "crash=4", profile={"gpus_per_node": GPUS, "tasks_per_node": 1, "cpus_per_task": 2})
    held(run, attempt=1, step=4)
    time.sleep(5)  # The progress is written every five seconds.
    take_all_nodes(run.slurm)
    run.wait_for_end(1)
    held(run, attempt=2, step=8)
    run.slurm.ask("scontrol", "requeue", run.job_id)
    run.wait_for_end(2)
    held(run, attempt=3, step=12)
    kill(run.ranks()[1])
    run.wait_for_end(3)
    run.hold(NEVER)
    run.wait_until_over()
    assert_counted_to_the_end(run)
    page = run.home / "page.html"
    told = run.deeplense("report", str(run.run), "--output", str(page))
    assert f"page: {page}" in told
    sums = numbers_in(page)
    cpu, gpu = sums_of_sacct(run, "-D")
    assert sums["used"]["cpu"] == pytest.approx(cpu, rel=WITHIN)
    assert sums["used"]["gpu"] == pytest.approx(gpu, rel=WITHIN)
    assert gpu > 0
    assert sums_of_sacct(run)[0] < (1 - WITHIN) * cpu, "the negative control: without duplicates, starts are missing"
    for kind in ("cpu", "gpu"):
        parts = sum(sums[part][kind] for part in ("kept", "again", "first", "restart"))
        assert parts == pytest.approx(sums["used"][kind], rel=1e-6)
        lost = sum(loss[part][kind] for loss in sums["losses"] for part in ("again", "restart"))
        assert lost == pytest.approx(sums["again"][kind] + sums["restart"][kind], rel=1e-6)
    assert {loss["cause"]: loss["ends"] for loss in sums["losses"]} == {"preempted": 1, "requeued": 1, "crash": 1}
    assert sums["waited_h"] > 0
    assert "Slurm does not measure it here" in page.read_text()


def test_without_accounting_a_report_says_that_its_hours_are_from_the_records(
    bare_slurm: PrivateSlurm, tmp_path: Path
) -> None:
    run = counting(bare_slurm, tmp_path)
    run.hold(4)
    run.submit()
    held(run, attempt=1, step=4)
    begun = time.time()
    run.hold(NEVER)
    run.wait_until_over()
    page = run.home / "page.html"
    run.deeplense("report", str(run.run), "--output", str(page))
    sums, lasted_h = numbers_in(page), (time.time() - begun) / 3600
    assert "All times and hours are from the records of the runs" in page.read_text()
    assert 0 < sums["used"]["cpu"] <= 2 * (lasted_h + 60 / 3600), "two cores, since it was submitted"
    assert sums["used"]["gpu"] == 0


def shown_by(training: Training, *words: str, seconds: float) -> tuple[str, int, float]:
    """What a command shows on a terminal until Ctrl-C; its exit code, and how long it took to leave."""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell ignores for what it starts in the background
        environment = surroundings() | training.slurm.environment | {"TERM": "xterm-256color", "COLUMNS": "160"}
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "launch", *words], environment)
    text, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 65536)
    asked = time.monotonic()
    os.write(terminal, b"\x03")
    try:
        while more := os.read(terminal, 65536):
            text += more
    except OSError:
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.decode(errors="replace")), code, time.monotonic() - asked


def test_the_live_view_shows_a_run_that_works_and_its_place_in_the_queue(counted: Training) -> None:
    counted.hold(10)
    counted.submit()
    held(counted, attempt=1, step=10)
    text, code, _ = shown_by(counted, "status", str(counted.run), "--watch", "1", seconds=12)
    assert code == 0
    assert re.search(r"run +running.* 1 +\d+/30", text), text[-2000:]
    urgent = counted.slurm.ask(
        "sbatch",
        "--parsable",
        "-p",
        "urgent",
        "-N4",
        "--exclusive",
        "-t",
        "15",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 800",
    )
    assert urgent
    # For a while after a requeue, a job has no place in the queue.
    wait_for(lambda: reason_of(counted) not in ("", "None", "BeginTime"), counted.describe)
    text, code, _ = shown_by(counted, "status", str(counted.run), "--watch", "1", seconds=15)
    assert code == 0
    assert re.search(r"run +pending \(\w+\) +1 of \d", text), text[-2000:]
    counted.slurm.ask("scancel", urgent.strip())
    counted.hold(NEVER)
    counted.wait_until_over()
    assert_counted_to_the_end(counted)


def reason_of(run: Training) -> str:
    """Why its job is pending; empty if it is not."""
    words = ("squeue", "-h", "-t", "PENDING", "-o", "%r", "-j", run.job_id)
    return (run.slurm.ask(*words) or "").strip()


def notifier(home: Path, body: str) -> str:
    """A command that notes its arguments, one line for each call, and then does something."""
    script = home / "notify.sh"
    script.write_text(f'#!/bin/bash\necho "$(basename "$1")|$2|$3" >> {home}/told.txt\n{body}\n')
    script.chmod(0o755)
    return str(script)


def told(home: Path) -> list[list[str]]:
    """The calls."""
    path = home / "told.txt"
    return [line.split("|") for line in path.read_text().splitlines()] if path.exists() else []


def test_each_event_is_told_once(counted: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    counted.hold(4)
    counted.submit("--restarts", "crash=0", profile={"notify": notifier(counted.home, "exit 0")})
    held(counted, attempt=1, step=4)
    kill(counted.ranks()[1])
    counted.wait_until_over()
    wait_for(lambda: told(counted.home), counted.describe, seconds=30)
    ((run, event, why),) = told(counted.home)
    assert (run, event) == ("run", "failed")
    assert why.startswith("attempt 1 ended: crash: task 1 on node")
    counted.deeplense("resume", str(counted.run))
    held(counted, attempt=2, step=8) if counted.hold(8) is None else None
    counted.slurm.ask("scontrol", "requeuehold", counted.job_id)
    counted.wait_for_end(2)
    wait_for(lambda: "held" in " ".join(table([counted.run])), lambda: "\n".join(table([counted.run])))
    monkeypatch.setattr(overview, "SECONDS_TO_GO_ON", 0.0)
    for _ in range(3):
        readings, _ = read_all([counted.run])
        tell_users(readings, ask(readings))
    assert [call[1] for call in told(counted.home)] == ["failed", "standing still"]
    assert "is held; release it" in told(counted.home)[1][2]
    counted.slurm.ask("scontrol", "release", counted.job_id)
    counted.hold(NEVER)
    counted.wait_until_over()
    assert_counted_to_the_end(counted)
    wait_for(lambda: len(told(counted.home)) == 3, counted.describe, seconds=30)
    readings, _ = read_all([counted.run])
    tell_users(readings, ask(readings))
    assert told(counted.home)[2:] == [["run", "finished", "finished in attempt 3"]]


@pytest.mark.parametrize(
    ("body", "end"),
    [("exit 3", "exit code 3"), ("sleep 600", "exit code 137"), ("kill -9 $$", "exit code 137")],
    ids=["fails", "hangs", "is killed"],
)
def test_a_notice_that_fails_neither_ends_a_run_nor_is_hidden(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, end: str
) -> None:
    monkeypatch.setenv("PATH", slurm.environment["PATH"])
    run = counting(slurm, tmp_path)
    run.hold(NEVER)
    run.submit(profile={"notify": notifier(tmp_path, body), "environment": environment(tmp_path)})
    run.wait_until_over()
    assert_counted_to_the_end(run)
    assert [call[1] for call in told(tmp_path)] == ["finished"]
    (note,) = [line for line in table([run.run]) if "may not have arrived" in line]
    assert end in note
    slurm.clear()


def environment(home: Path) -> dict[str, str]:
    """Variables of ranks that count, and short times for commands."""
    return {"DEEPLENSE_TEST": str(home), "OMP_NUM_THREADS": "1", "DEEPLENSE_COUNTS": "1", "DEEPLENSE_ANSWER_S": "8"}


def test_mails_are_requested_from_slurm_and_not_for_successor_jobs(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", slurm.environment["PATH"])
    run = counting(slurm, tmp_path)
    run.hold(4)
    run.submit("--mail", "me@example.org")
    held(run, attempt=1, step=4)
    shown = slurm.ask("scontrol", "show", "job", run.job_id) or ""
    assert "MailUser=me@example.org" in shown
    assert re.search(r"MailType=\S*END", shown)
    successor = (slurm.ask("squeue", "-h", f"--name=deeplense-after-{run.job_id}", "-o", "%i") or "").strip()
    assert successor
    assert "MailType=" not in (slurm.ask("scontrol", "show", "job", successor) or "").replace("MailType=NONE", "")
    run.hold(NEVER)
    run.wait_until_over()
    slurm.clear()
