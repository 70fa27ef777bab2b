"""The checkpoints of a run, found by name, and the newest record in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from deeplense.training import checkpoint

Which = Literal["best", "last"]
CHECKPOINTS = "checkpoints"
KINDS = {"best": "best", "last": "step"}


def newest_record(run: Path) -> tuple[int, Mapping[str, Any]]:
    """Return the step and the record of the newest checkpoint with an intact record; 0 and an empty record if there is
    none."""
    for path in newest_first(run, "last") + newest_first(run, "best"):
        try:
            record = checkpoint.load(path, only=("record",)).get("record")
        except ValueError:
            continue
        if record:
            return step_of(path), record
    return 0, {}


def newest_first(run: Path, which: Which) -> list[Path]:
    """Return the checkpoints of a kind, the newest first."""
    return sorted((run / CHECKPOINTS).glob(f"{KINDS[which]}_*"), reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint."""
    number = path.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0
