"""What `deeplense status` says of runs that wait for other runs."""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.runs.folder import LAUNCH
from launch import status
from launch.findings import printable
from launch.parents import is_done, read_launch, waited_for
from launch.slurm import is_held

STAGE = (str, int, str, str)
"""Types of the values that the record of a run has for its stage."""
State = tuple[str, str]
"""State of a job in the queue, and the reason if it is pending."""


def shown(folder: Path) -> Path:
    """Return a folder relative to the current one, if it is below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def explained(folder: Path, state: State | None) -> State | None:
    """Return the state of a run, where the reason of a pending one names the runs that it waits for, if any. That it is
    held stays, as it then does not start after them."""
    left = waited_for(folder) if state and state[0] == "PENDING" and not is_held(state[1]) else []
    if state is None or not left:
        return state
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return state[0], f"after {shown(left[0])}{more}"


def notes(folder: Path, states: Mapping[Path, State], *, looked_for: Container[Path]) -> Iterator[str]:
    """Yield a line if a run waits for runs that nobody continues.

    Args:
        states: states of runs in the queue, with the reason of those that are pending.
        looked_for: the runs that were looked for in the queue; those without a state have stopped. Of others it is
            asked only if Slurm says that the dependency is never satisfied.
    """
    hopeless = "neversatisfied" in states[folder][1].lower()
    left = [parent for parent in waited_for(folder) if parent not in states]
    stopped = [parent for parent in left if parent in looked_for]
    stopped += not_continued([parent for parent in left if parent not in looked_for]) if hopeless else []
    if stopped:
        told = f"note: {shown(folder)} waits for {', '.join(map(str, map(shown, stopped)))}, not running"
        yield printable(f"{told}; `deeplense resume {' '.join(map(str, map(shown, stopped)))}` continues both")


def not_continued(folders: Sequence[Path]) -> list[Path]:
    """Return those of these runs that are neither pending nor running; none if the scheduler does not answer."""
    try:
        active = status.active(folders)
    except ValueError:
        return []
    return [folder for folder in folders if folder not in active]


class Told(NamedTuple):
    """What the record of a run says about its stage: the folder of the records of the pipeline, the place and the name
    of the stage, and the mark of the making, which begins with its time."""

    home: str
    place: int
    name: str
    mark: str


def told_by(folder: Path) -> Told | None:
    """Return what the record of a run says about its stage; None if it says nothing, or something else, as others may
    have written it."""
    values = read_launch(folder).get("stage") if may_have_stage(folder) else None
    right = values and len(values) == len(STAGE) and all(map(isinstance, values, STAGE))
    return Told(*values) if values and right else None


def pipelines(folders: Sequence[Path], states: Mapping[Path, State]) -> Iterator[str]:
    """Yield a line for each pipeline among these runs: its stages in order, with their states. Of a stage that was made
    again, the newest runs count."""
    found: dict[str, dict[str, dict[Told, list[Path]]]] = {}
    for folder in folders:
        if told := told_by(folder):
            found.setdefault(told.home, {}).setdefault(told.name, {}).setdefault(told, []).append(folder)
    for home, stages in sorted(found.items()):
        newest = sorted((max(makings, key=lambda told: told.mark) for makings in stages.values()), key=placed)
        lines = [f"{told.name} {state_of(stages[told.name][told], states)}" for told in newest]
        yield printable(f"pipeline {Path(home).name}: {', '.join(lines)}")


def placed(told: Told) -> tuple[int, str]:
    """Return by what stages are ordered."""
    return told.place, told.name


def may_have_stage(folder: Path) -> bool:
    """Whether the record of a run may name a stage. Few of thousands do, and to parse a record takes longer."""
    try:
        return b'"stage": [' in (folder / LAUNCH).read_bytes()
    except OSError:
        return False


def state_of(runs: Sequence[Path], states: Mapping[Path, State]) -> str:
    """Return the state of a stage, which may have several runs."""
    left = [run for run in runs if not is_done(run)]
    if not left:
        return "finished"
    if any(run not in states for run in left):
        return "stopped"
    there = {states[run][0].lower() for run in left}
    state = "running" if "running" in there else sorted(there)[0]
    waits = sorted({stage_of(parent) for run in left for parent in waited_for(run)})
    return f"{state} (after {', '.join(waits)})" if waits and state == "pending" else state


def stage_of(folder: Path) -> str:
    """Return the name of the stage of a run, or its folder if it is in no pipeline."""
    told = told_by(folder)
    return told.name if told else str(shown(folder))
