"""The records of a pipeline: for each stage how its results were made, and whether they are complete.

launches/PIPELINE/STAGE/ stage.json, and for jobs without a run folder also logs, code and attempts
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

from deeplense.records import read_record, write_record
from jobs.runs.folder import check_run, is_finished
from jobs.settings import require
from jobs.verbs import TRAININGS
from launch import status
from launch.parents import is_done, read_launch
from launch.pipelines.plans import Known, Step, moved_aside, that_count
from launch.pipelines.stages import Stage

RECORD = "stage.json"
OLD = "old"
KINDS = {
    "pipeline": str,
    "settings": dict,
    "parents": dict,
    "mark": str,
    "runs": list,
    "finished": bool,
}
"""Keys of the record of a stage. `mark` differs between two makings of the results. `finished`: it was run here, to its
end, or its results were found."""


def read_stage_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a stage; None if it was never made. Raises ValueError if it is damaged."""
    path = folder / RECORD
    try:
        return read_record(path, KINDS) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{error} Remove it; the stage is then taken as not made yet.") from error


def write_stage_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / RECORD, record)


def new_record(stage: Stage, pipeline: Path, records: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return the record of a stage whose results are about to be made.

    Args:
        records: the records of all stages, those of its parents among them.
    """
    return {
        "pipeline": str(pipeline),
        "settings": that_count(stage),
        "parents": {name: (records[name] or {}).get("mark", "") for name in stage.parents},
        "mark": f"{time.strftime('%Y%m%d-%H%M%S')}-{token_hex(3)}",
        "runs": [],
        "finished": False,
    }


def refuse_other_pipeline(records: Mapping[str, dict[str, Any] | None], pipeline: Path, home: Path) -> None:
    """Raise ValueError if the records are those of another file."""
    for record in filter(None, records.values()):
        told = f"{home} has the records of {record['pipeline']}"
        same = Path(record["pipeline"]) == pipeline or not Path(record["pipeline"]).exists()
        require(same, f"{told}; give another folder with --folder, or rename one of the files.")


def known_of(stages: Sequence[Stage], records: Mapping[str, dict[str, Any] | None]) -> dict[str, Known]:
    """Return what is known of each stage. One query to the scheduler serves all."""
    runs = {name: [Path(run) for run in record["runs"]] for name, record in records.items() if record}
    open_runs = [run for name, found in runs.items() if not is_over(records[name]) for run in found]
    active = status.active([run for run in open_runs if not is_done(run)])
    return {stage.name: known(stage, records[stage.name], active) for stage in stages}


def is_over(record: Mapping[str, Any] | None) -> bool:
    """Whether a stage was run here to its end."""
    return record is not None and bool(record["finished"])


def known(stage: Stage, record: Mapping[str, Any] | None, active: Mapping[Path, Any]) -> Known:
    """Return what is known of a stage.

    Args:
        active: the runs that are pending or running.
    """
    if record is None:
        return Known("found" if was_trained(stage) else "new")
    runs = [Path(run) for run in record["runs"]]
    done = is_over(record) or (was_submitted(record) and all(map(is_done, runs)))
    lost = [path for path in stage.results if not path.exists()] if done else []
    state = "done" if done else "active" if any(run in active for run in runs) else "stopped"
    return Known(state, record["settings"], record["parents"], record["mark"], lost)


def was_submitted(record: Mapping[str, Any]) -> bool:
    """Whether all runs of a stage were submitted for this making, and not only for an earlier one."""
    marks = [(read_launch(Path(run)).get("stage") or [""])[-1] for run in record["runs"]]
    return bool(marks) and all(mark == record["mark"] for mark in marks)


def was_trained(stage: Stage) -> bool:
    """Whether a stage is a training that other commands have finished. Raises ValueError if they had other settings."""
    if stage.verb not in TRAININGS or not is_finished(stage.settings.run):
        return False
    check_run(stage.settings.run, stage.settings)
    return True


def move_aside(step: Step, now: str) -> list[Path]:
    """Move the results of an earlier making of a stage, so that nothing is overwritten; return where they are then."""
    moved = []
    for path in moved_aside(step):
        place = step.stage.aside(path, f"{OLD}-{now}")
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        moved.append(place)
    return moved
