"""The places of pending jobs in the queue of their partition, and when Slurm expects them to start."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from launch import slurm

NOT_COMPETING = ("Dependency", "DependencyNeverSatisfied", "BeginTime", "JobHeldUser", "JobHeldAdmin")
"""Reasons of pending jobs that cannot start whatever their priority."""


@dataclass(frozen=True)
class Waiting:
    """A pending job: its partitions, its priority, its reason, and its expected start in seconds since the epoch."""

    job_id: str
    partitions: frozenset[str]
    priority: int
    reason: str
    start: float | None = None

    @property
    def competes(self) -> bool:
        """Whether the job starts as soon as its priority is the highest and its resources are free."""
        return self.reason not in NOT_COMPETING and "held" not in self.reason.lower()


@dataclass(frozen=True)
class Place:
    """The place of a pending job, from 1, among `count` jobs, and its expected start; no place if it does not compete
    for resources."""

    rank: int | None
    count: int
    start: float | None = None


def places(slurm_conf: str | None, job_ids: Collection[str]) -> dict[str, Place]:
    """Return the places of these jobs that are pending. Raises ValueError if the scheduler does not answer."""
    waiting = [parsed(line) for line in slurm.pending(slurm_conf)]
    return placed([job for job in waiting if job is not None], job_ids)


def placed(waiting: Sequence[Waiting], job_ids: Collection[str]) -> dict[str, Place]:
    """Return the places of jobs among all pending jobs that compete for the nodes of the same partition: those of
    higher priority come first, and of equal ones the older."""
    competing = sorted((job for job in waiting if job.competes), key=lambda job: (-job.priority, number_of(job.job_id)))
    found = {}
    for job in waiting:
        if job.job_id in job_ids:
            others = [other.job_id for other in competing if other.partitions & job.partitions]
            rank = others.index(job.job_id) + 1 if job.competes else None
            found[job.job_id] = Place(rank, len(others), job.start)
    return found


def number_of(job_id: str) -> tuple[int, int]:
    """Return the numbers of a job and of its array task, by which jobs of equal priority are ordered."""
    job, _, task = job_id.partition("_")
    return int(job) if job.isdecimal() else 0, int(task) if task.isdecimal() else 0


def parsed(line: str) -> Waiting | None:
    """Return the job in a line of `slurm.pending`; None for an unexpected line."""
    fields = line.strip().split("|")
    if len(fields) != 5 or not fields[2].isdecimal():
        return None
    start = float(fields[3]) if fields[3].isdecimal() else None
    return Waiting(fields[0], frozenset(fields[1].split(",")), int(fields[2]), fields[4], start)
