"""Why an attempt ended, and whether there is another: from what the scheduler, the job and the log say. Pure functions.

Slurm tells the cases apart by `scontrol show job`, seen while the batch script still runs, by the line that its daemon
leaves in the log when it ends a job, and, where there is accounting, by `sacct --duplicates`. (Slurm 22.05; measured.)
"""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.attempts import DIVERGED, EXIT_DISK_FULL, EXIT_HUNG, EXIT_REFUSED, EXIT_STOPPED

Action = Literal["end", "requeue", "leave"]
"""What the batch script does: nothing more, ask for another attempt, or nothing since Slurm starts one by itself."""

FINISHED, CANCELLED, REFUSED, OUT_OF_RESTARTS = "finished", "cancelled", "refused", "out of restarts"
TIME_LIMIT, NODE_LOST, REQUEUED, STOPPED = "time limit", "node lost", "requeued", "stopped"
PREEMPTED, PREEMPTED_AT_ONCE = "preempted, with grace", "preempted, without grace"
CRASH, DISK_FULL, HANG = "crash", "disk full", "hang"
CUT_SHORT = "a file that was mapped is gone or cut short; `deeplense verify` of the data set names it"
"""What a bus error means where shards are mapped into memory."""

DEFAULT_RESTARTS: Mapping[str, int] = {
    TIME_LIMIT: 1000,
    "preempted": 1000,
    REQUEUED: 1000,
    STOPPED: 1000,
    NODE_LOST: 50,
    CRASH: 3,
    DISK_FULL: 3,
    HANG: 3,
}
"""How often a run is started again after each kind of end."""

LOG_CAUSES = {
    "PREEMPTION": PREEMPTED_AT_ONCE,
    "JOB REQUEUE": REQUEUED,
    "NODE FAILURE": NODE_LOST,
    "TIME LIMIT": TIME_LIMIT,
    None: CANCELLED,
}
ACCOUNTED = {
    "PREEMPTED": PREEMPTED_AT_ONCE,
    "REQUEUED": REQUEUED,
    "NODE_FAIL": NODE_LOST,
    "TIMEOUT": TIME_LIMIT,
    "CANCELLED": CANCELLED,
}
BY_SLURM = (PREEMPTED_AT_ONCE, REQUEUED, NODE_LOST)
NUM_TASKS_TOLD = 4
SETTLED = (FINISHED, CANCELLED, REFUSED, DIVERGED, OUT_OF_RESTARTS)


@dataclass(frozen=True)
class Facts:
    """What is known of an attempt that ends or has ended, of job `job_id`, the `restart`-th time that Slurm started it.

    Args:
        own: what the job said of itself, if it could.
        code: exit code of srun; None where the batch script did not see the end.
        hung: a rank told that it hangs.
        scheduler: fields of `scontrol show job`.
        cause: how Slurm's line in the log says that it ended the job; None where there is no line.
        accounted: state of this start of the job in the accounting.
        tasks: which tasks srun saw fail, and how.
    """

    restart: int = 0
    own: str | None = None
    code: int | None = None
    hung: bool = False
    scheduler: Mapping[str, str] | None = None
    cause: str | None = None
    accounted: str | None = None
    tasks: str | None = None


def why(facts: Facts) -> str:
    """The reason, `KIND` or `KIND: detail`."""
    own = facts.own or ""
    if own == FINISHED or (facts.code == 0 and not own.startswith(STOPPED)):
        return FINISHED
    return by_scheduler(facts) or by_job(facts) or by_absence(facts)


def by_scheduler(facts: Facts) -> str | None:
    """The reason where Slurm ended the attempt, or told it to end."""
    fields = facts.scheduler or {}
    if facts.cause is not None:
        return facts.cause
    if facts.accounted in ACCOUNTED:
        return ACCOUNTED[facts.accounted]
    if int(fields.get("Restarts", 0)) > facts.restart:
        # Slurm has given the job to other nodes without a word to this one: it thinks that this node is gone.
        return NODE_LOST
    if fields.get("JobState") in ("COMPLETING", "CANCELLED"):
        return CANCELLED
    if fields.get("PreemptTime", "None") not in ("None", "Unknown") and not facts.hung:
        return PREEMPTED
    return None


def by_job(facts: Facts) -> str | None:
    """The reason where the job ended by itself."""
    own = facts.own or ""
    if facts.hung or facts.code == EXIT_HUNG:
        return HANG
    if own.startswith(STOPPED) or facts.code == EXIT_STOPPED:
        return TIME_LIMIT if own.endswith("SIGUSR2") else own or STOPPED
    if facts.code == EXIT_DISK_FULL or "No space left" in own or "quota exceeded" in own:
        return DISK_FULL
    if own.startswith(DIVERGED):
        return own
    if facts.code == EXIT_REFUSED:
        return f"{REFUSED}: {own.removeprefix('error: ')}" if own else REFUSED
    if facts.code is None:
        return None
    bus_error = "Bus error" in (facts.tasks or "") or facts.code == 128 + signal.SIGBUS
    details = [
        facts.tasks,
        own.removeprefix("error: ") if own.startswith("error") else None,
        CUT_SHORT if bus_error else None,
    ]
    return f"{CRASH}: {'; '.join(filter(None, details)) or f'exit code {facts.code}'}"


def by_absence(facts: Facts) -> str:
    """The reason where nobody who could tell it lived on, neither the batch script nor Slurm's daemon beside it."""
    return NODE_LOST if facts.scheduler else "killed"


def kind_of(reason: str) -> str:
    """The kind of end for which a budget counts."""
    return re.split(r"[:,]| by ", reason, maxsplit=1)[0]


def action(reason: str, earlier: Sequence[str], restarts: Mapping[str, int], *, facts: Facts) -> Action:
    """What follows an end, the ends of `earlier` attempts being known.

    Each kind of end has its own budget, and one that is used up ends the run.
    """
    kind = kind_of(reason)
    if kind in SETTLED or is_used_up(reason, earlier, restarts):
        return "end"
    restarted = int((facts.scheduler or {}).get("Restarts", 0)) > facts.restart
    if reason == PREEMPTED_AT_ONCE and facts.scheduler and not restarted:
        # PreemptMode=CANCEL: Slurm starts no other attempt by itself, but takes the request for one.
        return "requeue"
    return "leave" if reason in BY_SLURM and (restarted or facts.cause is not None) else "requeue"


def is_used_up(reason: str, earlier: Sequence[str], restarts: Mapping[str, int]) -> bool:
    """Whether this end is one more than the budget of its kind, if it has one."""
    kind, allowed = kind_of(reason), {**DEFAULT_RESTARTS, **restarts}
    return kind in allowed and sum(kind_of(other) == kind for other in earlier) >= allowed[kind]


def parse_fields(text: str) -> dict[str, str]:
    """The fields of `scontrol show --oneliner`, the first of each name."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", text):
        fields.setdefault(name, value)
    return fields


def cause_in_log(text: str, job: Mapping[str, str] | None = None) -> str | None:
    """The reason that Slurm's daemon gave in the log of an attempt; None where it did not end the job."""
    lines = re.findall(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+?))?(?:,| \*\*\*)", text)
    return LOG_CAUSES.get(lines[-1] or None, f"{CANCELLED}: {lines[-1].lower()}") if lines else None


def failed_tasks(text: str) -> str | None:
    """Which tasks srun saw fail in the log of an attempt, and how, such as `task 3 on node2: Killed`; in no order."""
    lines = re.findall(r"^srun: error: (\S+): (tasks? [\d,-]+): (.+)$", text, re.MULTILINE)
    return ", ".join(f"{task} on {node}: {how}" for node, task, how in lines[:NUM_TASKS_TOLD]) or None


def log_of_attempt(text: str, number: int) -> str:
    """The part of a log that belongs to one attempt; each begins with `begin_line`."""
    after = text.rpartition(begin_line(number))[2]
    return re.split(r"^deeplense: attempt \d+ begins$", after, maxsplit=1, flags=re.MULTILINE)[0]


def begin_line(number: int) -> str:
    """What the log says when an attempt begins."""
    return f"deeplense: attempt {number} begins"


def accounted_state(rows: str, restart: int) -> str | None:
    """The state of the restart-th start of a job in the output of `sacct --duplicates`, one row each, oldest first."""
    states = [row.split("|")[0].split(" ")[0] for row in rows.splitlines() if row.strip()]
    return states[restart] if restart < len(states) else None


def summary(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ends of attempts, those that are known."""
    return [attempt["ended"] for attempt in attempts if attempt["ended"]]
