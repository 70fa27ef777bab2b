"""What runs do, at which step, and why the last attempt ended; one question to the scheduler for all."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deeplense.files import find_below
from jobs.attempts import ATTEMPTS, read_attempts
from jobs.config import require
from jobs.progress_file import read_progress
from jobs.runs import FINISHED, LAUNCH, LOCK, WANDB_ID, read_wandb_id
from launch import by_hand, slurm
from launch.record import Launched, is_process, keep, launched, own, queue_of, stranger_of, told_in

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_PER_QUESTION = 10
HEAD = ("RUN", "STATE", "ATTEMPT", "STEP", "RATE", "TIME LEFT", "LAST END")


def find_launched(roots: Sequence[Path]) -> list[Path]:
    """Folders of all runs at or below these, submitted ones and those started by hand."""
    found = (path.parent for root in roots for name in (LAUNCH, ATTEMPTS) for path in find_below(root, name))
    return list(dict.fromkeys(found))


def states(runs: Sequence[Launched]) -> dict[Path, tuple[str, str]]:
    """State and, where it waits, the reason of each run of this user that is still with the scheduler."""
    found: dict[Path, tuple[str, str]] = {}
    runs = [run for run in runs if not run.stranger]
    for slurm_conf in {run.slurm_conf for run in runs if not run.local}:
        jobs = slurm.queued(slurm_conf)
        ours = [run for run in runs if not run.local and run.slurm_conf == slurm_conf]
        found |= {run.folder: jobs[run.job_id] for run in ours if run.job_id in jobs}
    for run in runs:
        if run.by_hand:
            holder = by_hand.holder_of(run.folder)
            found |= {run.folder: ("RUNNING", f"by hand on {holder['host']}")} if holder else {}
        elif run.local and run.job_id and is_process(int(run.job_id), b"submitit.local._local"):
            found[run.folder] = ("RUNNING", "")
        elif run.local and queue_of(run.folder):
            found[run.folder] = ("PENDING", "its turn")
    return found


def is_active(folder: Path) -> bool:
    """Whether a run waits or runs."""
    is_run = (folder / LAUNCH).exists() or (folder / ATTEMPTS).exists()
    return is_run and folder in states(readable([folder])[0])


def table(folders: Sequence[Path]) -> list[str]:
    """A line for each run, under a line of headings."""
    runs, damaged = readable(folders)
    found = states(runs)
    away = [run for run in runs if not (run.local or run.stranger or run.folder in found)]
    gone = [run for run in away if not is_concluded(run.folder)]
    last: dict[str, str] = {}
    for slurm_conf in {run.slurm_conf for run in gone}:
        last |= slurm.accounted(slurm_conf, [run.job_id for run in gone if run.job_id and run.slurm_conf == slurm_conf])
    rows = [HEAD, *(row(run, found.get(run.folder), last.get(run.job_id or "", "")) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in rows] + damaged


def readable(folders: Sequence[Path]) -> tuple[list[Launched], list[str]]:
    """The submitted runs of these folders, and a line for each whose record is damaged."""
    runs, damaged = [], []
    for folder in folders:
        try:
            runs.append(launched(folder))
        except (ValueError, OSError) as error:
            damaged.append(f"note: {' '.join(str(error).split())}")
    return runs, damaged


def is_concluded(folder: Path) -> bool:
    """Whether the launcher has said why the last attempt ended."""
    attempts = read_attempts(folder)
    return bool(attempts) and "concluded" in attempts[-1]


def row(run: Launched, state: tuple[str, str] | None, accounted: str) -> tuple[str, ...]:
    """What the table says of one run."""
    attempts = read_attempts(run.folder)
    progress = read_progress(run.folder)
    running = state is not None and state[0] == "RUNNING"
    step = f"{progress['step']}/{progress['total']}" if progress else "-"
    rate = f"{progress['rate']:.1f}/s" if progress and running else "-"
    left = (
        duration((progress["total"] - progress["step"]) / progress["rate"])
        if running and progress and progress["rate"]
        else "-"
    )
    ends = [attempt["ended"] for attempt in attempts if attempt["ended"]]
    name = str(run.folder.relative_to(Path.cwd()) if run.folder.is_relative_to(Path.cwd()) else run.folder)
    return (
        name,
        state_of(run, attempts, state, accounted),
        str(len(attempts)),
        step,
        rate,
        left,
        ends[-1] if ends else "-",
    )


def state_of(run: Launched, attempts: Sequence[dict[str, Any]], state: tuple[str, str] | None, accounted: str) -> str:
    """One word for what a run does, with the scheduler's reason where it waits."""
    if state is not None:
        has_reason = (state[0] == "PENDING" or run.by_hand) and state[1] not in ("None", "")
        return state[0].lower() + (f" ({state[1]})" if has_reason else "")
    if (run.folder / FINISHED).exists() or (attempts and attempts[-1]["ended"] == "finished"):
        return "finished"
    if run.stranger:
        return f"not asked (of {run.stranger})"
    return accounted.split(" ")[0].lower() or "not running"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def log_of(run: Launched, rank: int) -> Path:
    """The log of a rank; the first rank's has what the batch script says, too."""
    return run.logs / f"{run.job_id}_{rank}_log.out"


def follow(run: Launched, rank: int) -> Iterator[str]:
    """What a log says, until the run is no longer with the scheduler."""
    place, ending = 0, False
    for look in itertools.count():
        # A run that waits for its turn has its log's name from its start on.
        run = run if run.job_id else launched(run.folder)
        path = log_of(run, rank)
        if path.exists():
            with path.open(errors="replace") as file:
                file.seek(place)
                yield file.read()
                place = file.tell()
        if ending:
            return
        # Slurm is asked less often than the file.
        ending = (run.local or look % LOOKS_PER_QUESTION == 0) and run.folder not in states([run])
        time.sleep(0 if ending else SECONDS_BETWEEN_LOOKS)


def to_cancel(folder: Path) -> list[Launched]:
    """The run of a folder, or, where it is none itself, those below it that wait or run. Raises ValueError where there
    is none."""
    below = find_launched([folder])
    if folder in below or not below:
        run = launched(folder)
        return [run if run.by_hand else own(folder)]
    runs, _ = readable(below)
    found = states(runs)
    if not found:
        raise ValueError(f"none of the {len(runs)} runs below {folder} waits or runs; there is nothing to cancel.")
    return [run for run in runs if run.folder in found]


def cancel(run: Launched) -> None:
    """End a run; its state is saved where the scheduler leaves it the time. Raises ValueError where it does not run."""
    if run.by_hand:
        lock = run.folder / LOCK
        stranger = stranger_of(lock) if lock.exists() else None
        require(stranger is None, f"{run.folder} is trained by {stranger}; only that user can end it.")
        by_hand.stop(run.folder)
        return
    if run.folder not in states([run]):
        raise ValueError(f"{run.folder} neither waits nor runs; there is nothing to cancel.")
    if queue_of(run.folder):
        keep(run.folder, told_in(run.folder) | {"queue": None})
        return
    assert run.job_id
    if run.local:
        os.kill(int(run.job_id), signal.SIGTERM)
    else:
        slurm.ask(run.slurm_conf, "scancel", run.job_id)


def sync(folder: Path) -> int:
    """Send what a run logged offline to Weights & Biases, all attempts into one run; returns how many there were."""
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    if parts:
        # Each line carries its step: what an attempt made again after a kill is the same line once more.
        known = read_wandb_id(folder)
        if known is None:
            raise ValueError(f"{folder / WANDB_ID} is missing or damaged; the same command of the run makes it anew.")
        number = ["--id", known]
        subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *number, *map(str, parts)], check=True)
    return len(parts)
