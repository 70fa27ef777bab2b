"""Run several runs on this machine one after another: `python -m launch.queue RUN ...` starts each when the previous
one has ended and the runs that it waits for have finished.

A run is queued as long as its `launch.json` names this process; removing this entry cancels it. No state of a queued
run is in memory.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.imports import PYTHON
from jobs.runs.folder import FINISHED
from launch import status
from launch.environment import for_here
from launch.here import detached, start_run
from launch.parents import waited_for
from launch.record import again, keep, queue_of, told_in

SECONDS_BETWEEN_LOOKS = 0.5


def start(folders: Sequence[Path], *, log: Path, environment: Mapping[str, str]) -> None:
    """Start the process that executes these submitted runs in order; return once all of them are queued."""

    def begin() -> str:
        with log.open("a") as file:
            words = [*PYTHON, "-m", "launch.queue", *map(str, folders)]
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=file, env={**for_here(os.environ), **environment}, text=True
            )
        assert process.stdout
        return process.stdout.readline()

    detached(begin)


def work_off(folders: Sequence[Path]) -> None:
    """Start each run that is still queued for this process, and wait for its end; of those that wait for no other run,
    the first."""
    left = list(folders)
    while left:
        folder = next((run for run in left if queue_of(run) != os.getpid() or not waited_for(run)), None)
        if folder is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        left.remove(folder)
        if queue_of(folder) != os.getpid() or (folder / FINISHED).exists():
            continue
        try:
            submission = again(folder)
            start_run(replace(submission, logs=Path(told_in(folder)["logs"])))
        except (ValueError, OSError) as error:
            with contextlib.suppress(ValueError, OSError):
                keep(folder, told_in(folder) | {"queue": None})
            print(f"{folder} could not be started: {error}", file=sys.stderr, flush=True)
        while status.is_active(folder):
            time.sleep(SECONDS_BETWEEN_LOOKS)


def main(words: Sequence[str]) -> int:
    """Queue the runs for this process, print its id, and execute them."""
    folders = [Path(word) for word in words]
    for folder in folders:
        keep(folder, told_in(folder) | {"queue": os.getpid()})
    print(os.getpid(), flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work_off(folders)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
