"""Gather what a report on runs shows: their attempts, what Slurm's accounting says about them, and their sums."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.findings import plural
from launch.sight.accounting import Start, starts_of
from launch.sight.overview import Answers, ask, is_of_this_cluster, read_all
from launch.sight.reading import Reading
from launch.sight.spending import RUNNING, Spell, divided, jobs_of, spells_of
from launch.sight.totals import Loss, Totals, losses, totals_of

JOB_ID = re.compile(r"\d+(_\d+)?")
"""The job ids that sacct is asked about. Other users may write something else, and then it would answer nothing."""


@dataclass(frozen=True)
class Gathered:
    """What a report shows.

    Args:
        readings: the runs, by name.
        answers: what the scheduler says about them.
        spells: attempts of all runs, in the order of the runs.
        totals: their sums.
        losses: what was lost, by cause.
        source: where times and hours come from, as text.
        energy: what is known of the energy, as text.
        notes: what could not be read.
    """

    readings: Mapping[str, Reading]
    answers: Answers
    spells: Sequence[Spell]
    totals: Totals
    losses: Sequence[Loss]
    source: str
    energy: str
    notes: Sequence[str]

    def of(self, run: str) -> list[Spell]:
        """Return the attempts of a run."""
        return [spell for spell in self.spells if spell.run == run]


def gather(folders: Sequence[Path]) -> Gathered:
    """Gather what is known of these runs. Raises ValueError if none of them has made an attempt."""
    readings, damaged = read_all(folders)
    named = dict(zip(names_of([each.folder for each in readings]), readings, strict=True))
    answers = ask(readings)
    starts, problem = accounted_starts(readings)
    spells = divided([spell for name, each in named.items() for spell in spells_of(each.folder, name, starts)])
    if not spells:
        raise ValueError("none of these runs has made an attempt yet; wait until the first one has begun.")
    totals = totals_of(spells)
    source = source_of(spells, problem)
    notes = [note.removeprefix("note: ") for note in damaged]
    return Gathered(named, answers, spells, totals, losses(spells), source, energy_of(totals, spells), notes)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return short names of run folders, all different: their paths below the folder that they share."""
    if len(folders) < 2:
        return [folder.name for folder in folders]
    shared = Path(os.path.commonpath(folders))
    return [str(folder.relative_to(shared)) if folder != shared else folder.name for folder in folders]


def accounted_starts(readings: Sequence[Reading]) -> tuple[dict[str, list[Start]], str]:
    """Return the starts of the jobs of these runs by job id, from the accounting, and why it did not answer, if so."""
    jobs: dict[str | None, list[str]] = {}
    for each in readings:
        if each.run.stranger and not is_of_this_cluster(each):
            continue
        conf = None if each.run.stranger else each.run.slurm_conf
        jobs.setdefault(conf, []).extend(filter(JOB_ID.fullmatch, jobs_of(each.folder)))
    found: dict[str, list[Start]] = {}
    problem = ""
    for slurm_conf, job_ids in jobs.items():
        try:
            found |= starts_of(slurm_conf, job_ids) if job_ids else {}
        except ValueError as error:
            problem = " ".join(str(error).split())
    return found, problem


def source_of(spells: Sequence[Spell], problem: str) -> str:
    """Return where the times and hours of attempts come from, as text."""
    known = sum(spell.accounted for spell in spells)
    left = len(spells) - known
    if not left:
        return "Times, cores and GPUs are those of Slurm's accounting (sacct), including each start of requeued jobs."
    from_records = (
        "the records of the runs: an attempt lasts from its first line to its last sign of life, and its cores and "
        "GPUs are those of the profile with which it was submitted"
    )
    why = f" ({problem})" if problem else ""
    if not known:
        return f"Slurm's accounting has none of these attempts{why}. All times and hours are from {from_records}."
    return (
        f"Times, cores and GPUs of {known} of {len(spells)} attempts are those of Slurm's accounting (sacct). Those of "
        f"{plural(left, 'attempt')} are not there{why}; they are from {from_records}."
    )


def energy_of(totals: Totals, spells: Sequence[Spell]) -> str:
    """Return what is known of the energy, as text."""
    if totals.energy_kwh is None:
        why = (
            "Slurm does not measure it here (AcctGatherEnergyType)"
            if any(spell.accounted for spell in spells)
            else "it is only in Slurm's accounting"
        )
        return f"The energy is not known: {why}."
    part = "" if totals.share_with_energy > 0.999 else f", for {100 * totals.share_with_energy:.0f} % of the core hours"
    return (
        f"Slurm measured {totals.energy_kwh:.4g} kWh{part}. It measures whole nodes: if other jobs ran on the same "
        "nodes, their energy is included. Cooling and storage are not."
    )


def is_running(spells: Sequence[Spell]) -> bool:
    """Whether the last attempt has not ended."""
    return bool(spells) and spells[-1].cause == RUNNING
