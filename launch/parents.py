"""The runs that a run waits for, its parents, from the records in their folders.

The batch script imports this before each attempt, so it needs neither Slurm nor the parser of settings.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deeplense.records import read_record
from jobs.runs.attempts import read_attempts
from jobs.runs.folder import LAUNCH, is_finished
from launch.ends import FINISHED

KINDS = {"job_id": str | None, "attempts_before": int | None, "after": list | None, "stage": list | None}
"""Keys of the record of a submission that are read here, with their types."""


def read_launch(folder: Path) -> dict[str, Any]:
    """Return the record of the submission of a run; empty if there is none or it is damaged."""
    try:
        return read_record(folder / LAUNCH, KINDS)
    except (ValueError, OSError):
        return {}


def parents_of(folder: Path) -> tuple[Path, ...]:
    """Return the folders of the runs that a run was submitted to wait for."""
    return tuple(Path(str(parent)) for parent in read_launch(folder).get("after") or ())


def is_done(folder: Path) -> bool:
    """Whether a run has finished: by the record of a training, or by the last attempt since its submission."""
    if is_finished(folder):
        return True
    attempts = read_attempts(folder)[read_launch(folder).get("attempts_before") or 0 :]
    return bool(attempts) and attempts[-1]["ended"] == FINISHED


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """Return those of these runs that have not finished. A folder that does not exist (any more) is left out."""
    return [folder for folder in folders if folder.is_dir() and not is_done(folder)]


def waited_for(folder: Path) -> list[Path]:
    """Return the parents of a run that have not finished."""
    return unfinished(parents_of(folder))


def ancestors(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield these runs, their parents, the parents of these, and so on, each once."""
    seen: set[Path] = set()
    left = list(folders)
    while left:
        folder = left.pop()
        if folder not in seen:
            seen.add(folder)
            yield folder
            left += parents_of(folder)


def last_job_of(folder: Path) -> str | None:
    """Return the id of the job that last had a run, as far as it is recorded."""
    told = read_launch(folder)
    attempts = read_attempts(folder)[told.get("attempts_before") or 0 :]
    return next((attempt["job_id"] for attempt in reversed(attempts) if attempt["job_id"]), told.get("job_id"))


def jobs_of_run(folder: Path) -> list[str]:
    """Return the ids of all jobs that have or had a run, as far as they are recorded."""
    found = [attempt["job_id"] for attempt in read_attempts(folder)] + [read_launch(folder).get("job_id")]
    return [job_id for job_id in dict.fromkeys(found) if job_id]
