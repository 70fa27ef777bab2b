"""Whether runs are pending or running, and why they have stopped. One query to the scheduler serves all runs."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.runs.attempts import ATTEMPTS, end_attempt, newest_attempts, newest_step, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH, is_finished
from launch import by_hand, slurm
from launch.ends import FINISHED as ENDED_WELL
from launch.ends import SETTLED, kind_of
from launch.judging import Job, judge
from launch.parents import waited_for
from launch.record import Launched, ended_well, is_process, launched, queue_of, since
from launch.script import FOLDERS
from launch.slurm import is_held


def named(runs: Sequence[Launched]) -> list[Launched]:
    """Return the same runs, with job ids from the queue for those whose record has none, unless they are finished."""
    ids: dict[Path, list[str]] = {}
    left = [run for run in runs if run.unnamed and not run.stranger and not (run.folder / FINISHED).exists()]
    for slurm_conf in {run.slurm_conf for run in left}:
        for folder, job_id in slurm.by_logs(slurm_conf):
            path, place = Path(folder) / FOLDERS, int(job_id.partition("_")[2] or 0)
            folders = path.read_text().splitlines() if path.exists() else []
            for run in folders[place : place + 1]:
                ids.setdefault(Path(run), []).append(job_id)
    return [replace(run, job_id=named_by(run, ids), unnamed=False) if run.unnamed else run for run in runs]


def named_by(run: Launched, ids: Mapping[Path, Sequence[str]]) -> str | None:
    """Return the job id of a run, given its jobs in the queue: the known one, or else the first, not its successor."""
    there = ids.get(run.folder, [])
    return run.job_id if run.job_id in there or not there else min(there, key=lambda job: int(job.partition("_")[0]))


def states(
    runs: Sequence[Launched], *, others: Mapping[Path, tuple[str, int]] | None = None
) -> dict[Path, tuple[str, str]]:
    """Return the state of each run of this user that is in the queue, and the reason if it is pending.

    Args:
        runs: the runs; those of other users are left out.
        others: further runs whose state is only shown, such as those of other users, by their folder: the id of the
            job, and the number of its user. They are searched in the cluster of this machine, in the same query.
    """
    runs, others = named([run for run in runs if not run.stranger]), others or {}
    clusters = {run.slurm_conf for run in runs if not run.local} | ({None} if others else set())
    found: dict[Path, tuple[str, str]] = {}
    for slurm_conf in clusters:
        users = {user for _, user in others.values()} if slurm_conf is None else ()
        jobs = jobs_by_id(slurm.queue(slurm_conf, users=users))
        ours = [run for run in runs if not run.local and run.slurm_conf == slurm_conf]
        found |= {run.folder: in_words(run.job_id, jobs[run.job_id][0]) for run in ours if run.job_id in jobs}
        shown = others.items() if slurm_conf is None else ()
        found |= {folder: in_words(job_id, jobs[job_id][0]) for folder, (job_id, _) in shown if job_id in jobs}
    return found | {run.folder: state for run in runs if run.folder not in found and (state := state_here(run))}


def state_here(run: Launched) -> tuple[str, str] | None:
    """Return the state of a run on this machine, or of one that a process elsewhere trains; None if it is not
    active."""
    if run.by_hand or (run.local and run.job_id and by_hand.is_elsewhere(run.folder)):
        holder = by_hand.holder_of(run.folder)
        how = "not submitted, " if run.by_hand else ""
        return ("RUNNING", f"{how}on {holder['host']}") if holder else None
    if run.local and run.job_id and is_process(int(run.job_id), b"submitit.local._local"):
        return "RUNNING", ""
    return ("PENDING", "queued on this machine") if run.local and queue_of(run.folder) else None


def jobs_by_id(queue: Sequence[slurm.Queued]) -> dict[str, list[slurm.Queued]]:
    """Return the jobs that run or will resume a run, by the id of its job: the job itself, then its successor jobs."""
    found = {job.job_id: [job] for job in queue}
    for job in queue:
        for before in job.after:
            found.setdefault(before, []).append(job)
    return found


def in_words(job_id: str | None, job: slurm.Queued) -> tuple[str, str]:
    """Return state and reason of a job of the run whose last job has this id; the reason names a successor job."""
    is_own = job.job_id == job_id
    return job.state, job.reason if is_own else f"job {job.job_id} succeeds {job_id}, {job.reason}"


def active(folders: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """Return state and reason of those of these folders that are pending or running runs."""
    return states(readable([f for f in folders if (f / LAUNCH).exists() or (f / ATTEMPTS).exists()])[0])


def is_active(folder: Path) -> bool:
    """Whether a run is pending or running."""
    return folder in active([folder])


def refuse_if_submitted(folder: Path, *, take_over: bool) -> None:
    """Raise ValueError if a submitted job has this run, even if the job is pending, unless `take_over` is set. Without
    Slurm's commands on this machine, print a notice; then only the lock of the run protects it."""
    runs = readable([folder] if (folder / LAUNCH).exists() else [])[0]
    if take_over or not runs or runs[0].stranger:
        return
    (run,) = runs
    if not run.local and not shutil.which("squeue"):
        told = "squeue is not available on this machine to check whether a job is active"
        sys.stderr.write(f"deeplense: {folder} was submitted to Slurm, but {told}\n")
        return
    (run,) = named(runs)
    found = states([run]).get(folder)
    if found is not None:
        what = f"job {run.job_id}" if run.job_id else "a job"
        state = f"{found[0].lower()}{f' ({found[1]})' if found[1] not in ('None', '') else ''}"
        raise ValueError(
            f"{folder} belongs to {what}, which is {state}. Wait for it, or cancel it by `deeplense cancel {folder}`; "
            "--take_over 1 trains here anyway, and the job ends when it detects this."
        )


def accounted(runs: Sequence[Launched]) -> dict[Path, str]:
    """Return the last state in Slurm accounting of runs that are not in the queue and have no final reason recorded."""
    gone = [run for run in runs if run.job_id and not (run.local or run.stranger or is_concluded(run))]
    found: dict[Path, str] = {}
    for slurm_conf in {run.slurm_conf for run in gone}:
        ours = {run.folder: run.job_id for run in gone if run.job_id and run.slurm_conf == slurm_conf}
        told = slurm.accounted(slurm_conf, ours.values())
        found |= {folder: told[job_id] for folder, job_id in ours.items() if job_id in told}
    return found


def readable(folders: Sequence[Path]) -> tuple[list[Launched], list[str]]:
    """Return the runs in these folders, and a note for each run whose record is damaged."""
    runs, damaged = [], []
    for folder in folders:
        try:
            runs.append(launched(folder))
        except (ValueError, OSError) as error:
            damaged.append(f"note: {' '.join(str(error).split())}")
    return runs, damaged


def is_concluded(run: Launched) -> bool:
    """Whether the launcher has recorded that the run is finished, or must not restart since it was submitted."""
    attempts = since(run, newest_attempts(run.folder))
    return (
        bool(attempts)
        and "concluded" in attempts[-1]
        and (is_finished(run.folder) or kind_of(attempts[-1]["ended"] or "") in SETTLED)
    )


NEVER_STARTS = {
    "held": "is held; release it with `scontrol release {job}`, or ask an administrator if one holds it",
    "dependencyneversatisfied": "depends on a job that failed; `deeplense cancel {run}`, then `deeplense resume {run}`",
}
"""Notes on pending jobs that do not start by themselves, by a part of Slurm's reason."""


def standing(run: Launched, state: tuple[str, str] | None, last: str) -> Iterator[str]:
    """Yield why an unfinished run has stopped and how to resume it; nothing if it continues by itself.

    Args:
        state: state and reason in the queue; None if the run is not in the queue.
        last: last state in Slurm accounting; empty if unknown.
    """
    if not stands(run, state, is_over=is_over(run)):
        return
    if state is not None:
        text = next(text for part, text in NEVER_STARTS.items() if part in state[1].lower())
        yield f"note: {shown(run.folder)} {text.format(job=run.job_id, run=shown(run.folder))}"
    else:
        yield f"note: {shown(run.folder)} has stopped: {why_standing(run, last)}; {how_to_go_on(run)}"


def stands(run: Launched, state: tuple[str, str] | None, *, is_over: bool) -> bool:
    """Whether an unfinished run of this user does not continue by itself. `state` is as for `standing`. A run that
    waits for other runs continues when they do, unless its job is held."""
    if run.stranger or is_over or state is None:
        return not (run.stranger or is_over)
    never = state[0] == "PENDING" and any(part in state[1].lower() for part in NEVER_STARTS)
    return never and (is_held(state[1]) or not waited_for(run.folder))


def nobody_continues(run: Launched) -> Iterator[str]:
    """Yield the lines of `standing` for one run. Raises ValueError if the scheduler does not answer."""
    yield from standing(run, states([run]).get(run.folder), accounted([run]).get(run.folder, ""))


def is_over(run: Launched) -> bool:
    """Whether a run, or a job without checkpoints, has finished since it was submitted."""
    return is_finished(run.folder) or ended_well(run, newest_attempts(run.folder))


def why_standing(run: Launched, last: str) -> str:
    """Return why a run has stopped: the reason of its last attempt, and whether another was requested."""
    attempts = newest_attempts(run.folder)
    state = last.split(" ")[0]
    slurm_says = f" (Slurm: {state.lower()})" if state else ""
    if not attempts or attempts[-1]["ended"] == ENDED_WELL:  # that of an earlier submission, as the run is not over
        return f"{f'job {run.job_id}' if run.job_id else 'it'} ended before its first attempt{slurm_says}"
    number, reason = attempts[-1]["attempt"], reason_of_last(run, state)
    if "concluded" in attempts[-1] and kind_of(reason) not in SETTLED and not run.by_hand:
        return f"attempt {number} ended: {reason}; another was requested but did not begin{slurm_says}"
    return f"attempt {number} ended: {reason}"


def reason_of_last(run: Launched, state: str) -> str:
    """Return why the last attempt of a run ended, as far as it can be found out after its script has ended. `state` is
    that in Slurm accounting."""
    attempt = newest_attempts(run.folder)[-1]
    if run.by_hand or run.local:
        return attempt["ended"] or "killed"
    job = Job(f"JobState={state}" if state else "")
    return judge(run.folder, attempt, job, log=run.logs / f"{attempt['job_id']}_0_log.out")


def conclude_last(folder: Path) -> None:
    """Record why the last attempt of a run ended before the run is resubmitted, if its script could not."""
    attempts = read_attempts(folder)
    if not attempts or "concluded" in attempts[-1] or not (folder / LAUNCH).exists():
        return
    run = launched(folder)
    state = accounted([run]).get(folder, "").split(" ")[0]
    end_attempt(folder, len(attempts), reason=reason_of_last(run, state), concluded=True)


def goes_on_from(folder: Path) -> str:
    """Return the step from which a resubmitted run resumes, and the reason of its last attempt, as text."""
    attempts = newest_attempts(folder)
    ended = f"; attempt {attempts[-1]['attempt']} ended: {attempts[-1]['ended']}" if attempts else ""
    return f"; it resumes after step {newest_step(folder)}{ended}" if newest_step(folder) else ended


def how_to_go_on(run: Launched) -> str:
    """Return how to resume a run, as text."""
    return by_hand.how_to_resume(run.folder) if run.by_hand else f"`deeplense resume {shown(run.folder)}` resumes it"


def shown(folder: Path) -> Path:
    """Return a folder relative to the current one, if it is below it."""
    here, path = os.getcwd(), str(folder)
    return Path(path.removeprefix(here).lstrip("/")) if f"{path}/".startswith(f"{here.rstrip('/')}/") else folder
