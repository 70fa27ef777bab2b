"""The logs of runs, shown while they grow."""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launch.record import Launched, launched
from launch.status import states

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_PER_QUESTION = 10


def log_of(run: Launched, rank: int) -> Path:
    """Return the log of a rank; that of rank 0 also contains the output of the batch script."""
    return run.logs / f"{run.job_id}_{rank}_log.out"


def follow(run: Launched, rank: int) -> Iterator[str]:
    """Yield new text of a log until the run has left the queue. It continues if the scheduler does not answer for a
    while."""
    place, ending, reported = 0, False, False
    for look in itertools.count():
        # The name of the log is known only after a queued run has started.
        run = run if run.job_id else launched(run.folder)
        path = log_of(run, rank)
        if path.exists():
            with path.open(errors="replace") as file:
                file.seek(place)
                yield file.read()
                place = file.tell()
        if ending:
            return
        # Query Slurm less often than the file.
        if run.local or look % LOOKS_PER_QUESTION == 0:
            ending, problem = has_left(run)
            if problem and not reported:
                note = f"note: {problem}. Still following the log; Ctrl-C ends this command but not the run."
                print(note, file=sys.stderr, flush=True)
            reported = bool(problem)
        time.sleep(0 if ending else SECONDS_BETWEEN_LOOKS)


def has_left(run: Launched) -> tuple[bool, str]:
    """Return whether a run has left the queue, and the error if the scheduler does not answer."""
    try:
        return run.folder not in states([run]), ""
    except ValueError as error:
        return False, str(error).rstrip(".")
