"""On what runs spent their time: steps that are in the result, steps that were made again, starting and ending, and
waiting. For each attempt, what Slurm's accounting says counts; without it, the records of the run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deeplense.records import read_record
from jobs.runs.attempts import newest_step, read_attempts
from jobs.runs.folder import LAUNCH, is_finished
from jobs.runs.progress import read_progress
from launch.ends import FINISHED, kind_of
from launch.sight.accounting import Start
from launch.sight.reading import seconds_of, time_of
from launch.widths import bounds

MARGIN_S = 120.0
"""Largest expected difference between the clocks of a node and of the accounting."""
RUNNING, NO_ATTEMPT = "running", "no attempt"
RESOURCES = {"cluster": dict | None}


@dataclass(frozen=True)
class Spell:
    """A stretch of time for which a run had resources: an attempt, or a start of a job that made none.

    Args:
        run: name of the run.
        number: number of the attempt; None for a start without one.
        cause: kind of the reason why it ended; `running` if it has not.
        reason: the whole reason.
        begun: start, in seconds since the epoch.
        ended: end; now if it still runs.
        waited_s: time in the queue before it; 0 if unknown.
        seconds: time for which resources were used.
        cpus: number of CPU cores.
        gpus: number of GPUs.
        kept: number of its steps that are in the result.
        again: number of its steps that were lost and had to be made again.
        stepping_s: time in which it made steps; None if unknown.
        energy_j: energy in joules; None if unknown.
        job: id of the job and beginning of its start, if times and resources are from Slurm's accounting.
        noted: when the attempt began according to the records of the run.
    """

    run: str
    number: int | None
    cause: str
    reason: str
    begun: float
    ended: float
    waited_s: float = 0.0
    seconds: float = 0.0
    cpus: int = 0
    gpus: int = 0
    kept: int = 0
    again: int = 0
    stepping_s: float | None = None
    energy_j: float | None = None
    job: tuple[str, float] | None = None
    noted: float = 0.0

    @property
    def accounted(self) -> bool:
        """Whether times and resources are from Slurm's accounting."""
        return self.job is not None

    @property
    def steps(self) -> int:
        """Number of steps that it made."""
        return self.kept + self.again

    @property
    def made_s(self) -> float:
        """Time in which it made steps. If their rate is unknown, all of its time counts."""
        known = self.seconds if self.stepping_s is None else min(self.stepping_s, self.seconds)
        return known if self.steps else 0.0

    @property
    def kept_s(self) -> float:
        """Time for steps that are in the result. A job without steps that finished counts as a whole."""
        if not self.steps:
            return self.seconds if self.cause == FINISHED else 0.0
        return self.made_s * self.kept / self.steps

    @property
    def again_s(self) -> float:
        """Time for steps that were lost."""
        return self.made_s * self.again / self.steps if self.steps else 0.0

    @property
    def other_s(self) -> float:
        """The rest: starting, reading the checkpoint, saving at the end."""
        return max(self.seconds - self.kept_s - self.again_s, 0.0)


def spells_of(folder: Path, name: str, starts: Mapping[str, Sequence[Start]]) -> list[Spell]:
    """Return the attempts of a run, and the starts of its jobs that made none, in order of time.

    Args:
        folder: run folder.
        name: name of the run.
        starts: starts of its jobs in the accounting, by job id; empty without accounting.
    """
    attempts = read_attempts(folder)
    taken = [start_of(attempt, starts) for attempt in attempts]
    resources = resources_of(folder)
    found = [
        spell_of(folder, name, attempts, place, start, resources)
        for place, start in enumerate(taken)
        if start or attempts[place]["begun"]
    ]
    jobs = {attempt["job_id"] for attempt in attempts} | set(jobs_in(folder))
    left = [start for job in jobs - {None} for start in starts.get(job, ()) if start not in taken]
    found += [without_attempt(name, start) for start in left]
    return with_waits(sorted(found, key=lambda spell: spell.begun), starts, attempts)


def jobs_of(folder: Path) -> list[str]:
    """Return the ids of all jobs of a run."""
    known = [*jobs_in(folder), *(attempt["job_id"] for attempt in read_attempts(folder))]
    return list(dict.fromkeys(job for job in known if job))


def jobs_in(folder: Path) -> list[str]:
    """Return the job in the record of the submission of a run, if it was submitted to Slurm."""
    try:
        told = read_record(folder / LAUNCH, {"job_id": str | None, "cluster": dict})
    except (ValueError, OSError):
        return []
    return [told["job_id"]] if told["job_id"] and told["cluster"].get("executor") == "slurm" else []


def start_of(attempt: Mapping[str, Any], starts: Mapping[str, Sequence[Start]]) -> Start | None:
    """Return the start of the job in which an attempt was made: that in whose time it began, also if clocks differ a
    little. Of several, the number of restarts tells which."""
    ours, begun = starts.get(attempt["job_id"] or "", ()), seconds_of(attempt["begun"])
    number = attempt["restart"] or 0
    if begun is None:
        return None
    for margin_s in (0.0, MARGIN_S):
        in_time = [start for start in ours if is_within(begun, start, margin_s)]
        if in_time:
            same = ours[number] if number < len(ours) else None
            return same if same in in_time else in_time[-1]
    return None


def is_within(when: float, start: Start, margin_s: float) -> bool:
    """Whether a start of a job, extended by a margin on both sides, contains a time."""
    return start.begun - margin_s <= when <= (when if start.ended is None else start.ended) + margin_s


def spell_of(
    folder: Path,
    name: str,
    attempts: Sequence[Mapping[str, Any]],
    place: int,
    start: Start | None,
    resources: Mapping[str, Any],
) -> Spell:
    """Return the spell of an attempt, the one at this place."""
    attempt, is_last = attempts[place], place == len(attempts) - 1
    runs = is_last and attempt["ended"] is None
    begun, ended = ends_of(folder, attempts, place)
    made = steps_of(folder, attempts, place)
    cpus, gpus = used_by(attempt, resources)
    spell = Spell(
        name,
        attempt["attempt"],
        RUNNING if runs else kind_of(attempt["ended"] or "killed"),
        attempt["ended"] or ("" if runs else "killed"),
        begun,
        ended,
        noted=begun,
        waited_s=float(attempt.get("waited_s") or 0),
        seconds=max(ended - begun, 0.0),
        cpus=cpus,
        gpus=gpus,
        kept=made[0],
        again=made[1],
        stepping_s=sum(made) / attempt["rate"] if attempt.get("rate") else None,
    )
    return spell if start is None else by_accounting(spell, start)


def by_accounting(spell: Spell, start: Start) -> Spell:
    """Return a spell with the times and resources that the accounting says."""
    return replace(
        spell,
        begun=start.begun,
        ended=start.ended or time.time(),
        seconds=start.seconds,
        cpus=start.cpus,
        gpus=start.gpus,
        energy_j=start.energy_j,
        job=(start.job_id, start.begun),
    )


def without_attempt(name: str, start: Start) -> Spell:
    """Return the spell of a start of a job that made no attempt, as of a successor job with nothing to do."""
    spell = Spell(name, None, NO_ATTEMPT, start.state.lower().replace("_", " "), start.begun, start.begun)
    return by_accounting(spell, start)


def ends_of(folder: Path, attempts: Sequence[Mapping[str, Any]], place: int) -> tuple[float, float]:
    """Return when an attempt began and ended, according to the records of the run."""
    attempt = attempts[place]
    begun = seconds_of(attempt["begun"]) or 0.0
    after = seconds_of(attempts[place + 1]["begun"]) if place + 1 < len(attempts) else None
    concluded, own = seconds_of(attempt.get("concluded")), seconds_of(attempt.get("ended_at"))
    reached = seconds_of(attempt.get("reached_at"))
    # The end of an attempt whose script died is recorded when the next one begins.
    is_late = concluded is not None and after is not None and concluded > after - 5
    known = [time for time in (own, None if is_late else concluded, reached) if time is not None and time >= begun]
    if known:
        return begun, max(known)
    if attempt["ended"] is None and after is None:
        return begun, max(time.time(), begun)
    return begun, begun if after is None else min(after, max(time_of(folder / LAUNCH), begun))


def steps_of(folder: Path, attempts: Sequence[Mapping[str, Any]], place: int) -> tuple[int, int]:
    """Return how many steps of an attempt are in the result, and how many were lost."""
    attempt, first = attempts[place], attempts[place]["first_step"]
    if first is None:
        return 0, 0
    later = [other["first_step"] for other in attempts[place + 1 :] if other["first_step"] is not None]
    known = [attempt["last_step"] or 0, attempt.get("reached") or 0]
    if place == len(attempts) - 1 and (progress := read_progress(folder)):
        known.append(progress["step"])
    made = max(max(known) - first, 0)
    if later:
        kept = later[0] - first
    elif attempt["ended"] in (None, FINISHED) or is_finished(folder):
        kept = made
    else:
        kept = max(newest_step(folder), attempt.get("saved") or 0) - first
    kept = min(max(kept, 0), made)
    return kept, made - kept


def resources_of(folder: Path) -> Mapping[str, Any]:
    """Return the profile with which a run was submitted; empty if it was not, or is unknown."""
    try:
        return read_record(folder / LAUNCH, RESOURCES).get("cluster") or {}
    except (ValueError, OSError):
        return {}


def used_by(attempt: Mapping[str, Any], cluster: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of CPU cores and of GPUs of an attempt, from the number of its processes and the profile. Of a
    run that was not submitted, a core for each process counts."""
    per_node = cluster.get("tasks_per_node") or max(cluster.get("gpus_per_node") or 0, 1)
    nodes = attempt.get("num_nodes") or bounds(cluster.get("nodes") or 1)[0]
    tasks = attempt["num_processes"] or per_node * nodes
    gpus = tasks * (cluster.get("gpus_per_node") or 0) / per_node
    return tasks * (cluster.get("cpus_per_task") or 1), round(gpus)


def divided(spells: Sequence[Spell]) -> list[Spell]:
    """Return spells in which no start of a job counts twice. Where several spells share one, as in a script that trains
    several runs, each lasts until the next one begins."""
    groups: dict[tuple[str, float], list[Spell]] = {}
    for spell in spells:
        if spell.job:
            groups.setdefault(spell.job, []).append(spell)
    found = {}
    for shared in (group for group in groups.values() if len(group) > 1):
        order = sorted(shared, key=lambda spell: spell.noted)
        whole = shared[0]
        edges = [whole.begun, *(min(max(spell.noted, whole.begun), whole.ended) for spell in order[1:]), whole.ended]
        length = max(whole.ended - whole.begun, 1e-9)
        for place, spell in enumerate(order):
            begun, ended = edges[place], edges[place + 1]
            part = max(ended - begun, 0.0) / length
            energy = None if spell.energy_j is None else spell.energy_j * part
            changed = {"begun": begun, "ended": ended, "seconds": whole.seconds * part, "energy_j": energy}
            found[id(spell)] = replace(spell, **changed, waited_s=0.0 if place else spell.waited_s)
    return [found.get(id(spell), spell) for spell in spells]


def with_waits(
    spells: Sequence[Spell], starts: Mapping[str, Sequence[Start]], attempts: Sequence[Mapping[str, Any]]
) -> list[Spell]:
    """Return spells with the time in the queue before each: for the first start of a job since it could start, for a
    later one since the end of the one before. Without accounting it is the recorded one; if none is recorded, the time
    since the attempt before, but only for attempts of jobs, as others were in no queue."""
    jobs = {attempt["attempt"]: attempt["job_id"] for attempt in attempts}
    unknown = {attempt["attempt"] for attempt in attempts if attempt["job_id"] and attempt.get("waited_s") is None}
    found: list[Spell] = []
    for spell in spells:
        ours = starts.get(jobs.get(spell.number or 0) or "", ())
        place = next((k for k, start in enumerate(ours) if start.begun == spell.begun), None)
        if spell.accounted and place is not None:
            since = ours[place - 1].ended if place else ours[0].eligible
            spell = replace(spell, waited_s=max(spell.begun - (since or spell.begun), 0.0))
        elif not spell.accounted and found and spell.number in unknown:
            spell = replace(spell, waited_s=max(spell.begun - found[-1].ended, 0.0))
        found.append(spell)
    return found
