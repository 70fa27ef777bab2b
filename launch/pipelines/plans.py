"""What has to be done for each stage of a pipeline: pure functions of the stages and of what is known of them."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.settings import FREE, plain, plain_values
from jobs.verbs import DIVISIBLE, SPREAD, STOPPABLE
from launch.pipelines.stages import Stage

State = Literal["new", "found", "done", "active", "stopped"]
"""State of a stage: never submitted or started; the same, but other commands have made its results; finished;
pending or running; neither finished nor active."""
Action = Literal["keep", "take", "wait", "resume", "make"]
"""What to do: nothing, as the stage is finished; record that it is finished; nothing, as it is pending or running;
resume it; make its results, after those of an earlier making are moved aside."""

GO_ON = (*STOPPABLE, *DIVISIBLE, *SPREAD, "benchmark selection")
"""Jobs that go on with, or refuse, results of the same name that no stage has made; other jobs overwrite them."""


@dataclass(frozen=True)
class Known:
    """What is known of a stage from earlier commands.

    Args:
        state: its state.
        settings: the settings that count, by name, when its results were made.
        parents: name of each of its parents then, and the mark of the making of their results.
        mark: mark of the making of its own results.
        lost: results of a finished stage that do not exist any more.
    """

    state: State = "new"
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    lost: Sequence[Path] = ()


@dataclass(frozen=True)
class Step:
    """What to do for a stage, and why, in words. `moves`: its existing results are moved aside before it is made."""

    stage: Stage
    action: Action
    why: str
    moves: bool = False


def plan(stages: Sequence[Stage], known: Mapping[str, Known], again: Collection[str] = ()) -> list[Step]:
    """Return what to do for each stage. A stage is made again if its settings have changed, if its results are gone, if
    it is asked for, or if a stage that it follows is or was made again; nothing else is.

    Args:
        stages: the stages, each after its parents.
        known: what is known of each stage.
        again: names of stages to make again in any case.
    """
    steps: dict[str, Step] = {}
    for stage in stages:
        steps[stage.name] = step_of(stage, known, steps, again)
    return list(steps.values())


def step_of(stage: Stage, known: Mapping[str, Known], before: Mapping[str, Step], again: Collection[str]) -> Step:
    """Return what to do for a stage, given the steps of its parents."""
    ours = known[stage.name]
    if ours.state == "found" and stage.name not in again:
        return Step(stage, "take", "finished by other commands")
    if ours.state == "new":
        return Step(stage, "make", "not made yet", moves=stage.verb not in GO_ON)
    if reason := why_again(stage, known, before, again):
        return Step(stage, "make", reason, moves=True)
    if ours.state == "stopped":
        return Step(stage, "resume", "not finished")
    return Step(stage, "keep", "finished") if ours.state == "done" else Step(stage, "wait", "pending or running")


def why_again(stage: Stage, known: Mapping[str, Known], before: Mapping[str, Step], again: Collection[str]) -> str:
    """Return why a stage must be made again; empty if it need not be."""
    ours = known[stage.name]
    if stage.name in again:
        return "asked for by --again"
    if changes := changed(ours.settings, that_count(stage), defaults_of(stage.settings)):
        return f"changed: {', '.join(changes)}"
    made = [name for name in stage.parents if before[name].action == "make"]
    made += [name for name in stage.parents if name in ours.parents and ours.parents[name] != known[name].mark]
    if made:
        return f"follows {', '.join(dict.fromkeys(made))}, made again"
    return f"{ours.lost[0]} is gone" if ours.lost else ""


def that_count(stage: Stage) -> dict[str, Any]:
    """Return the job of a stage and those of its settings that affect results, as plain values."""
    free = {known.name for known in dataclasses.fields(stage.settings) if known.metadata.get("free") == FREE["free"]}
    return {"job": stage.verb} | {name: value for name, value in plain(stage.settings).items() if name not in free}


def defaults_of(settings: Any) -> dict[str, Any]:
    """Return the default values of settings, as plain values."""
    fields = dataclasses.fields(settings)
    return plain_values({known.name: known.default for known in fields if known.default is not dataclasses.MISSING})


def changed(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, in words. One that was not recorded, because an earlier version did not have it,
    had its default value."""
    if before.get("job") != now["job"]:
        return [f"job {before.get('job')} -> {now['job']}"]
    old = {name: before.get(name, defaults.get(name, value)) for name, value in now.items()}
    return [f"{name} {old[name]} -> {now[name]}" for name in now if as_stored(old[name]) != as_stored(now[name])]


def as_stored(value: Any) -> Any:
    """Return a value as it is after it was stored in a record."""
    return json.loads(json.dumps(value, default=str))


def moved_aside(step: Step) -> list[Path]:
    """Return the existing results that a step would otherwise overwrite or take for its own."""
    return [path for path in step.stage.results if path.exists()] if step.moves else []


def outermost(paths: Sequence[Path]) -> list[Path]:
    """Return paths without those that are in another of them."""
    return [path for path in dict.fromkeys(paths) if not any(other in path.parents for other in paths)]


def table(steps: Sequence[Step]) -> list[str]:
    """Return a table of steps: a header line, then one line per stage."""
    words: Mapping[Action, str] = {"keep": "-", "take": "-", "wait": "-", "resume": "resume", "make": "run"}
    rows = [("STAGE", "DO", "WHY", "AFTER")]
    rows += [(each.stage.name, words[each.action], each.why, ", ".join(each.stage.parents) or "-") for each in steps]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
