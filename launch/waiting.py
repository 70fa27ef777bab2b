"""What `deeplense status` says of runs that wait for other runs."""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from jobs.runs.folder import LAUNCH
from launch.parents import is_done, read_launch, waited_for

STAGE_PARTS = 4
"""Number of values that the record of a run has for its stage: pipeline, number, name, mark."""
State = tuple[str, str]
"""State of a job in the queue, and the reason if it is pending."""


def shown(folder: Path) -> Path:
    """Return a folder relative to the current one, if it is below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def is_held(reason: str) -> bool:
    """Whether a job with this reason is held: it starts only when somebody releases it."""
    return "held" in reason.lower()


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
            known only that one has, if Slurm says that the dependency is never satisfied.
    """
    hopeless = "neversatisfied" in states[folder][1].lower()
    left = [parent for parent in waited_for(folder) if parent not in states]
    stopped = [parent for parent in left if hopeless or parent in looked_for]
    if stopped:
        told = f"note: {shown(folder)} waits for {', '.join(map(str, map(shown, stopped)))}, not running"
        yield f"{told}; `deeplense resume {' '.join(map(str, map(shown, stopped)))}` continues both"


def pipelines(folders: Sequence[Path], states: Mapping[Path, State]) -> Iterator[str]:
    """Yield a line for each pipeline among these runs: its stages in order, with their states."""
    found: dict[str, dict[tuple[int, str], list[Path]]] = {}
    for folder in folders:
        stage = read_launch(folder).get("stage") if may_have_stage(folder) else None
        if stage and len(stage) == STAGE_PARTS:
            found.setdefault(str(stage[0]), {}).setdefault((int(stage[1]), str(stage[2])), []).append(folder)
    for name, stages in sorted(found.items()):
        told = [f"{stage} {state_of(runs, states)}" for (_, stage), runs in sorted(stages.items())]
        yield f"pipeline {name}: {', '.join(told)}"


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
    stage = read_launch(folder).get("stage")
    return str(stage[2]) if stage and len(stage) == STAGE_PARTS else str(shown(folder))
