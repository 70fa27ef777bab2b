"""What Slurm's accounting says about the starts of jobs: when, for how long, on how many cores and GPUs, with how much
energy."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch import slurm

FIELDS = ("JobID", "State", "Eligible", "Start", "End", "ElapsedRaw", "AllocCPUS", "AllocTRES", "ConsumedEnergyRaw")
UNREAL = 2**63
"""Energies from here on stand for no value."""


@dataclass(frozen=True)
class Start:
    """One start of a job; times are in seconds since the epoch.

    Args:
        state: last state of this start, such as PREEMPTED.
        eligible: when the job could start as far as its dependencies are concerned; None if unknown.
        begun: when it started.
        ended: when it ended; None if it still runs.
        seconds: for how long it ran, without the time for which it was suspended.
        cpus: number of CPU cores.
        gpus: number of GPUs.
        energy_j: energy of its nodes in joules; None if Slurm does not measure it.
    """

    job_id: str
    state: str
    eligible: float | None
    begun: float
    ended: float | None
    seconds: float
    cpus: int
    gpus: int
    energy_j: float | None = None


def starts_of(slurm_conf: str | None, job_ids: Iterable[str]) -> dict[str, list[Start]]:
    """Return all starts of these jobs by job id, the oldest first. Raises ValueError if the accounting does not
    answer."""
    return parsed(slurm.history(slurm_conf, sorted(set(job_ids)), FIELDS))


def parsed(rows: Iterable[str]) -> dict[str, list[Start]]:
    """Return the starts in rows of sacct. Rows of steps follow the row of their job; only their energy counts."""
    found: dict[str, list[Start]] = {}
    last: str | None = None
    for row in rows:
        values: dict[str, str] = dict(zip(FIELDS, row.split("|"), strict=False))
        if len(values) != len(FIELDS):
            continue
        job_id, _, step = values["JobID"].partition(".")
        if not step:
            start = start_in(values)
            last = job_id if start else None
            if start:
                found.setdefault(job_id, []).append(start)
        elif job_id == last:
            found[job_id][-1] = with_energy(found[job_id][-1], energy_in(values))
    return {job_id: sorted(starts, key=lambda start: start.begun) for job_id, starts in found.items()}


def start_in(values: Mapping[str, str]) -> Start | None:
    """Return the start in a row of a job; None if the job has not started."""
    begun, ended = time_in(values["Start"]), time_in(values["End"])
    if begun is None:
        return None
    return Start(
        values["JobID"],
        values["State"].split(" ")[0],
        time_in(values["Eligible"]),
        begun,
        ended,
        float(values["ElapsedRaw"] or 0),
        int(values["AllocCPUS"] or 0),
        gpus_in(values["AllocTRES"]),
        energy_in(values),
    )


def with_energy(start: Start, energy_j: float | None) -> Start:
    """Return a start with the energy of a step. Each step measures whole nodes for as long as it runs, so the largest
    value counts, not the sum."""
    known = [value for value in (start.energy_j, energy_j) if value is not None]
    return Start(**{**vars(start), "energy_j": max(known, default=None)})


def time_in(text: str) -> float | None:
    """Return a time in seconds since the epoch; None for a word such as Unknown."""
    return float(text) if text.isdecimal() else None


def gpus_in(tres: str) -> int:
    """Return the number of GPUs in a list of resources.

    Example:
        >>> gpus_in("billing=8,cpu=8,gres/gpu:a100=4,gres/gpu=4,node=1"), gpus_in("cpu=8,gres/gpu:a100=4"), gpus_in("")
        (4, 4, 0)
    """
    found = re.findall(r"(?:^|,)gres/gpu(:[^=,]+)?=(\d+)", tres)
    untyped = [int(number) for kind, number in found if not kind]
    return untyped[0] if untyped else sum(int(number) for _, number in found)


def energy_in(values: Mapping[str, str]) -> float | None:
    """Return an energy in joules; None if it was not measured, for which Slurm prints 0, nothing, or a huge number."""
    text = values["ConsumedEnergyRaw"]
    energy = float(text) if text.isdecimal() else 0.0
    return energy if 0 < energy < UNREAL else None
