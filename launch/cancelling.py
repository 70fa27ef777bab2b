"""Cancel runs: those of Slurm, those on this machine, and those that were started directly."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.runs.folder import LOCK
from jobs.settings import require
from launch import by_hand, slurm
from launch.record import Launched, keep, launched, own, queue_of, stranger_of, told_in
from launch.sight.search import find_runs
from launch.status import jobs_by_id, named, readable, states


def to_cancel(folder: Path) -> list[Launched]:
    """Return the run in a folder or, if the folder is not a run, the pending and running runs below it. Raises
    ValueError if there are none."""
    below = find_runs([folder])
    if folder in below or not below:
        run = launched(folder)
        return [run if run.by_hand else own(folder)]
    runs, _ = readable(below)
    found = states(runs)
    if not found:
        raise ValueError(
            f"none of the {len(runs)} runs below {folder} is pending or running; there is nothing to cancel."
        )
    return [run for run in runs if run.folder in found]


def cancel(run: Launched) -> None:
    """Cancel a run; it saves a checkpoint if the scheduler leaves it enough time. Raises ValueError if it is not
    active."""
    require(bool(cancel_all([run])), f"{run.folder} is neither pending nor running; there is nothing to cancel.")


def cancel_all(runs: Sequence[Launched]) -> list[Launched]:
    """Cancel those of these runs that are pending or running, with one squeue and one scancel; return them."""
    ended = [run for run in runs if not run.local and not run.by_hand]
    queues = {slurm_conf: jobs_by_id(slurm.queue(slurm_conf)) for slurm_conf in {run.slurm_conf for run in ended}}
    ended = named(ended)
    jobs = {run.folder: queues[run.slurm_conf].get(run.job_id or "", []) for run in ended}
    ended = [run for run in ended if jobs[run.folder]]
    for slurm_conf in {run.slurm_conf for run in ended}:
        ours = [job.job_id for run in ended if run.slurm_conf == slurm_conf for job in jobs[run.folder]]
        # Cancel successor jobs first, so that they do not start in between.
        slurm.ask(slurm_conf, "scancel", *reversed(ours))
    for run in ended:
        keep(run.folder, told_in(run.folder) | cancelled_now())
    return ended + [run for run in runs if (run.local or run.by_hand) and cancel_here(run)]


def cancelled_now() -> dict[str, str]:
    """Return what the record of a run has when it was cancelled."""
    return {"cancelled": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def cancel_here(run: Launched) -> bool:
    """Cancel a run on this machine, submitted or started directly; return whether it was active."""
    if run.by_hand:
        lock = run.folder / LOCK
        stranger = stranger_of(lock) if lock.exists() else None
        require(stranger is None, f"{run.folder} is being trained by {stranger}; only that user can stop it.")
        by_hand.stop(run.folder)
    elif queue_of(run.folder):
        keep(run.folder, told_in(run.folder) | {"queue": None} | cancelled_now())
    elif run.folder in states([run]):
        if by_hand.is_elsewhere(run.folder):
            by_hand.stop(run.folder)  # the number is that of a process elsewhere, so this refuses
        os.kill(int(run.job_id or 0), signal.SIGTERM)
    else:
        return False
    return True
