"""All runs at a glance: what their files, the scheduler and its accounting say. One squeue serves all runs."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.runs.attempts import ATTEMPTS
from jobs.runs.folder import LAUNCH
from launch import judging, notices
from launch.findings import plural
from launch.record import named_owner
from launch.sight.reading import Reading, read_run, seconds_of, time_of
from launch.status import accounted, is_concluded, standing, stands, states

SECONDS_TO_GO_ON = 120.0
"""Time after which a run that nobody continues stands still."""


@dataclass(frozen=True)
class Answers:
    """What the scheduler says about runs.

    Args:
        states: state and reason of runs in the queue, by run folder.
        accounted: last state in the accounting of runs that are not in the queue and have not ended for good.
        problem: why the scheduler did not answer; empty if it did.
    """

    states: Mapping[Path, tuple[str, str]] = field(default_factory=dict)
    accounted: Mapping[Path, str] = field(default_factory=dict)
    problem: str = ""


def read_all(folders: Sequence[Path]) -> tuple[list[Reading], list[str]]:
    """Return what the files of these runs say, and a note for each run whose record is damaged."""
    found, damaged = [], []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except (ValueError, OSError) as error:
            damaged.append(f"note: {' '.join(str(error).split())}")
    return found, damaged


def ask(readings: Sequence[Reading]) -> Answers:
    """Ask the scheduler about these runs. If it does not answer, only the runs of this machine have a state."""
    # Runs that are over are asked about, too: a finished run may have a job that is still pending.
    runs = [reading.run for reading in readings]
    others = of_others(readings)
    try:
        found = states(runs, others=others)
    except ValueError as error:
        here = [run for run in runs if run.local]
        return Answers(states(here), problem=str(error))
    gone = [each.run for each in readings if each.folder not in found and not each.is_over]
    return Answers(found, accounted(gone))


def of_others(readings: Sequence[Reading]) -> dict[Path, tuple[str, int]]:
    """Return the jobs that are only shown, with the number of their user, by run folder: of other users, and of scripts
    that call `deeplense train` themselves."""
    found: dict[Path, tuple[str, int]] = {}
    if not shutil.which("squeue"):
        return found
    for each in readings:
        record = each.folder / (ATTEMPTS if each.run.by_hand else LAUNCH)
        is_other = each.run.by_hand or (each.run.stranger and is_of_this_cluster(each))
        if is_other and each.job_id and not each.is_over:
            found[each.folder] = (each.job_id, record.lstat().st_uid)
    return found


def is_of_this_cluster(reading: Reading) -> bool:
    """Whether a run of another user is a job of the cluster of this machine. A configuration of Slurm that another user
    names is not loaded: it may name programs."""
    run = reading.run
    own = run.slurm_conf is None or run.slurm_conf == os.environ.get("SLURM_CONF")
    return own and not run.local and named_owner(run)


def tell_users(readings: Sequence[Reading], answers: Answers) -> None:
    """Call the commands of this user's runs for events that nobody has told: those whose job could not, and runs that
    stand still, unless the user has cancelled them. A run that has changed a moment ago is left alone: its job or its
    successor may be about to go on."""
    for each in readings:
        run, state = each.run, answers.states.get(each.folder)
        if run.stranger or run.by_hand or answers.problem or each.time - last_change(each) < SECONDS_TO_GO_ON:
            continue
        notices.send_due(each.folder)
        is_ended = is_concluded(run) or bool(judging.launched(each.folder).get("cancelled"))
        if stands(run, state, is_over=each.is_over) and not is_ended:
            why = "; ".join(standing(run, state, answers.accounted.get(each.folder, "")))
            notices.send(each.folder, notices.standing_still(each.folder, why.removeprefix("note: ")))


def last_change(reading: Reading) -> float:
    """Return when a run was submitted, or its last attempt ended, in seconds since the epoch."""
    last = reading.attempts[-1] if reading.attempts else {}
    times = [seconds_of(last.get(name)) or 0.0 for name in ("begun", "ended_at", "concluded")]
    return max(time_of(reading.folder / LAUNCH), *times)


def unknown(readings: Sequence[Reading], answers: Answers) -> list[str]:
    """Return a note if the scheduler did not answer: the state of how many runs is unknown, and why."""
    if not answers.problem:
        return []
    left = [each for each in readings if not (each.run.local or each.run.stranger or each.is_over)]
    return [f"note: the state of {plural(len(left), 'run')} is unknown: {' '.join(answers.problem.split())}"]
