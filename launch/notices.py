"""Notices: a command of the user's is called when a run finishes, fails for good, or stands still.

Each event is told once. Whoever is first to create its file in RUN/notices calls the command: the batch script (it asks
`python -m launch.notices`, since Python may run in a container), the supervisor of a run on this machine, or `deeplense
status --watch` and `--notices`. Beside it, a log has the output of the command, and its exit code in the last line.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplense.locks import create
from deeplense.records import line_of, read_record
from jobs.runs.attempts import FOLDER, newest_attempts
from jobs.runs.folder import LAUNCH, NOTICES, is_finished
from launch.ends import CANCELLED, FINISHED, HANG, SETTLED, is_used_up, kind_of
from launch.findings import printable
from launch.judging import counted, first_of, launched, restarts_of

DONE, FAILED, STILL = "finished", "failed", "standing still"
"""The events, as they are passed to the command."""
SECONDS = 15.0
"""Time limit of the command."""
LONGEST_WHY = 500
KINDS = {"event": str, "why": str, "time": str}


@dataclass(frozen=True)
class Notice:
    """An event of a run: its name, why, and the key by which it is told once."""

    event: str
    why: str
    key: str


def due(folder: Path) -> Notice | None:
    """Return the event that the end of the last attempt is, or None: the run has finished, it does not restart, or a
    process made no step for too long. Raises OSError if the records cannot be read now."""
    attempts = newest_attempts(folder)
    last = attempts[-1] if attempts else None
    if last is None:
        return None
    number, reason = last["attempt"], last["ended"] or ""
    kind, why = kind_of(reason), f"attempt {number} ended: {reason}"
    is_of_now = "concluded" in last and number > first_of(folder)
    if is_finished(folder) or (is_of_now and kind == FINISHED):
        return Notice(DONE, f"finished in attempt {number}", f"{number}_{DONE}")
    if not is_of_now:
        return None
    if kind == CANCELLED and launched(folder).get("cancelled"):
        return None  # by `deeplense cancel`, so the user knows
    if kind in SETTLED:
        return Notice(FAILED, why, f"{number}_failed")
    if is_used_up(reason, counted(folder, number), restarts_of(folder)):
        return Notice(FAILED, f"{why}; too often without progress", f"{number}_failed")
    return Notice(STILL, f"{why}; it is started again", f"{number}_hang") if kind == HANG else None


def standing_still(folder: Path, why: str) -> Notice:
    """Return the event that a run stands still because its job cannot start, or because nobody continues it."""
    attempts = newest_attempts(folder)
    return Notice(STILL, why, f"{attempts[-1]['attempt'] if attempts else 0}_still")


def claim(folder: Path, notice: Notice) -> Path | None:
    """Claim an event for this process; return the log of its command, or None if another has claimed it."""
    path = folder / NOTICES / f"{notice.key}.json"
    path.parent.mkdir(exist_ok=True)
    values = {"event": notice.event, "why": plain(notice.why), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    return path.with_suffix(".log") if create(path, line_of(values)) else None


def plain(text: str) -> str:
    """Return a text as one short line of printable characters."""
    line = printable(text)
    return line if len(line) <= LONGEST_WHY else f"{line[:LONGEST_WHY]}..."


def command_of(folder: Path) -> list[str]:
    """Return the command that a run was submitted with; empty if there is none."""
    try:
        cluster: Mapping[str, Any] = read_record(folder / LAUNCH, {"cluster": dict})["cluster"]
        return shlex.split(cluster.get("notify") or "")
    except (ValueError, OSError, AttributeError):
        return []


def send(folder: Path, notice: Notice | None) -> None:
    """Call the command of a run with an event, unless it has been told. Errors are only recorded: a notice never ends a
    run. The run must be this user's, as its command is run."""
    with contextlib.suppress(OSError, ValueError):
        command = command_of(folder)
        log = claim(folder, notice) if notice and command else None
        if notice and log:
            call([*command, str(folder), notice.event, plain(notice.why)], folder, notice, log)


def send_due(folder: Path) -> None:
    """Call the command of a run if the end of its last attempt is an event."""
    with contextlib.suppress(OSError, ValueError):
        send(folder, due(folder))


def call(words: Sequence[str], folder: Path, notice: Notice, log: Path) -> None:
    """Call a command with a time limit, with its output and exit code in a log."""
    variables = {FOLDER: str(folder), "DEEPLENSE_EVENT": notice.event, "DEEPLENSE_WHY": plain(notice.why)}
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | variables,
                start_new_session=True,
            )
        except OSError as error:
            file.write(f"{error}\nexit code 127\n")
            return
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = 124
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with log.open("a") as file:
        file.write(f"exit code {code}\n")


def undelivered(folder: Path) -> Iterator[str]:
    """Yield what went wrong with the newest notice of a run, if anything."""
    logs = sorted((folder / NOTICES).glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in logs[-1:]:
        with contextlib.suppress(OSError, ValueError):
            told = read_record(path, KINDS)
            end = end_of(path.with_suffix(".log"))
            is_young = time.time() - path.stat().st_mtime < 4 * SECONDS
            if end != "exit code 0" and not (end is None and is_young):
                how = f"ended with {end}" if end else "was cut off"
                log = path.with_suffix(".log")
                yield f"the notice {told['event']!r} may not have arrived: its command {how}, see {log}"


def end_of(log: Path) -> str | None:
    """Return the last line of a log if it has the exit code of the command, else None."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return lines[-1] if lines and lines[-1].startswith("exit code ") else None


def main() -> int:
    """Print the event that is due, for the batch script: the event, the log to write, and why, separated by tabs."""
    folder = Path(os.environ.get(FOLDER, ""))
    with contextlib.suppress(OSError, ValueError):
        notice = due(folder)
        log = claim(folder, notice) if notice else None
        if notice and log:
            print(notice.event, log, plain(notice.why), sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
