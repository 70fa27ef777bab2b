"""Submit the stages of a pipeline as jobs of a cluster, or of this machine, that wait for one another."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jobs import verbs
from jobs.runs.folder import LAUNCH
from jobs.settings import require
from launch import parents, status
from launch.checks import check_before_submission
from launch.clusters import Cluster, find_cluster
from launch.pipelines.making import was_submitted
from launch.pipelines.plans import Step
from launch.pipelines.work import Pipeline, refuse_other_run
from launch.submission import Submission
from launch.submit import prepare, prepare_parts, send, send_again

HERE = ("hours", "tasks_per_node", "cpus_per_task", "notify")
"""Options of a stage that also count on this machine."""


def submit_stages(pipeline: Pipeline, on: str, *, allow_untracked: bool) -> int:
    """Submit the stages that are left to do; return the exit code. Nothing is submitted or moved if a check of one of
    them fails."""
    submissions = submissions_of(pipeline, on)
    steps = {step.stage.name: step for step in pipeline.steps}
    lines = {name: list(checked(steps[name], submission)) for name, submission in submissions.items()}
    print("".join(f"{line}\n" for found in lines.values() for line in found), end="")
    pipeline.withdraw()
    pipeline.agree()
    for step in pipeline.steps:
        if step.action == "take":
            pipeline.take(step)
        elif step.stage.name in submissions:
            submit_stage(pipeline, step, submissions[step.stage.name], allow_untracked=allow_untracked)
    return 0


def submissions_of(pipeline: Pipeline, on: str) -> dict[str, Submission]:
    """Return the submission of each stage that is left to do. Raises ValueError if a stage cannot wait for another."""
    found: dict[str, Submission] = {}
    steps = {step.stage.name: step for step in pipeline.steps}
    for step in pipeline.steps:
        if step.action not in ("make", "resume"):
            continue
        stage, waits = step.stage, []
        submission = submission_of(pipeline, step, cluster_of(step, on))
        for name in stage.parents:
            if name in found:
                refuse_apart(stage.name, submission, name, found[name])
                waits += found[name].folders
            elif steps[name].action == "wait":
                waits += [Path(run) for run in (pipeline.records[name] or {})["runs"]]
        found[stage.name] = replace(submission, after=tuple(waits))
    return found


def cluster_of(step: Step, on: str) -> Cluster:
    """Return the cluster of a stage. On this machine, options of Slurm have no meaning and are left out."""
    cluster, options = find_cluster(step.stage.on or on), step.stage.options
    if cluster.executor == "local":
        options = {name: value for name, value in options.items() if name in HERE}
    return cluster.override(**options)


def submission_of(pipeline: Pipeline, step: Step, cluster: Cluster) -> Submission:
    """Return the submission of a stage, without the runs that it waits for."""
    stage, folder = step.stage, pipeline.folder(step.stage.name)
    if stage.parts:
        return prepare_parts(stage.command, cluster, num_parts=stage.parts, folder=folder)
    return prepare(stage.command, cluster, folder=None if stage.verb in verbs.STOPPABLE else folder)


def refuse_apart(name: str, submission: Submission, parent: str, other: Submission) -> None:
    """Raise ValueError if a stage is on another cluster than one that it follows."""
    places = [(each.cluster.executor, each.cluster.slurm_conf) for each in (submission, other)]
    told = f"stage {name} is on {submission.cluster.name} and follows {parent} on {other.cluster.name}"
    require(places[0] == places[1], f"{told}: a job cannot wait for one of another cluster; use one cluster for both.")


def checked(step: Step, submission: Submission) -> list[str]:
    """Return what the checks before a submission say, with the name of the stage. Raises ValueError if one fails."""
    name = step.stage.name
    try:
        refuse_other_run(step)
        return [f"{name}: {line}" for line in check_before_submission(submission)]
    except ValueError as error:
        raise ValueError(f"stage {name}: {error}") from error


def submit_stage(pipeline: Pipeline, step: Step, submission: Submission, *, allow_untracked: bool) -> None:
    """Submit a stage, or resubmit those of its runs that have ended."""
    name, place = step.stage.name, pipeline.steps.index(step) + 1
    left = runs_to_resume(pipeline, step)
    if left:
        if differing := differences(left, submission):
            told = f"note: {name} is resubmitted with the options of its first submission, which now differ in"
            print(f"{told} {', '.join(differing)}; `deeplense resume RUN --hours H --nodes N` can change these two")
        # Resubmission changes the current folder to that of the first submission.
        with contextlib.chdir(Path.cwd()):
            sent = send_again(left, tell=print)
    else:
        if step.action == "make":
            pipeline.begin(step)
        pipeline.note(name, runs=list(map(str, submission.folders)))
        marked = replace(
            submission, stage=(str(pipeline.request.home), place, name, (pipeline.records[name] or {})["mark"])
        )
        sent = dict(zip(marked.folders, send(marked, allow_untracked=allow_untracked), strict=True))
    jobs = job_words(sent)
    waits = parents.unfinished(submission.after)
    after = f", after {', '.join(dict.fromkeys(map(str, map(status.shown, waits))))}" if waits else ""
    print(f"{name}: {jobs}{after}", flush=True)


def runs_to_resume(pipeline: Pipeline, step: Step) -> list[Path]:
    """Return the runs of a stage that were submitted and have ended without being finished; empty if the stage must be
    submitted anew."""
    record = pipeline.records[step.stage.name]
    if step.action != "resume" or record is None or not was_submitted(record):
        return []
    runs = [Path(run) for run in record["runs"]]
    left = [run for run in runs if not parents.is_done(run)]
    active = status.active(left)
    return [run for run in left if run not in active] if all((run / LAUNCH).exists() for run in left) else []


def differences(runs: Sequence[Path], submission: Submission) -> list[str]:
    """Return the names of the options of the cluster that differ from those with which the first of these runs was
    submitted; of two clusters, only that they differ."""
    before = parents.read_launch(runs[0]).get("cluster") or {}
    now = json.loads(json.dumps(asdict(submission.cluster)))
    differing = [name for name in now if name in before and now[name] != before[name]]
    return ["on"] if "name" in differing else differing


def job_words(sent: Mapping[Path, str | None]) -> str:
    """Describe the jobs of a stage: its id, or that of the first and how many there are."""
    ids = list(sent.values())
    told = f"submitted as job {ids[0]}" if ids[0] else "queued on this machine"
    return told if len(ids) == 1 else f"{told} and {len(ids) - 1} more"
