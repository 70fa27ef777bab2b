"""Exclusive lock of a run folder: only one process trains there, and a refused attempt leaves no folder behind."""

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deeplense.files import remove
from deeplense.locks import Held, Lock, in_words, is_alive, machine, read_holder
from jobs.console import say
from jobs.runs.attempts import ATTEMPTS, job_id, number_given, read_attempts
from jobs.runs.folder import ENVIRONMENT, LOCK, check_run, open_run
from jobs.runs.stored import CONFIG

WAYS = "Wait for it, or stop it; --take_over 1 trains anyway, and its work since its last checkpoint is lost"


class Claim:
    """Context manager for exclusive use of a run folder. `check` checks it without writing, `open` locks it. On exit
    the lock is released, and everything that was created for an attempt that never began is removed."""

    def __init__(self, settings: Any, *, take_over: bool = False) -> None:
        self.settings, self.run, self.take_over = settings, settings.run, take_over
        self.lock: Lock | None = None
        self.made: list[Path] = []

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        if self.lock is not None:
            self.lock.release()
            if not (self.run / ATTEMPTS).exists():
                self.remove_made()

    def check(self) -> None:
        """Raise ValueError if the run cannot be started or resumed in its folder, as far as this can be checked without
        the lock."""
        check_run(self.run, self.settings)
        refuse_if_trained(self.run, take_over=self.take_over)

    def open(self) -> None:
        """Lock the folder and set it up as a run of these settings. Raises ValueError if another process holds it."""
        self.made = [path for path in [*self.run.parents, self.run] if not path.exists()]
        self.made += [self.run / name for name in (CONFIG, ENVIRONMENT) if not (self.run / name).exists()]
        self.run.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.run / LOCK)
        try:
            lock.take(facts(self.run), may_replace=self.may_replace, tell=say)
        except Held as held:
            self.remove_made()
            raise ValueError(refusal(self.run, held.holder)) from held
        self.lock = lock
        open_run(self.run, self.settings)

    def may_replace(self, holder: Mapping[str, Any]) -> bool:
        """Whether the lock may be taken from a holder that may still live: for a later attempt of the same job, or on
        request of the user."""
        return self.take_over or is_followed(self.run, holder, number_given(self.run))

    def remove_made(self) -> None:
        """Remove the records and folders that were created, if nothing else is in them."""
        for path in sorted(self.made, key=lambda path: len(path.parts), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                remove(path)


def facts(run: Path) -> dict[str, Any]:
    """Return the details of the current attempt that are stored in the lock."""
    return {"attempt": number_given(run) or len(read_attempts(run)) + 1, "job_id": job_id()}


def is_followed(run: Path, holder: Mapping[str, Any], number: int | None) -> bool:
    """Whether a launcher has started a later attempt, with this number, of the job that holds the run, or of a job that
    replaces it."""
    attempt, job = holder.get("attempt"), holder.get("job_id")
    if number is None or not isinstance(attempt, int) or number <= attempt or job is None:
        return False
    since = read_attempts(run)[attempt:number]
    return job == job_id() or job in [later.get("follows") for later in since]


def refuse_if_trained(run: Path, *, take_over: bool = False) -> None:
    """Raise ValueError if a process on this machine is training the run."""
    path = run / LOCK
    if take_over or not path.exists():
        return
    holder = read_holder(path)
    followed = is_followed(run, holder, number_given(run))
    if holder.get("machine") == machine() and not followed and is_alive(path, holder):
        raise ValueError(refusal(run, holder))


def refuse_if_held(run: Path, jobs: Collection[str | None]) -> None:
    """Raise ValueError if a process of any other job is training the run, on this machine or another. A new attempt
    would be unable to train and would stop the other from writing. The check may take as long as a lease."""
    path = run / LOCK
    with contextlib.suppress(FileNotFoundError):
        holder = read_holder(path)
        ours = holder.get("job_id") is not None and holder.get("job_id") in jobs
        if path.exists() and not ours and is_alive(path, holder, say):
            raise ValueError(refusal(run, holder))


def refusal(run: Path, holder: Mapping[str, Any]) -> str:
    """Return the message that the run is in use, and what to do."""
    attempt, job = holder.get("attempt"), holder.get("job_id")
    of = f" (attempt {attempt}{f' of job {job}' if job else ''})" if attempt else ""
    return f"{run} is being trained by {in_words(holder)}{of}. {WAYS}."
