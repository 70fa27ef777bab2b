"""Submit jobs to a cluster or to this machine with submitit, and record what is needed to resume them."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deeplense.files import replacing
from jobs import command_line, verbs
from jobs.runs.claim import refuse_if_trained
from jobs.runs.folder import CODE, FINISHED, LAUNCH, LOGS, check_run, open_run
from jobs.settings import require
from launch import chains, parents, queue, slurm, status
from launch.clusters import Cluster
from launch.here import start_run
from launch.record import again, keep, own, record, told_in
from launch.script import FOLDERS, job_environment, submitit_script
from launch.snapshot import take_snapshot
from launch.submission import Submission
from launch.task import Run
from launch.widths import Nodes

LAUNCHES = Path("launches")
SCRIPT = "submission.sh"
"""Name, among the logs, of the batch script that was last submitted with sbatch."""
QUEUE_LOG = "queue.txt"
"""Name, among the logs, of the log of the process that starts several runs on this machine one after another."""


def prepare(command: Sequence[str], cluster: Cluster, *, folder: Path | None = None) -> Submission:
    """Return the submission of a job, without writing anything. Exits, with a line on stderr, if settings are
    invalid."""
    settings = command_line.parse(command[0], command[1:])
    require(
        folder is None or command[0] not in verbs.STOPPABLE,
        f"--folder is only for jobs without --run; {command[0]} uses the folder of its --run, so leave --folder out.",
    )
    home = (folder or home_of(command[0], settings)).absolute()
    return Submission(cluster, (tuple(command),), (home,), home / LOGS, home / CODE)


def home_of(job: str, settings: Any) -> Path:
    """Return the folder for logs and attempts of a job: its run folder, or a new one below launches/."""
    return settings.run if job in verbs.STOPPABLE else LAUNCHES / f"{job.replace(' ', '-')}-{now()}"


def now() -> str:
    """Return the current time in a form for file names."""
    return time.strftime("%Y%m%d-%H%M%S")


def prepare_sweep(commands: Sequence[Sequence[str]], cluster: Cluster, *, folder: Path | None = None) -> Submission:
    """Return the submission of the unfinished runs of a sweep as one job array. Exits if any settings are invalid."""
    settings = [command_line.parse(command[0], command[1:]) for command in commands]
    require(commands[0][0] in verbs.STOPPABLE, f"{commands[0][0]} has no --run; a sweep needs a job with --run.")
    left = [place for place, each in enumerate(settings) if not (each.run / FINISHED).exists()]
    require(bool(left), f"all {len(commands)} runs of the sweep are finished.")
    home = (folder or LAUNCHES / f"sweep-{now()}").absolute()
    folders = tuple(settings[place].run.absolute() for place in left)
    return Submission(cluster, tuple(tuple(commands[place]) for place in left), folders, home / LOGS, home / CODE)


def prepare_parts(
    command: Sequence[str], cluster: Cluster, *, num_parts: int, folder: Path | None = None
) -> Submission:
    """Return the submission of a job that is split across a job array. Exits if the settings are invalid."""
    job, settings = command[0], command_line.parse(command[0], command[1:])
    require(job in verbs.DIVISIBLE, f"{job} cannot be split; --parts is only for {' and '.join(verbs.DIVISIBLE)}.")
    require(settings.part is None, f"--parts {num_parts} sets --part of each task; leave --part={settings.part} out.")
    home = (folder or home_of(job, settings)).absolute()
    numbers = range(1, num_parts + 1)
    commands = tuple((*command, f"--part={number}/{num_parts}") for number in numbers)
    folders = tuple(home / f"part-{number:0{len(str(num_parts))}}" for number in numbers)
    return Submission(cluster, commands, folders, home / LOGS, home / CODE)


def prepare_spread(command: Sequence[str], cluster: Cluster, *, folder: Path | None = None) -> Submission:
    """Return the submission of the unfinished runs of a job with many runs, as one job array. Exits if the settings are
    invalid."""
    job, settings = command[0], command_line.parse(command[0], command[1:])
    runs = verbs.work_of(job).runs_left(settings)  # type: ignore[attr-defined]
    require(
        bool(runs), f"all runs in {settings.output} are finished; run the command without `submit` to make the table."
    )
    home = (folder or home_of(job, settings)).absolute()
    commands = tuple((*command, f"--only={name}") for name in runs)
    return Submission(cluster, commands, tuple(run.absolute() for run in runs.values()), home / LOGS, home / CODE)


def send(submission: Submission, *, allow_untracked: bool = False, keep_code: bool = False) -> list[str | None]:
    """Submit all runs, as one job array if there are several. Return the job id of each, None for runs that are queued
    on this machine. Jobs that wait for an earlier job of one of these runs wait for the new one from then on."""
    before = {folder: parents.jobs_of_run(folder) for folder in submission.folders}
    submission = chains.with_dependency(submission)
    set_up(submission, allow_untracked=allow_untracked, keep_code=keep_code)
    if submission.cluster.executor != "slurm":
        return send_to_this_machine(submission)
    job_ids = send_to_slurm(submission)
    new = dict(zip(submission.folders, job_ids, strict=True))
    for folder, job_id in new.items():
        keep(folder, told_in(folder) | {"job_id": job_id})
    old = {job_id: new[folder] for folder, ids in before.items() for job_id in ids if job_id != new[folder]}
    chains.move_or_tell(submission.cluster.slurm_conf, old)
    return list(job_ids)


def set_up(submission: Submission, *, allow_untracked: bool = False, keep_code: bool = False) -> None:
    """Create the folders with all files that the job needs. Raises ValueError if a run is active or finished."""
    for folder in submission.folders:
        require(not (folder / FINISHED).exists(), f"{folder} is finished; evaluate it, or use another --run.")
        if (folder / LAUNCH).exists():
            own(folder)
    for folder in status.active(submission.folders):
        raise ValueError(f"{folder} is already pending or running; cancel it with `deeplense cancel {folder}`.")
    # Check all runs of an array before the first folder is created.
    check_runs(submission)
    open_runs(submission)
    submission.logs.mkdir(parents=True, exist_ok=True)
    if not keep_code:
        take_snapshot(submission.code, allow_untracked=allow_untracked)
    (submission.logs / FOLDERS).write_text("".join(f"{folder}\n" for folder in submission.folders))
    for place, folder in enumerate(submission.folders):
        status.conclude_last(folder)
        record(submission, place)


def check_runs(submission: Submission) -> None:
    """Raise ValueError if a training cannot start or resume in its folder, or is running there."""
    for command, settings, folder in zip(submission.commands, submission.settings, submission.folders, strict=True):
        if command[0] in verbs.TRAININGS:
            check_run(folder, settings)
            refuse_if_trained(folder, take_over=bool(settings.take_over))


def open_runs(submission: Submission) -> None:
    """Create the run folders, or check that they are runs with the same settings."""
    for command, settings, folder in zip(submission.commands, submission.settings, submission.folders, strict=True):
        if command[0] in verbs.TRAININGS:
            open_run(folder, settings)
        folder.mkdir(parents=True, exist_ok=True)


def send_to_slurm(submission: Submission) -> list[str]:
    """Submit with sbatch, several runs as one job array; return the job ids."""
    write_pickles(submission)
    script = submission.logs / SCRIPT
    with replacing(script) as temporary:
        temporary.write_text(submitit_script(submission))
    job_id = slurm.send(submission.cluster.slurm_conf, script, submission.logs)
    several = len(submission.commands) > 1
    return [f"{job_id}_{place}" if several else job_id for place in range(len(submission.commands))]


def write_pickles(submission: Submission) -> None:
    """Write the pickles that submitit runs before the job is submitted, so that the job can run even if the answer of
    sbatch is lost."""
    from submitit.core.utils import DelayedSubmission

    for place, command in enumerate(submission.commands):
        path = submission.pickle_of(place)
        DelayedSubmission(Run(command[0], tuple(command[1:]))).dump(path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


def send_to_this_machine(submission: Submission) -> list[str | None]:
    """Submit with submitit's local executor; several runs execute one after another, and each after those that it waits
    for."""
    at_once = len(submission.folders) == 1 and not parents.unfinished(submission.after)
    return [start_run(submission)] if at_once else queue_up([submission])


def checked(submission: Submission) -> Iterator[str]:
    """Yield notes for the user on a run that is resubmitted. Raises ValueError if it would fail or never start."""
    from launch.checks import check_before_submission

    yield from (line for line in check_before_submission(submission) if line.startswith("note: "))


def queue_up(submissions: Sequence[Submission]) -> list[str | None]:
    """Queue runs that are set up, to execute one after another on this machine."""
    first, folders = submissions[0], [folder for submission in submissions for folder in submission.folders]
    code = {"PYTHONPATH": job_environment(first, folders[0])["PYTHONPATH"]}
    queue.start(folders, log=first.logs / QUEUE_LOG, environment=code)
    return [None] * len(folders)


def send_again(
    runs: Sequence[Path],
    *,
    hours: float | None = None,
    nodes: Nodes | None = None,
    update_code: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[Path, str | None]:
    """Resubmit runs that have ended. Return the job id of each, None for runs that are queued on this machine. Call
    `tell` with each note for the user. Raises ValueError if a run cannot be resubmitted; those before it have been."""
    sent: dict[Path, str | None] = {}
    here = []
    for run in chains.parents_first(runs):
        submission = again(run, hours=hours, nodes=nodes, update_code=update_code)
        notes = checked(submission) if hours or nodes else ()
        for line in [*(f"note: {run}: {line}" for line in submission.left_out), *notes]:
            tell(line)
        waits = bool(parents.unfinished(submission.after))
        if submission.cluster.executor == "local" and (len(runs) > 1 or waits):
            set_up(submission, keep_code=not update_code)
            here.append(submission)
            sent[run] = None
        else:
            (sent[run],) = send(submission, keep_code=not update_code)
    if here:
        queue_up(here)
    return sent
