"""Chains of runs on Slurm: a job that waits for other runs, also if they resume in other jobs.

A job waits by a dependency `afterok` on the jobs of its parents. Slurm keeps a dependency that cannot be satisfied any
more, so a run that is resubmitted, or that continues in a successor job, moves the dependencies on its old jobs to its
new one. The queue itself says which jobs wait, so no record can be lost.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.runs.folder import LAUNCH
from jobs.settings import require
from launch import parents, slurm, status
from launch.record import Launched, launched
from launch.sight.search import find_runs
from launch.submission import Submission

PAUSES_S = (1.0, 5.0)
ENTRY = re.compile(r"(?P<wish>[^()]+?)(?:\((?P<state>\w+)\))?$")
"""One dependency as squeue prints it, such as `afterok:12_3(unfulfilled)`."""


def named_parents(text: str) -> tuple[Path, ...]:
    """Return the folders of the runs that the value of `--after` names: runs, or folders with runs, separated by
    commas. Raises ValueError, naming it, if one is not a run."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    require(bool(names), "--after names no run; give run folders, separated by commas.")
    return tuple(dict.fromkeys(folder for name in names for folder in runs_at(Path(name))))


def runs_at(path: Path) -> list[Path]:
    """Return the run in a folder or, if it is not one, all runs below it. Raises ValueError if there are none."""
    folder = path.absolute()
    found = [folder] if (folder / LAUNCH).exists() else find_runs([folder])
    told = f"--after {path}: there is no run in or below {path}"
    require(bool(found), f"{told}; submit it first, or correct the path (`deeplense status` lists the runs).")
    return [folder] if folder in found else found


def after(submission: Submission, folders: Sequence[Path]) -> Submission:
    """Return a submission that waits for those of these runs that have not finished. Raises ValueError if it cannot,
    or would wait for itself."""
    left = tuple(parents.unfinished(folders))
    circle = [folder for folder in parents.ancestors(left) if folder in submission.folders]
    told = f"{circle[0] if circle else ''} would wait for itself through {', '.join(map(str, left))}"
    require(not circle, f"{told}; leave it out of --after.")
    own = "dependency" in submission.cluster.sbatch and bool(left)
    require(not own, "--after sets the dependency of the job; leave sbatch.dependency out of the profile.")
    waiting = replace(submission, after=left)
    dependency_of(waiting)
    return waiting


def dependency_of(submission: Submission) -> str:
    """Return the value of sbatch's `--dependency` for a submission; empty if there is nothing to wait for. Raises
    ValueError, with what to do, if a run that it waits for has no job on this cluster."""
    left = parents.unfinished(submission.after)
    if not left or submission.cluster.executor != "slurm":
        return ""
    runs = status.named([launched(folder) for folder in left])
    for run in runs:
        refuse_elsewhere(run, submission)
    queue = slurm.queue(submission.cluster.slurm_conf)
    jobs = status.jobs_by_id(queue)
    found = {run.folder: jobs.get(run.job_id or "", []) for run in runs}
    # A run may have finished, and left the queue, since its records were read.
    stopped = parents.unfinished([folder for folder, jobs in found.items() if not jobs])
    told = f"{status.shown(stopped[0]) if stopped else ''} has stopped and nobody continues it"
    resumed = f"resume it first: `deeplense resume {status.shown(stopped[0]) if stopped else ''}`"
    require(not stopped, f"{told}, so a job that waits for it would never start; {resumed}.")
    ids = [jobs[0].job_id for jobs in found.values() if jobs]
    return ",".join(f"afterok:{job_id}" for job_id in ids)


def refuse_elsewhere(run: Launched, submission: Submission) -> None:
    """Raise ValueError if a run is not a job of this user on the cluster of a submission."""
    name, where = status.shown(run.folder), submission.cluster.name
    remedy = "wait until it is finished, or submit it to the same cluster"
    whose = f"{name} belongs to {run.stranger}, and a job of yours cannot wait for it"
    require(not run.stranger, f"{whose}; wait until it is finished.")
    require(not run.by_hand, f"{name} was started directly, and a job on {where} cannot wait for it; {remedy}.")
    require(not run.local, f"{name} runs on this machine, and a job on {where} cannot wait for it; {remedy}.")
    same = run.slurm_conf == submission.cluster.slurm_conf
    require(same, f"{name} is a job on another cluster than {where}; {remedy}.")


def with_dependency(submission: Submission) -> Submission:
    """Return a submission with the dependency on the present jobs of the runs that it waits for."""
    return replace(submission, dependency=dependency_of(submission))


def move(slurm_conf: str | None, ids: Mapping[str, str]) -> None:
    """Let all jobs of this user that wait for the success of an old job wait for the new one. Raises ValueError if
    Slurm does not answer or refuses.

    Args:
        ids: maps ids of old jobs to that of the job that replaces each.
    """
    if not ids:
        return
    for job_id, dependency in moves(waiting_jobs(slurm_conf), ids):
        slurm.ask(slurm_conf, "scontrol", "update", f"jobid={job_id}", f"dependency={dependency}")


def move_or_tell(slurm_conf: str | None, ids: Mapping[str, str]) -> None:
    """Move dependencies as `move` does, in several tries. If Slurm does not answer, print how to do it by hand."""
    for pause_s in (*PAUSES_S, None):
        try:
            return move(slurm_conf, ids)
        except ValueError as error:
            if pause_s is None:
                pairs = ", ".join(f"{old} by {new}" for old, new in ids.items())
                told = f"note: jobs that wait for this run could not be changed: {error} Replace {pairs} in them"
                sys.stderr.write(f"{told}: `scontrol update jobid=JOB dependency=afterok:...`.\n")
            else:
                time.sleep(pause_s)


def waiting_jobs(slurm_conf: str | None) -> list[tuple[str, str]]:
    """Return the id and the dependencies, as squeue prints them, of all jobs of this user, an entry per array task."""
    output = slurm.ask(slurm_conf, "squeue", "--me", "--noheader", "--array", "--format=%i|%E")
    rows = (line.partition("|") for line in output.splitlines())
    return [(job_id, dependency) for job_id, _, dependency in rows]


def moves(waiting: Sequence[tuple[str, str]], ids: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the jobs whose dependencies change, with their new dependencies."""
    for job_id, dependency in waiting:
        moved = moved_dependency(dependency, ids)
        if moved is not None:
            yield job_id, moved


def moved_dependency(dependency: str, ids: Mapping[str, str]) -> str | None:
    """Return dependencies, as squeue prints them, with old jobs replaced by new ones; None if nothing changes. Only
    dependencies on success are moved. Alternatives (`?`) are never changed: they are not ours."""
    if "?" in dependency:
        return None
    entries = [found for text in dependency.split(",") if (found := ENTRY.match(text.strip()))]
    wishes = [found["wish"] for found in entries if found["state"] != "fulfilled"]
    moved = [f"afterok:{ids.get(wish.removeprefix('afterok:'), '')}" for wish in wishes]
    kept = [
        new if wish.startswith("afterok:") and new != "afterok:" else wish
        for wish, new in zip(wishes, moved, strict=True)
    ]
    return ",".join(dict.fromkeys(kept)) if kept != wishes else None


def parents_first(folders: Sequence[Path]) -> list[Path]:
    """Return runs in an order in which no run comes before one that it waits for."""
    ordered: list[Path] = []

    def add(folder: Path, on_the_way: frozenset[Path]) -> None:
        for parent in parents.parents_of(folder):
            if parent in folders and parent not in on_the_way:
                add(parent, on_the_way | {folder})
        if folder not in ordered:
            ordered.append(folder)

    for folder in folders:
        add(folder, frozenset([folder]))
    return ordered
