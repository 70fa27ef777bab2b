"""What the batch script asks before and after an attempt: `python -m launch.requeue begin | end`.

Begin closes the attempt before, whose script may have died with its node, and opens one; it prints the number. End
writes why the attempt ended and prints what the script shall do. All state is in the folder of the run,
DEEPLENSE_FOLDER.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplense.records import read_record
from jobs.attempts import FOLDER, NUMBER, end_attempt, job_id, open_attempt, read_attempts
from jobs.runs import LAUNCH
from jobs.watchdog import hung
from launch.ends import (
    OUT_OF_RESTARTS,
    SETTLED,
    Action,
    Facts,
    accounted_state,
    action,
    cause_in_log,
    failed_tasks,
    is_used_up,
    kind_of,
    log_of_attempt,
    parse_fields,
    summary,
    why,
)

KINDS = {"attempts_before": int | None, "restarts": dict | None}
"""What is asked of the record of a submission, and of which type."""


def begin(folder: Path, *, log: Path, scheduler: str, history: str) -> int:
    """Open an attempt; returns its number. Raises ValueError where the last end allows no other."""
    attempts = read_attempts(folder)[launched(folder).get("attempts_before", 0) :]
    if attempts and attempts[-1]["job_id"] == job_id():
        last = attempts[-1]
        reason = last["ended"] if "concluded" in last else conclude_later(folder, last, log, scheduler, history)
        refuse_another(folder, last["attempt"], reason)
    return open_attempt(folder)


def conclude_later(folder: Path, attempt: Mapping[str, Any], log: Path, scheduler: str, history: str) -> str:
    """Write why an attempt ended whose script could not; returns the reason."""
    facts = Facts(
        restart=attempt["restart"],
        own=attempt["ended"],
        hung=hung(folder, attempt["attempt"]),
        scheduler=parse_fields(scheduler),
        cause=cause_in_log(log_of_attempt(read_text(log), attempt["attempt"])),
        accounted=accounted_state(history, attempt["restart"]),
    )
    reason = why(facts)
    conclude(folder, attempt["attempt"], reason)
    return reason


def refuse_another(folder: Path, number: int, reason: str) -> None:
    """Raise ValueError where Slurm starts again what has ended for good, or too often."""
    kind, again = kind_of(reason), f"`deeplense resume {folder}` starts it again."
    if kind in SETTLED:
        raise ValueError(f"{folder} has ended: {reason}. {again}")
    if is_used_up(reason, counted(folder, number), restarts_of(folder)):
        conclude(folder, open_attempt(folder), f"{OUT_OF_RESTARTS}: {kind}")
        raise ValueError(f"{folder} ended too often by: {kind}. {again}")


def end(folder: Path, number: int, *, log: Path, scheduler: str, code: int, cause: str | None = None) -> Action:
    """Write why an attempt ended; returns what is to be done. `cause` is given where it is known without Slurm."""
    attempts = read_attempts(folder)
    if len(attempts) > number:
        say(f"deeplense: attempt {len(attempts)} has begun elsewhere; this one, {number}, is over")
        return "leave"
    attempt = attempts[-1]
    text = log_of_attempt(read_text(log), number)
    facts = Facts(
        restart=attempt["restart"],
        own=attempt["ended"],
        code=code,
        hung=hung(folder, number),
        scheduler=parse_fields(scheduler),
        cause=cause or cause_in_log(text),
        tasks=failed_tasks(text),
    )
    reason = why(facts)
    what = action(reason, counted(folder, number), restarts_of(folder), facts=facts)
    conclude(folder, number, reason)
    say(f"deeplense: attempt {number} ended: {reason}; {DOING[what]}")
    return what


DOING = {"end": "no further attempt", "requeue": "asking for another attempt", "leave": "Slurm starts another attempt"}


def conclude(folder: Path, number: int, reason: str) -> None:
    """Write the reason as the launcher sees it; a full disk does not keep the run from another attempt."""
    try:
        end_attempt(folder, number, reason=reason, concluded=True)
    except OSError as error:
        say(f"deeplense: could not write why attempt {number} ended ({reason}): {error}")


def counted(folder: Path, number: int) -> list[str]:
    """The ends that count for the budgets: of the attempts since the last submission, before this one."""
    return summary(read_attempts(folder)[launched(folder).get("attempts_before", 0) : number - 1])


def restarts_of(folder: Path) -> Mapping[str, int]:
    """The budgets that were asked for."""
    return launched(folder).get("restarts", {})


def launched(folder: Path) -> dict[str, Any]:
    """How the run was submitted; nothing where that cannot be read, which must not keep a run from going on."""
    path = folder / LAUNCH
    try:
        return read_record(path, KINDS) if path.exists() else {}
    except (ValueError, OSError) as error:
        say(f"deeplense: {error}")
        return {}


def read_text(path: Path) -> str:
    """A log, as far as it can be read."""
    return path.read_text(errors="replace") if path.exists() else ""


def say(message: str) -> None:
    """One line to the log."""
    sys.stderr.write(f"{message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the batch script."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("begin", "end"))
    parser.add_argument("--log", type=Path, required=True, help="log of the batch script and of rank 0")
    parser.add_argument("--scheduler", default="", help="output of scontrol show job --oneliner")
    parser.add_argument("--history", default="", help="states of all starts of the job, from sacct --duplicates")
    parser.add_argument("--code", type=int, default=0, help="exit code of srun")
    given = parser.parse_args(arguments)
    folder = Path(os.environ[FOLDER])
    try:
        if given.what == "begin":
            print(begin(folder, log=given.log, scheduler=given.scheduler, history=given.history))
        else:
            number = int(os.environ[NUMBER])
            print(end(folder, number, log=given.log, scheduler=given.scheduler, code=given.code))
    except ValueError as error:
        say(f"deeplense: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
