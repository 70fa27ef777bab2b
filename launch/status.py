"""State of runs, their current step, and why their last attempt ended. One query to the scheduler serves all runs."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeplense.files import find_below
from jobs.imports import PYTHON
from jobs.runs.attempts import ATTEMPTS, end_attempt, newest_step, read_attempts
from jobs.runs.folder import LAUNCH, LOCK, WANDB_ID, is_finished, read_wandb_id
from jobs.runs.progress import read_progress
from jobs.settings import require
from launch import by_hand, slurm, waiting
from launch.ends import FINISHED as ENDED_WELL
from launch.ends import SETTLED, kind_of
from launch.judging import Job, judge
from launch.parents import waited_for
from launch.record import Launched, is_process, keep, launched, own, queue_of, stranger_of, told_in
from launch.script import FOLDERS

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_PER_QUESTION = 10
MOST_NOTES = 20
HEAD = ("RUN", "STATE", "ATTEMPT", "STEP", "RATE", "TIME LEFT", "LAST END")


def find_launched(roots: Sequence[Path]) -> list[Path]:
    """Return the folders of all runs in or below these, both submitted and started directly."""
    found = (path.parent for root in roots for name in (LAUNCH, ATTEMPTS) for path in find_below(root, name))
    return list(dict.fromkeys(found))


def named(runs: Sequence[Launched]) -> list[Launched]:
    """Return the same runs, with job ids from the queue for those whose record has none."""
    ids: dict[Path, list[str]] = {}
    for slurm_conf in {run.slurm_conf for run in runs if run.unnamed and not run.stranger}:
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


def states(runs: Sequence[Launched]) -> dict[Path, tuple[str, str]]:
    """Return the state of each run of this user that is in the queue, and the reason if it is pending."""
    found: dict[Path, tuple[str, str]] = {}
    runs = named([run for run in runs if not run.stranger])
    for slurm_conf in {run.slurm_conf for run in runs if not run.local}:
        queue = slurm.queue(slurm_conf)
        ours = [run for run in runs if not run.local and run.slurm_conf == slurm_conf]
        found |= {run.folder: in_words(run, jobs[0]) for run in ours if (jobs := jobs_of(run, queue))}
    for run in runs:
        if run.by_hand:
            holder = by_hand.holder_of(run.folder)
            found |= {run.folder: ("RUNNING", f"not submitted, on {holder['host']}")} if holder else {}
        elif run.local and run.job_id and is_process(int(run.job_id), b"submitit.local._local"):
            found[run.folder] = ("RUNNING", "")
        elif run.local and queue_of(run.folder):
            found[run.folder] = ("PENDING", "queued on this machine")
    return found


def jobs_of(run: Launched, queue: Sequence[slurm.Queued]) -> list[slurm.Queued]:
    """Return the jobs of a run in the queue: its own, then its successor jobs."""
    own = [job for job in queue if job.job_id == run.job_id]
    return own + [job for job in queue if run.job_id in job.after]


def in_words(run: Launched, job: slurm.Queued) -> tuple[str, str]:
    """Return state and reason of a job of a run; the reason names a successor job."""
    is_own = job.job_id == run.job_id
    return job.state, job.reason if is_own else f"job {job.job_id} succeeds {run.job_id}, {job.reason}"


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


def table(folders: Sequence[Path]) -> list[str]:
    """Return a table of runs with a header line, then a note for each stopped run: why, and how to resume it."""
    runs, damaged = readable(folders)
    runs = named(runs)
    found = states(runs)
    last = accounted([run for run in runs if run.folder not in found])
    told_of = {run.folder: waiting.explained(run.folder, found.get(run.folder)) for run in runs}
    rows = [HEAD, *(row(run, told_of[run.folder], last.get(run.folder, "")) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = [line for run in runs for line in standing(run, found.get(run.folder), last.get(run.folder, ""))]
    told += [line for folder in found for line in waiting.notes(folder, found, looked_for=told_of)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in rows]
    more = [f"note: and {len(told) - MOST_NOTES} more"] * (len(told) > MOST_NOTES)
    chains = list(waiting.pipelines([run.folder for run in runs], found))
    return lines + chains + told[:MOST_NOTES] + more + damaged


def accounted(runs: Sequence[Launched]) -> dict[Path, str]:
    """Return the last state in Slurm accounting of runs that are not in the queue and have no final reason recorded."""
    gone = [run for run in runs if run.job_id and not (run.local or run.stranger or is_concluded(run.folder))]
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


def is_concluded(folder: Path) -> bool:
    """Whether the launcher has recorded that the run is finished or must not restart."""
    attempts = read_attempts(folder)
    return (
        bool(attempts)
        and "concluded" in attempts[-1]
        and (is_finished(folder) or kind_of(attempts[-1]["ended"] or "") in SETTLED)
    )


def row(run: Launched, state: tuple[str, str] | None, accounted: str) -> tuple[str, ...]:
    """Return the table row of a run."""
    attempts = read_attempts(run.folder)
    progress = read_progress(run.folder)
    running = state is not None and state[0] == "RUNNING"
    # The progress file is written only at intervals; a checkpoint may be newer.
    done = max(progress["step"], newest_step(run.folder)) if progress else 0
    step = f"{done}/{progress['total']}" if progress else "-"
    rate = f"{progress['rate']:.1f}/s" if progress and running else "-"
    left = (
        duration((progress["total"] - progress["step"]) / progress["rate"])
        if running and progress and progress["rate"]
        else "-"
    )
    ends = [attempt["ended"] for attempt in attempts if attempt["ended"]]
    return (
        str(shown(run.folder)),
        state_of(run, attempts, state, accounted),
        str(len(attempts)),
        step,
        rate,
        left,
        ends[-1] if ends else "-",
    )


def state_of(run: Launched, attempts: Sequence[dict[str, Any]], state: tuple[str, str] | None, accounted: str) -> str:
    """Return the state of a run, with the reason of the scheduler if it is pending."""
    if is_finished(run.folder):
        return "finished"
    if state is not None:
        has_reason = (state[0] == "PENDING" or run.by_hand) and state[1] not in ("None", "")
        return state[0].lower() + (f" ({state[1]})" if has_reason else "")
    if attempts and attempts[-1]["ended"] == ENDED_WELL:
        return "finished"
    if run.stranger:
        return f"not checked (writable by {run.stranger})"
    return accounted.split(" ")[0].lower() or "not running"


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
    if run.stranger or is_over(run.folder):
        return
    if state is not None and waited_for(run.folder):
        return
    if state is not None:
        for part, text in NEVER_STARTS.items():
            if state[0] == "PENDING" and part in state[1].lower():
                yield f"note: {shown(run.folder)} {text.format(job=run.job_id, run=shown(run.folder))}"
    else:
        yield f"note: {shown(run.folder)} has stopped: {why_standing(run, last)}; {how_to_go_on(run)}"


def nobody_continues(run: Launched) -> Iterator[str]:
    """Yield the lines of `standing` for one run. Raises ValueError if the scheduler does not answer."""
    yield from standing(run, states([run]).get(run.folder), accounted([run]).get(run.folder, ""))


def is_over(folder: Path) -> bool:
    """Whether a run, or a job without checkpoints, has finished."""
    attempts = read_attempts(folder)
    return is_finished(folder) or (bool(attempts) and attempts[-1]["ended"] == ENDED_WELL)


def why_standing(run: Launched, last: str) -> str:
    """Return why a run has stopped: the reason of its last attempt, and whether another was requested."""
    attempts = read_attempts(run.folder)
    state = last.split(" ")[0]
    slurm_says = f" (Slurm: {state.lower()})" if state else ""
    if not attempts:
        return f"{f'job {run.job_id}' if run.job_id else 'it'} ended before its first attempt{slurm_says}"
    number, reason = len(attempts), reason_of_last(run, state)
    if "concluded" in attempts[-1] and kind_of(reason) not in SETTLED and not run.by_hand:
        return f"attempt {number} ended: {reason}; another was requested but did not begin{slurm_says}"
    return f"attempt {number} ended: {reason}"


def reason_of_last(run: Launched, state: str) -> str:
    """Return why the last attempt of a run ended, as far as it can be found out after its script has ended. `state` is
    that in Slurm accounting."""
    attempt = read_attempts(run.folder)[-1]
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
    attempts = read_attempts(folder)
    ended = f"; attempt {len(attempts)} ended: {attempts[-1]['ended']}" if attempts else ""
    return f"; it resumes after step {newest_step(folder)}{ended}" if newest_step(folder) else ended


def how_to_go_on(run: Launched) -> str:
    """Return how to resume a run, as text."""
    return by_hand.how_to_resume(run.folder) if run.by_hand else f"`deeplense resume {shown(run.folder)}` resumes it"


def shown(folder: Path) -> Path:
    """Return a folder relative to the current one, if it is below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def log_of(run: Launched, rank: int) -> Path:
    """Return the log of a rank; that of rank 0 also contains the output of the batch script."""
    return run.logs / f"{run.job_id}_{rank}_log.out"


def follow(run: Launched, rank: int) -> Iterator[str]:
    """Yield new text of a log until the run has left the queue. It continues if the scheduler does not answer for a
    while."""
    place, ending, reported = 0, False, False
    for look in itertools.count():
        # The name of the log is known only after a queued run has started.
        run = run if run.job_id else launched(run.folder)
        path = log_of(run, rank)
        if path.exists():
            with path.open(errors="replace") as file:
                file.seek(place)
                yield file.read()
                place = file.tell()
        if ending:
            return
        # Query Slurm less often than the file.
        if run.local or look % LOOKS_PER_QUESTION == 0:
            ending, problem = has_left(run)
            if problem and not reported:
                note = f"note: {problem}. Still following the log; Ctrl-C ends this command but not the run."
                print(note, file=sys.stderr, flush=True)
            reported = bool(problem)
        time.sleep(0 if ending else SECONDS_BETWEEN_LOOKS)


def has_left(run: Launched) -> tuple[bool, str]:
    """Return whether a run has left the queue, and the error if the scheduler does not answer."""
    try:
        return run.folder not in states([run]), ""
    except ValueError as error:
        return False, str(error).rstrip(".")


def to_cancel(folder: Path) -> list[Launched]:
    """Return the run in a folder or, if the folder is not a run, the pending and running runs below it. Raises
    ValueError if there are none."""
    below = find_launched([folder])
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
    queues = {slurm_conf: slurm.queue(slurm_conf) for slurm_conf in {run.slurm_conf for run in ended}}
    ended = named(ended)
    jobs = {run.folder: jobs_of(run, queues[run.slurm_conf]) for run in ended}
    ended = [run for run in ended if jobs[run.folder]]
    for slurm_conf in {run.slurm_conf for run in ended}:
        ours = [job.job_id for run in ended if run.slurm_conf == slurm_conf for job in jobs[run.folder]]
        # Cancel successor jobs first, so that they do not start in between.
        slurm.ask(slurm_conf, "scancel", *reversed(ours))
    for run in ended:
        keep(run.folder, told_in(run.folder) | {"cancelled": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    return ended + [run for run in runs if (run.local or run.by_hand) and cancel_here(run)]


def cancel_here(run: Launched) -> bool:
    """Cancel a run on this machine, submitted or started directly; return whether it was active."""
    if run.by_hand:
        lock = run.folder / LOCK
        stranger = stranger_of(lock) if lock.exists() else None
        require(stranger is None, f"{run.folder} is being trained by {stranger}; only that user can stop it.")
        by_hand.stop(run.folder)
    elif queue_of(run.folder):
        keep(run.folder, told_in(run.folder) | {"queue": None})
    elif run.folder in states([run]):
        os.kill(int(run.job_id or 0), signal.SIGTERM)
    else:
        return False
    return True


def sync(folder: Path) -> int:
    """Upload the offline logs of all attempts to one run of Weights & Biases; return the number of attempts."""
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    if parts:
        # Each line contains its step, so steps that an attempt repeats after a kill give the same lines again.
        known = read_wandb_id(folder)
        if known is None:
            raise ValueError(
                f"{folder / WANDB_ID} is missing or damaged; run the same command of the run again to recreate it."
            )
        number = ["--id", known]
        subprocess.run([*PYTHON, "-m", "wandb", "sync", "--yes", *number, *map(str, parts)], check=True)
    return len(parts)
