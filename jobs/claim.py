"""The claim of one process on a run folder, for as long as it trains there: nobody else does, and what was refused
leaves no folder behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplense.files import remove
from deeplense.locks import Held, Lock, in_words, is_alive, machine, read_holder
from jobs.attempts import ATTEMPTS, job_id, number_given, read_attempts
from jobs.progress import say
from jobs.runs import CONFIG, ENVIRONMENT, LOCK, check_run, open_run

WAYS = (
    "Wait for it, or end it; --take_over 1 goes on regardless, and what it has done since its last checkpoint is lost"
)


class Claim:
    """Context manager of a run folder. It is checked first, without a trace; opened, it is locked. In the end the lock
    goes, and with it what was made for an attempt that never began."""

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
        """Raise ValueError where the run cannot begin or go on in its folder, as far as that is known at once."""
        check_run(self.run, self.settings)
        refuse_if_trained(self.run, take_over=self.take_over)

    def open(self) -> None:
        """Lock the folder, and make it a run of these settings. Raises ValueError where it is another process's."""
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
        """Whether a holder has to give way, though it may live: to a later attempt of its own job, and where the user
        says so."""
        return self.take_over or is_followed(holder, number_given(self.run))

    def remove_made(self) -> None:
        """Remove the records and folders that were made, as far as nothing else is in them."""
        for path in sorted(self.made, key=lambda path: len(path.parts), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                remove(path)


def facts(run: Path) -> dict[str, Any]:
    """What a lock says of the attempt that has it."""
    return {"attempt": number_given(run) or len(read_attempts(run)) + 1, "job_id": job_id()}


def is_followed(holder: Mapping[str, Any], number: int | None) -> bool:
    """Whether a launcher has begun a later attempt, of this number, of the job that holds a run."""
    attempt, job = holder.get("attempt"), holder.get("job_id")
    return number is not None and isinstance(attempt, int) and number > attempt and job is not None and job == job_id()


def refuse_if_trained(run: Path, *, take_over: bool = False) -> None:
    """Raise ValueError where a process of this machine trains a run."""
    path = run / LOCK
    if take_over or not path.exists():
        return
    holder = read_holder(path)
    if holder.get("machine") == machine() and not is_followed(holder, number_given(run)) and is_alive(path, holder):
        raise ValueError(refusal(run, holder))


def refusal(run: Path, holder: Mapping[str, Any]) -> str:
    """Why a run is not to be trained now, and what to do."""
    attempt, job = holder.get("attempt"), holder.get("job_id")
    of = f" (attempt {attempt}{f' of job {job}' if job else ''})" if attempt else ""
    return f"{run} is being trained by {in_words(holder)}{of}. {WAYS}."
