"""The batch script calls this module before and after an attempt: `python -m launch.requeue begin | end`.

`begin` closes the previous attempt, whose script may have died with its node, and opens a new one; it prints its
number. `end` records why the attempt ended and prints what the script must do next. All state is in the run folder,
DEEPLENSE_FOLDER. Both can be called again after a failure. On exit codes 2 (refused) and 3 (the run is over), the
script ends; if 3 comes with the word `finished`, jobs that wait for the run wait for this job from then on. On 4 (other
runs must finish first), it returns the job to the queue. On any other error it tries again; on 70 (an error of this
code), only three times.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.runs.attempts import (
    EXIT_REFUSED,
    FOLDER,
    NUMBER,
    attempt_of,
    job_id,
    open_attempt,
    read_attempts,
    settle_finished,
)
from jobs.runs.claim import refuse_if_held
from jobs.runs.folder import is_finished
from launch.copied import refuse_changed, refuse_other_code
from launch.ends import (
    CANCELLED,
    FINISHED,
    OUT_OF_RESTARTS,
    SETTLED,
    Action,
    action,
    is_used_up,
    kind_of,
    why,
)
from launch.judging import Job, conclude, counted, facts_of, first_of, judge, launched, restarts_of, say
from launch.parents import last_job_of, waited_for

EXIT_OVER = 3
"""Exit code if there is nothing to do and no error."""
EXIT_WAITS = 4
"""Exit code if the job must wait for other jobs first; it prints their ids."""
EXIT_AWAY = 75
"""Exit code where a file could not be read or written, which may pass."""
EXIT_ERROR = 70
"""Exit code where this code itself is wrong, which does not pass; the traceback is in the log."""


class Waits(Exception):
    """A run that this one waits for has not finished."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(f"this run waits for {', '.join(map(str, folders))}, not yet finished")
        self.jobs = [job for folder in folders if (job := last_job_of(folder))]


class Over(Exception):
    """There is nothing left to do for this job, without an error; the message says why."""


class Finished(Over):
    """There is nothing left to do because the run is finished."""


def begin(folder: Path, *, log: Path, job: Job, after: Sequence[str] = (), before: Job | None = None) -> int:
    """Open an attempt of this job and return its number.

    Raises ValueError if the last end allows no further attempt, Over if there is nothing to do, Waits if this run waits
    for one that has not finished, and OSError if a file is unavailable.

    Args:
        after: if this is a successor job, the chain of jobs before it, newest first: it replaces the first one if that
            has ended without requesting another attempt, and that one replaced the next.
        before: what Slurm reports about the first job of `after`.
    """
    os.stat(folder)  # A run whose disk is unavailable must not start from scratch on another disk.
    if is_finished(folder):
        settle_finished(folder)
        raise Finished(f"{folder} is finished")
    if launched(folder).get("cancelled"):
        told = f"{folder} was cancelled. Resume it with `deeplense resume {folder}`."
        raise Over(told) if after else ValueError(told)
    attempts = read_attempts(folder)[first_of(folder) :]
    if not attempts and (left := waited_for(folder)):
        raise Waits(left)
    last, ours = (attempts[-1] if attempts else None), job_id()
    refuse_if_held(folder, {ours, *after} - {None})
    if last is not None and last["job_id"] == ours:
        if ours is not None and last["restart"] == restart() and "concluded" not in last:
            return last[
                "attempt"
            ]  # This start of the job has already opened it, but its script did not get the answer.
        settle(folder, last, job, log=log)
    elif any(attempt["job_id"] == ours for attempt in attempts):
        assert last is not None
        raise Over(f"job {last['job_id']} has replaced this job, {ours}")
    elif after:
        refuse_newer(folder, attempts, after)
        take_over(folder, last, before or Job(), after=after[0], log=log)
        # It was submitted while that job ran.
        return open_attempt(folder, follows=after[0], waits=job.waits | {"held_s": None})
    return open_attempt(folder, waits=job.waits)


def restart() -> int:
    """Return how often Slurm has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def refuse_newer(folder: Path, attempts: Sequence[Mapping[str, Any]], after: Sequence[str]) -> None:
    """Raise Over if the run was resubmitted after the jobs in `after` were submitted."""
    newer = launched(folder).get("job_id")
    if newer and newer not in after and not any(attempt["job_id"] in after for attempt in attempts):
        raise Over(f"{folder} was resubmitted as job {newer}")


def take_over(folder: Path, last: Mapping[str, Any] | None, before: Job, *, after: str, log: Path) -> None:
    """Ensure that this job may resume the run of the job `after`: that job has ended, it was not cancelled, and the
    reason of its last attempt is recorded. Raises Over if it may not."""
    again = f"resume the run with `deeplense resume {folder}`"
    if before.lives:
        raise Over(f"job {after}, which this job would succeed, is still pending or running")
    if last is None:
        if before.was_cancelled:
            raise Over(f"job {after} was cancelled; {again}")
        return
    of_last = log.with_name(f"{last['job_id']}_0_log.out")
    told = before if last["job_id"] == after else Job()
    if before.was_cancelled or kind_of(judge(folder, last, told, log=of_last)) == CANCELLED:
        if "concluded" not in last:
            conclude(folder, last["attempt"], CANCELLED)
        raise Over(f"job {after} was cancelled; {again}")
    if not before.state and "concluded" in last and last["job_id"] == after:
        raise Over(f"it is unknown whether job {after} was cancelled while pending; {again}")
    settle(folder, last, told, log=of_last)


def settle(folder: Path, last: Mapping[str, Any], job: Job, *, log: Path) -> None:
    """Record why the previous attempt ended, if its script could not. Raises Over or ValueError if the reason allows no
    further attempt."""
    reason = judge(folder, last, job, log=log)
    if "concluded" not in last:
        conclude(folder, last["attempt"], reason)
    refuse_another(folder, last["attempt"], reason)


def refuse_another(folder: Path, number: int, reason: str) -> None:
    """Raise ValueError if the run must not restart or is out of restarts, and Over if it is finished."""
    kind, again = kind_of(reason), f"Resume it with `deeplense resume {folder}`."
    if kind == FINISHED:
        raise Finished(f"{folder} is finished")
    if kind in SETTLED:
        raise ValueError(f"{folder} has ended: {reason}. {again}")
    if is_used_up(reason, counted(folder, number), restarts_of(folder)):
        conclude(folder, open_attempt(folder), f"{OUT_OF_RESTARTS}: {kind}")
        raise ValueError(f"{folder} ended too often without progress (reason: {kind}). {again}")


def end(folder: Path, number: int, *, log: Path, job: Job, code: int, cause: str | None = None) -> Action:
    """Record why an attempt ended and return what to do next. `cause` is the reason, if it is known without Slurm.
    Raises OSError if the reason cannot be written now."""
    os.stat(folder)
    attempts = read_attempts(folder)
    if len(attempts) > number:
        say(f"deeplense: attempt {len(attempts)} has begun elsewhere; attempt {number} is over")
        return "leave"
    _, attempt = attempt_of(folder, number)
    facts = facts_of(folder, attempt, job, log=log, code=code, cause=cause)
    reason = attempt["ended"] if "concluded" in attempt else why(facts)
    what = action(reason, counted(folder, number), restarts_of(folder), facts=facts)
    if "concluded" not in attempt:
        conclude(folder, number, reason)
    say(f"deeplense: attempt {number} ended: {reason}; {DOING[what]}")
    return what


DOING = {
    "finished": "no further attempt",
    "end": "no further attempt",
    "requeue": "requesting another attempt",
    "leave": "Slurm starts another attempt",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that the batch script passes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("begin", "end"))
    parser.add_argument("--log", type=Path, required=True, help="log of the batch script and of rank 0")
    parser.add_argument("--code_folder", type=Path, help="copy of the code that was made for the run")
    parser.add_argument("--scheduler", default="", help="output of scontrol show job --oneliner")
    parser.add_argument("--history", default="", help="states of all starts of the job, from sacct --duplicates")
    parser.add_argument("--after", help="for a successor job: the jobs before it, newest first, separated by dots")
    parser.add_argument("--after_scheduler", default="", help="output of scontrol for the first job of --after")
    parser.add_argument("--after_history", default="", help="output of sacct for the first job of --after")
    parser.add_argument("--code", type=int, default=0, help="exit code of srun")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer a call of the batch script."""
    given = parser().parse_args(arguments)
    folder, job = Path(os.environ[FOLDER]), Job(given.scheduler, given.history)
    try:
        if given.code_folder is not None:
            refuse_other_code(given.code_folder)
        if given.what == "begin":
            if given.code_folder is not None:
                refuse_changed(given.code_folder)
            before = Job(given.after_scheduler, given.after_history)
            after = given.after.split(".") if given.after else ()
            print(begin(folder, log=given.log, job=job, after=after, before=before), flush=True)
        else:
            print(end(folder, int(os.environ[NUMBER]), log=given.log, job=job, code=given.code), flush=True)
    except Over as over:
        say(f"deeplense: {over}")
        if isinstance(over, Finished):
            print("finished", flush=True)
        return EXIT_OVER
    except Waits as waits:
        say(f"deeplense: {waits}")
        print(*waits.jobs, flush=True)
        return EXIT_WAITS
    except ValueError as error:
        say(f"deeplense: {error}")
        return EXIT_REFUSED
    except (OSError, ImportError, MemoryError) as error:
        say(f"deeplense: {str(error) or 'out of memory'}")
        return EXIT_AWAY
    except Exception:
        traceback.print_exc()
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
