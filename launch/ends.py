"""Decide why an attempt ended, and whether to start another, from the scheduler, the job and the log. Pure functions.

Three sources in Slurm distinguish the cases: `scontrol show job` while the batch script still runs, the line that its
daemon writes to the log when it ends a job, and, with accounting, `sacct --duplicates`. (Measured with Slurm 22.05,
24.11 and 26.05.)
"""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from jobs.runs.attempts import DIVERGED, EXIT_DISK_FULL, EXIT_HUNG, EXIT_READ_ONLY, EXIT_REFUSED, EXIT_STOPPED

Action = Literal["finished", "end", "requeue", "leave"]
"""What the batch script does next. `finished`, `end`: nothing, as the run is finished or must not restart; `requeue`:
request another attempt; `leave`: nothing, as Slurm starts another attempt by itself."""

FINISHED, CANCELLED, REFUSED, OUT_OF_RESTARTS = "finished", "cancelled", "refused", "out of restarts"
TIME_LIMIT, NODE_LOST, REQUEUED, STOPPED = "time limit", "node lost", "requeued", "stopped"
PREEMPTED, PREEMPTED_AT_ONCE = "preempted, with grace", "preempted, without grace"
CRASH, DISK_FULL, READ_ONLY, HANG = "crash", "disk full", "disk read-only", "hang"
KILLED = "killed"
"""Reason of an attempt that ended for an unknown reason."""
CUT_SHORT = "a file that was mapped is gone or cut short; `deeplense verify` of the data set names it"
"""Likely cause of a bus error, as shards are mapped into memory."""

DEFAULT_RESTARTS: Mapping[str, int] = {
    TIME_LIMIT: 1000,
    "preempted": 1000,
    REQUEUED: 1000,
    STOPPED: 1000,
    NODE_LOST: 50,
    CRASH: 3,
    DISK_FULL: 3,
    READ_ONLY: 3,
    HANG: 3,
}
"""Maximum number of restarts per reason, counted since the run last made progress."""

LOG_CAUSES = {
    "PREEMPTION": PREEMPTED_AT_ONCE,
    "JOB REQUEUE": REQUEUED,
    "NODE FAILURE": NODE_LOST,
    "TIME LIMIT": TIME_LIMIT,
    "": CANCELLED,
}
ACCOUNTED = {
    "PREEMPTED": PREEMPTED_AT_ONCE,
    "REQUEUED": REQUEUED,
    "NODE_FAIL": NODE_LOST,
    "TIMEOUT": TIME_LIMIT,
    "CANCELLED": CANCELLED,
}
BY_SLURM = (PREEMPTED_AT_ONCE, REQUEUED, NODE_LOST)
LIVING = (
    "PENDING",
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "SUSPENDED",
    "STOPPED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
)
"""States of a job that has not ended; a requeued job soon becomes PENDING."""
NUM_TASKS_TOLD = 4
EARLY = {
    "User defined signal 2": TIME_LIMIT,
    "User defined signal 1": f"{STOPPED} by SIGUSR1",
    "Terminated": f"{STOPPED} by SIGTERM",
}
"""Reasons for tasks that ended by a signal, by the description in the output of srun."""
LEAST_GRACE = timedelta(seconds=2)
SETTLED = (FINISHED, CANCELLED, REFUSED, DIVERGED, OUT_OF_RESTARTS)


@dataclass(frozen=True)
class Facts:
    """The known facts about an attempt that is ending or has ended.

    Args:
        restart: how often Slurm had restarted the job when the attempt began.
        own: reason that the job itself recorded, if any.
        failure: error that the first failed rank recorded, if any.
        code: exit code of srun; None if the batch script did not see the end.
        hung: whether a rank reported a hang.
        scheduler: fields of `scontrol show job`.
        cause: reason in Slurm's line in the log when it ended the job; None if there is no such line.
        accounted: state of this start of the job in the accounting.
        tasks: failed tasks and how they failed, as reported by srun.
        lost: nodes that failed or rebooted, as reported by srun or Slurm.
        grace: whether Slurm warned the job some seconds before it ended the attempt.
    """

    restart: int = 0
    own: str | None = None
    failure: str | None = None
    code: int | None = None
    hung: bool = False
    scheduler: Mapping[str, str] | None = None
    cause: str | None = None
    accounted: str | None = None
    tasks: str | None = None
    lost: str | None = None
    grace: bool = False

    @property
    def fields(self) -> Mapping[str, str]:
        """Fields of `scontrol show job`; empty if Slurm does not answer."""
        return self.scheduler or {}

    @property
    def restarted(self) -> bool:
        """Whether Slurm has restarted the job, or will."""
        return int(self.fields.get("Restarts", 0)) > self.restart


def why(facts: Facts) -> str:
    """Return the reason why an attempt ended, as `KIND` or `KIND: detail`."""
    own = facts.own or ""
    if own == FINISHED or (facts.code == 0 and not own.startswith(STOPPED)):
        return FINISHED
    return by_scheduler(facts) or by_job(facts) or by_absence(facts)


def by_scheduler(facts: Facts) -> str | None:
    """Return the reason if Slurm ended the attempt or told it to stop, else None."""
    state = facts.fields.get("JobState", "")
    # A signal to the batch script alone leaves the same line as scancel, but the job keeps running; or Slurm has
    # restarted the job, and the line belongs to a later start that opened no attempt.
    signalled = (facts.cause or "").startswith(CANCELLED) and (state == "RUNNING" or facts.restarted)
    if facts.cause is not None and not signalled:
        return PREEMPTED if facts.cause == PREEMPTED_AT_ONCE and facts.grace else facts.cause
    if facts.accounted in ACCOUNTED:
        return ACCOUNTED[facts.accounted]
    if facts.restarted:
        # Slurm has moved the job to other nodes without notice to this one: it considers this node lost.
        return NODE_LOST
    if state == "COMPLETING":
        return CANCELLED
    if state in ACCOUNTED:
        return ACCOUNTED[state]
    if facts.fields.get("PreemptTime", "None") not in ("None", "Unknown") and not facts.hung:
        return PREEMPTED
    return None


def by_job(facts: Facts) -> str | None:
    """Return the reason if the job ended by itself, else None."""
    own = facts.own or ""
    told = facts.failure or (own.removeprefix("error: ") if own.startswith("error") else "")
    if facts.hung or facts.code == EXIT_HUNG:
        return HANG
    if own.startswith(STOPPED) or facts.code == EXIT_STOPPED:
        return TIME_LIMIT if own.endswith("SIGUSR2") else own or STOPPED
    if facts.code == EXIT_DISK_FULL or "No space left" in told or "quota exceeded" in told:
        return DISK_FULL
    if facts.code == EXIT_READ_ONLY or "Read-only file system" in told:
        return READ_ONLY
    if own.startswith(DIVERGED):
        return own
    if facts.code == EXIT_REFUSED:
        return f"{REFUSED}: {told}" if told else REFUSED
    if facts.code is None:
        return None
    if facts.lost:
        return f"{NODE_LOST}: {facts.lost}"
    if early := told_early(facts.tasks or ""):
        return early
    bus_error = "Bus error" in (facts.tasks or "") or facts.code == 128 + signal.SIGBUS
    details = [facts.tasks, told, CUT_SHORT if bus_error else None]
    return f"{CRASH}: {'; '.join(filter(None, details)) or f'exit code {facts.code}'}"


def by_absence(facts: Facts) -> str:
    """Return the reason if neither the batch script nor Slurm's daemon on the node survived to record one."""
    state = facts.fields.get("JobState", "")
    if state and state not in LIVING:
        return f"{CRASH}: the batch script was killed (Slurm: {state.lower().replace('_', ' ')})"
    return NODE_LOST if facts.scheduler else KILLED


def kind_of(reason: str) -> str:
    """Return the kind of a reason, which has a restart budget."""
    return re.split(r"[:,]| by ", reason, maxsplit=1)[0]


def action(reason: str, earlier: Sequence[str], restarts: Mapping[str, int], *, facts: Facts) -> Action:
    """Return what to do after an attempt ended for a reason.

    Each kind of reason has its own budget of restarts. A used-up budget ends the run.

    Args:
        earlier: reasons of the earlier attempts since the run last made progress.
    """
    kind = kind_of(reason)
    if kind == FINISHED:
        return "finished"
    if kind in SETTLED or is_used_up(reason, earlier, restarts):
        return "end"
    cause = facts.cause if facts.cause in BY_SLURM else reason
    if cause == PREEMPTED_AT_ONCE and facts.scheduler and not facts.restarted:
        # PreemptMode=CANCEL: Slurm does not restart the job by itself, but accepts a request to requeue it.
        return "requeue"
    return "leave" if cause in BY_SLURM and (facts.restarted or facts.cause is not None) else "requeue"


def is_used_up(reason: str, earlier: Sequence[str], restarts: Mapping[str, int]) -> bool:
    """Whether this end exceeds the budget of its kind, if it has one."""
    kind, allowed = counted_as(reason), {**DEFAULT_RESTARTS, **restarts}
    return kind in allowed and sum(counted_as(other) == kind for other in earlier) >= allowed[kind]


def counted_as(reason: str) -> str:
    """Return the kind whose budget an end counts against. An unknown reason counts as a crash."""
    return CRASH if kind_of(reason) == KILLED else kind_of(reason)


def parse_fields(text: str) -> dict[str, str]:
    """Parse the output of `scontrol show --oneliner`; of fields with the same name, keep the first."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", text):
        fields.setdefault(name, value)
    return fields


NODE_FAILED = r"^srun: error: (?:Node failure on|Aborting, io error and missing step on) (\S+(?: \d+)?)"
"""Line of srun if a node has failed, or has rebooted and no longer knows the job step."""
JOB_ENDED = re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT (\S+)(?: DUE (?i:TO) ([A-Za-z ]+?))?(?:,| \*\*\*)")
"""Slurm's line in the log when it ends a job, with time and reason."""
STEP_TOLD = re.compile(r"\*\*\* STEP \d+\.\d+ ON \S+ CANCELLED AT (\S+?)(?: DUE| \*\*\*)")
"""Slurm's line in the log when it signals or ends the ranks, also because a rank failed (DUE TO TASK FAILURE)."""


def cause_in_log(text: str) -> str | None:
    """Return the reason that Slurm's daemon wrote to the log of an attempt; None if it did not end the job."""
    causes = [cause for _, cause in JOB_ENDED.findall(text)]
    if not causes:
        return None
    # Since Slurm 26.05, the line of scancel names the signal.
    cause = "" if causes[-1].startswith("SIGNAL ") else causes[-1]
    return LOG_CAUSES.get(cause, f"{CANCELLED}: {cause.lower()}")


def had_grace(text: str) -> bool:
    """Whether Slurm told the ranks to stop some seconds before it ended the job, according to the log."""
    steps, jobs = STEP_TOLD.findall(text), JOB_ENDED.findall(text)
    try:
        told, ended = datetime.fromisoformat(steps[0]), datetime.fromisoformat(jobs[-1][0])
    except (ValueError, IndexError):
        return False
    return ended - told >= LEAST_GRACE


def failed_tasks(text: str) -> str | None:
    """Return the failed tasks that srun reports in the log of an attempt, such as `task 3 on node2: Killed`."""
    lines = re.findall(r"^srun: error: (\S+): (tasks? [\d,-]+): (.+)$", text, re.MULTILINE)
    return ", ".join(f"{task} on {node}: {how}" for node, task, how in lines[:NUM_TASKS_TOLD]) or None


def told_early(tasks: str) -> str | None:
    """Return the reason if all `failed_tasks` ended by the same stop signal, sent before they handled signals."""
    (how, *others) = set(re.findall(r" on \S+: ([^,]+)", tasks)) or {""}
    return None if others else EARLY.get(how)


def lost_nodes(text: str) -> str | None:
    """Return the nodes that failed during an attempt, according to its log."""
    return ", ".join(dict.fromkeys(re.findall(NODE_FAILED, text, re.MULTILINE))) or None


def log_of_attempt(text: str, number: int) -> str:
    """Return the part of a log that belongs to one attempt. Each part begins with `begin_line`."""
    after = text.rpartition(begin_line(number))[2]
    return re.split(r"^deeplense: attempt \d+ begins$", after, maxsplit=1, flags=re.MULTILINE)[0]


def begin_line(number: int) -> str:
    """Return the line in the log that marks the beginning of an attempt."""
    return f"deeplense: attempt {number} begins"


def accounted_state(rows: str, restart: int) -> str | None:
    """Return the state of the restart-th start of a job from `sacct --duplicates`, with one row per start, oldest
    first."""
    states = [row.split("|")[0].split(" ")[0] for row in rows.splitlines() if row.strip()]
    return states[restart] if restart < len(states) else None


def without_progress(attempts: Sequence[Mapping[str, Any]], saved: int) -> list[str]:
    """Return the reasons of the attempts that ended after the checkpoint of step `saved`, the newest, was written."""
    return [attempt["ended"] for attempt in attempts if attempt["ended"] and saved_by(attempt) >= saved]


def saved_by(attempt: Mapping[str, Any]) -> int:
    """Return the step of the newest checkpoint when an attempt ended, at least the step that it started from."""
    return max(attempt.get("saved") or 0, attempt["first_step"] or 0)
