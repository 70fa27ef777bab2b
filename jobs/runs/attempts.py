"""The attempts of a run, `attempts.jsonl`: one line per start, with its first and last step and the reason why it
ended.

The batch script of a scheduler adds the line before the job starts, and finally records why it ended. Without such a
script, the job does both.
"""

import contextlib
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplense.files import remove_leftovers, replacing
from deeplense.records import Lines, keep_copy, line_of, lines_in, read_lines, read_record, write_record

ATTEMPTS = "attempts.jsonl"
STACKS = "stacks"
"""Folder of a run with the stack traces of ranks that hung and the errors of ranks that failed."""
NUMBER, FOLDER = "DEEPLENSE_ATTEMPT", "DEEPLENSE_FOLDER"
"""Environment variables in which a batch script passes the number of the attempt and the run folder to the job."""
EXIT_STOPPED = 85
"""Exit code of a job that saved its state on a signal and should be started again."""
EXIT_HUNG = 86
"""Exit code of a rank that made no step for too long."""
EXIT_DISK_FULL = 87
"""Exit code of a job that could not write because the disk was full."""
EXIT_READ_ONLY = 88
"""Exit code of a job that could not write because the file system was read-only."""
EXIT_REFUSED = 2
"""Exit code of a command with invalid settings or data: it must not be started again unchanged."""
DIVERGED = "diverged"
"""Start of the reason of an attempt that ended because values were not finite: it must not be started again unchanged.
"""
KINDS = {
    "attempt": int,
    "job_id": str | None,
    "restart": int | None,
    "nodes": str | None,
    "num_nodes": int | None,
    "host": str | None,
    "pid": int | None,
    "num_processes": int | None,
    "begun": str | None,
    "held_s": int | float | None,
    "waited_s": int | float | None,
    "first_step": int | None,
    "last_step": int | None,
    "ended": str | None,
    "saved": int | None,
    "follows": str | None,
    "ended_at": str | None,
    "reached": int | None,
    "reached_at": str | None,
    "rate": int | float | None,
}
"""Fields of each line and their types. `held_s` is the time after submission or requeue in which the job could not
start, and `waited_s` the time in the queue after that, both in seconds. `saved` is the step of the newest checkpoint at
the end of the attempt. `follows` is the other job from which this one takes over the run. `ended_at` is when the job
itself ended. A launcher adds the last step that is known to have been made, `reached`, when that was, and the steps per
second until then."""
FAILURE = {"rank": int, "time": int | float, "error": str}
"""Fields of the error record of a rank, and their types."""
FROM_OTHERS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "distbackend", "distnetwork")
"""Parts of error messages that a rank gets because another rank has failed."""
TAIL = 2048
"""Bytes at the end of the file of attempts that `newest_attempts` reads."""
EMPTY: dict[str, Any] = dict.fromkeys(KINDS) | {"restart": 0}
UNKNOWN = EMPTY | {"ended": "unknown: its record was damaged"}


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """Return all attempts of a run so far. If a line is damaged, only the number of that attempt is known."""
    return in_order(read_lines(run / ATTEMPTS, KINDS))


def newest_attempts(run: Path) -> list[dict[str, Any]]:
    """Return the newest attempts of a run, at least two if there are so many, without reading the start of a long file.
    If a line is damaged, all attempts are returned."""
    try:
        with (run / ATTEMPTS).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL, 0))
            content = file.read(TAIL)
    except FileNotFoundError:
        return []
    whole = size <= TAIL
    texts = content.removesuffix(b"\n").split(b"\n")[0 if whole else 1 :]
    last = lines_in(b"\n".join(texts[-2:]), KINDS)
    numbers = [attempt["attempt"] for attempt in last.good.values()]
    is_good = not last.bad and len(numbers) == 2 and numbers[1] == numbers[0] + 1
    if is_good and (not whole or numbers[1] == len(texts)):
        return [EMPTY | attempt for attempt in last.good.values()]
    return in_order(lines_in(content, KINDS)) if whole else read_attempts(run)


def in_order(lines: Lines) -> list[dict[str, Any]]:
    """Return the attempts by number. The number is that of the line unless lines were lost; missing attempts are marked
    as unknown."""
    most = len(lines.good) + 2 * len(lines.bad)
    found: dict[int, dict[str, Any]] = {}
    for number, attempt in lines.good.items():
        own = attempt["attempt"]
        found.setdefault(own if 1 <= own <= most else number, EMPTY | attempt)
    last = max([*found, *lines.bad], default=0)
    return [{**found.get(number, UNKNOWN), "attempt": number} for number in range(1, last + 1)]


def attempt_of(run: Path, number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return all attempts, and the one with this number, which is added if its line was lost."""
    attempts = read_attempts(run)
    if number > len(attempts):
        attempts += [UNKNOWN | {"attempt": missing} for missing in range(len(attempts) + 1, number)]
        attempts.append(EMPTY | {"attempt": number})
    return attempts, attempts[number - 1]


def write_attempts(run: Path, attempts: list[dict[str, Any]]) -> None:
    """Write all attempts atomically. If the file has damaged lines, a copy is kept under another name."""
    path = run / ATTEMPTS
    if bad := read_lines(path, KINDS).bad:
        aside = keep_copy(path)
        sys.stderr.write(f"deeplense: lines {bad} of {path} are damaged; a copy of the file is kept as {aside.name}\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(map(line_of, attempts)))


def has_begun(run: Path) -> bool:
    """Whether an attempt has reached its first step or saved a checkpoint."""
    return any(attempt["first_step"] is not None for attempt in read_attempts(run)) or any(
        (run / "checkpoints").glob("step_*/manifest.json")
    )


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, from its name; 0 if there is none."""
    folder = f"{run}/checkpoints"
    try:
        names = [name.removeprefix("step_") for name in os.listdir(folder) if name.startswith("step_")]
    except OSError:
        return 0
    newest = sorted((name for name in names if name.isdecimal()), key=int, reverse=True)
    return next((int(name) for name in newest if os.path.exists(f"{folder}/step_{name}/manifest.json")), 0)


def note_failure(error: str) -> None:
    """Write the error that ends this rank to a file of its own, if a batch script has opened the attempt."""
    folder, number, rank = os.environ.get(FOLDER), os.environ.get(NUMBER), int(os.environ.get("RANK", "0"))
    if not folder or not number:
        return
    path = Path(folder) / STACKS / f"attempt_{number}_failed_{rank}.json"
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_record(path, {"rank": rank, "time": time.time(), "error": error})


def first_failure(run: Path, number: int) -> str | None:
    """Return the error of the rank that failed first in an attempt, with the rank unless it is 0. Errors caused by the
    failure of another rank count only if there are no others."""
    found = []
    for path in (run / STACKS).glob(f"attempt_{number}_failed_*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(read_record(path, FAILURE))
    if not found:
        return None

    def order(failure: dict[str, Any]) -> tuple[bool, float]:
        return any(part in failure["error"].lower() for part in FROM_OTHERS), failure["time"]

    first = min(found, key=order)
    return f"rank {first['rank']}: {first['error']}" if first["rank"] else first["error"]


def job_id() -> str | None:
    """Return the scheduler's id of this job, such as `17`, or `17_3` in a job array; None outside a scheduler."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else os.environ.get("SLURM_JOB_ID")


def num_nodes() -> int | None:
    """Return the number of nodes of this job; None outside a scheduler."""
    number = os.environ.get("SLURM_JOB_NUM_NODES", "")
    return int(number) if number.isdecimal() else None


def open_attempt(run: Path, *, follows: str | None = None, waits: Mapping[str, float | None] | None = None) -> int:
    """Add the line of a new attempt, which may replace another job, and return its number. A previous attempt without
    an end is recorded as killed. `waits` are its `held_s` and `waited_s`, if known."""
    attempts = read_attempts(run)
    if attempts and attempts[-1]["ended"] is None:
        attempts[-1]["ended"] = "killed"
    attempts.append(
        {
            "attempt": len(attempts) + 1,
            "job_id": job_id(),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "nodes": os.environ.get("SLURM_JOB_NODELIST"),
            "num_nodes": num_nodes(),
            "host": platform.node(),
            "pid": None,
            "num_processes": None,
            "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "held_s": None,
            "waited_s": None,
            "first_step": None,
            "last_step": None,
            "ended": None,
            "follows": follows,
        }
        | dict(waits or {})
    )
    write_attempts(run, attempts)
    return len(attempts)


def begin_attempt(run: Path, *, first_step: int, num_processes: int) -> int:
    """Record that the job of an attempt starts to work after this step. Returns the number of the attempt."""
    number = number_given(run) or open_attempt(run)
    attempts, this = attempt_of(run, number)
    for attempt in attempts[: number - 1]:
        if attempt["last_step"] is None:
            attempt["last_step"] = first_step
    this |= {
        "host": platform.node(),
        "pid": os.getpid(),
        "num_processes": num_processes,
        "first_step": first_step,
    }
    write_attempts(run, attempts)
    remove_leftovers(run)
    return number


def number_given(run: Path) -> int | None:
    """Return the number of the attempt that a batch script opened for this run; None without a script."""
    folder, number = os.environ.get(FOLDER), os.environ.get(NUMBER)
    return int(number) if folder and number and Path(folder).resolve() == run.resolve() else None


def settle_finished(run: Path) -> None:
    """Record the end of an attempt that finished the run but was killed before it recorded its end."""
    attempts = read_attempts(run)
    if attempts and attempts[-1]["ended"] is None:
        end_attempt(run, len(attempts), reason="finished")


def end_attempt(
    run: Path,
    number: int,
    *,
    reason: str,
    last_step: int | None = None,
    concluded: bool = False,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Record why an attempt ended, and after which step. `concluded` is set by a launcher, which knows more than the
    job. Its conclusion is final: later records come from a rank left behind on a lost node. `values` are further ones
    to record."""
    attempts, this = attempt_of(run, number)
    if "concluded" in this and not concluded:
        return
    this["ended"] = reason
    this["concluded" if concluded else "ended_at"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if concluded:
        this["saved"] = newest_step(run)
    this |= dict(values or {})
    if last_step is not None:
        this["last_step"] = last_step
    write_attempts(run, attempts)


def add_to_attempt(run: Path, number: int, values: dict[str, Any]) -> None:
    """Add values to the record of an attempt."""
    attempts, this = attempt_of(run, number)
    this |= values
    write_attempts(run, attempts)


def refuse_if_superseded(run: Path, number: int) -> None:
    """Raise ValueError if a later attempt has started: this one runs on a node that the scheduler has given up."""
    latest = len(read_attempts(run))
    if latest > number:
        raise ValueError(f"attempt {latest} of {run} has started; this one, {number}, writes nothing more and ends.")
