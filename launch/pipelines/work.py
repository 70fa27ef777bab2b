"""Run the stages of a pipeline: here, one after another, or as jobs of a cluster that depend on one another."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplense.locks import in_words
from jobs.run_job import checked_settings
from jobs.runs.attempts import EXIT_STOPPED, read_attempts
from jobs.runs.folder import check_run
from jobs.settings import require
from jobs.verbs import STOPPABLE, TRAININGS
from launch import by_hand, parents, status
from launch.cancelling import cancel_all
from launch.clusters import nearest
from launch.first_checks import check_at_once
from launch.job import refuse_taken
from launch.local import Group
from launch.pipelines.making import (
    known_of,
    move_aside,
    new_record,
    read_stage_record,
    refuse_other_pipeline,
    write_stage_record,
)
from launch.pipelines.plans import Step, moved_aside, outermost, plan, table
from launch.pipelines.stages import Kind, read_pipeline
from launch.record import launched


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Args:
        file: the file of the pipeline.
        on: name of a cluster profile; None to run the stages here.
        again: names of stages to make again in any case.
        home: folder of the records, as a full path.
        options: types of the options of a cluster, by name.
    """

    file: Path
    on: str | None
    again: tuple[str, ...]
    home: Path
    options: Mapping[str, Kind]


class Pipeline:
    """The stages of a file with their records, and what is to be done for each."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.now = time.strftime("%Y%m%d-%H%M%S")
        self.stages = read_pipeline(request.file, request.options)
        names = [stage.name for stage in self.stages]
        for name in request.again:
            require(name in names, f"--again names {name!r}, which is no stage. {nearest(name, names)}")
        self.records = {name: read_stage_record(self.folder(name)) for name in names}
        refuse_other_pipeline(self.records, self.path, request.home)
        self.steps = plan(self.stages, known_of(self.stages, self.records), request.again)

    @property
    def path(self) -> Path:
        """The full path of the file."""
        return self.request.file.absolute()

    def folder(self, name: str) -> Path:
        """Return the folder of the record of a stage."""
        return self.request.home / name

    def describe(self) -> list[str]:
        """Return what is to be done, as lines."""
        moved = outermost([path for step in self.steps for path in moved_aside(step)])
        return table(self.steps) + [f"note: {status.shown(path)} will be moved aside, not deleted" for path in moved]

    def note(self, name: str, **values: Any) -> None:
        """Change the record of a stage."""
        record = {**(self.records[name] or {}), **values}
        self.records[name] = record
        write_stage_record(self.folder(name), record)

    def begin(self, step: Step) -> None:
        """Write the record of a stage that is about to be made, after its earlier results were moved aside."""
        for place in move_aside(step, self.now):
            print(f"{step.stage.name}: the earlier result is now in {status.shown(place)}")
        self.note(step.stage.name, **new_record(step.stage, self.path, self.records))

    def agree(self) -> None:
        """Record the stages that those left alone follow, where the file names others than when they were made."""
        for step in self.steps:
            name, record = step.stage.name, self.records[step.stage.name]
            if (
                step.action in ("keep", "wait", "resume")
                and record
                and set(record["parents"]) != set(step.stage.parents)
            ):
                marks = {parent: (self.records[parent] or {}).get("mark", "") for parent in step.stage.parents}
                self.note(name, parents=marks)

    def take(self, step: Step) -> None:
        """Record that other commands have made the results of a stage."""
        self.note(step.stage.name, **new_record(step.stage, self.path, self.records) | {"finished": True})

    def withdraw(self) -> None:
        """Cancel jobs of stages that will be made again, if they have not started. Raises ValueError if one has, or if
        other commands have continued a training whose folder would be moved."""
        again = [step for step in self.steps if step.moves]
        ours = {Path(run): step for step in again for run in (self.records[step.stage.name] or {}).get("runs", ())}
        runs = {path: step for step in again if step.stage.verb in STOPPABLE for path in step.stage.results} | ours
        active = status.active([run for run in runs if not parents.is_done(run)])
        for run, step in runs.items():
            told = f"stage {step.stage.name} has to be made again, but {status.shown(run)}"
            if run in active and (run not in ours or has_attempt(run)):
                remedy = f"cancel it first: `deeplense cancel {status.shown(run)}`"
                raise ValueError(f"{told} {in_the_queue(run, active[run][0])}; {remedy}.")
            if holder := by_hand.holder_of(run):
                raise ValueError(f"{told} is being trained by {in_words(holder)}; stop that first.")
        waiting = [launched(run) for run in active]
        if waiting:
            cancel_all(waiting)
            wait_until_gone([run.folder for run in waiting])


def refuse_other_run(step: Step) -> None:
    """Raise ValueError if a stage would train in a folder that is not moved and has a run with other settings, or other
    files."""
    if step.stage.verb in TRAININGS and not step.moves:
        check_run(step.stage.settings.run, step.stage.settings)


def in_the_queue(run: Path, state: str) -> str:
    """Return in words what an active run does that must not be moved."""
    if state != "PENDING":
        return "is running"
    return "has run and is pending again" if has_attempt(run) else "is pending, submitted by another command"


def has_attempt(run: Path) -> bool:
    """Whether a run has begun an attempt since it was submitted."""
    return len(read_attempts(run)) > (parents.read_launch(run).get("attempts_before") or 0)


def wait_until_gone(folders: Sequence[Path], *, seconds: float = 60.0) -> None:
    """Wait until the jobs of runs that were cancelled have left the queue. Raises ValueError if they do not."""
    deadline = time.monotonic() + seconds
    while left := status.active(folders):
        told = f"{status.shown(next(iter(left)))} was cancelled but is still in the queue"
        require(time.monotonic() < deadline, f"{told}; type the command again in a minute.")
        time.sleep(0.5)


def run_here(pipeline: Pipeline) -> int:
    """Run the stages one after another in this terminal, up to the first failure; return its exit code."""
    for step in pipeline.steps:
        running = step.action == "wait"
        told = f"stage {step.stage.name} is pending or running as a job"
        require(not running, f"{told}; wait for it, or give --on to submit the stages after it.")
    pipeline.withdraw()
    pipeline.agree()
    group = Group()
    for step in pipeline.steps:
        if step.action == "take":
            pipeline.take(step)
        if step.action in ("make", "resume") and (code := run_stage(pipeline, step, group)):
            how = "failed" if group.forwarded is None and code != EXIT_STOPPED else "was stopped"
            print(f"stage {step.stage.name} {how} (exit code {code}); the same command continues with it", flush=True)
            return code
    return 0


def run_stage(pipeline: Pipeline, step: Step, group: Group) -> int:
    """Run one stage in a process of its own; return its exit code."""
    stage = step.stage
    refuse_other_run(step)
    if step.action == "make":
        pipeline.begin(step)
    print(f"== stage {stage.name}: deeplense {' '.join(stage.command)}", flush=True)
    settings = checked_settings(stage.command)
    check_at_once(stage.verb, settings, num_processes=1)
    refuse_taken(stage.verb, settings)
    group.start(stage.command, 1)
    code = group.wait()
    if code == 0:
        pipeline.note(stage.name, finished=True)
    return code
