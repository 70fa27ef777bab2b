"""What a run has left in its folder."""

import json
from pathlib import Path
from typing import Any

from deeplense.training import checkpoint


def last(run: Path) -> dict[str, Any]:
    """What the last checkpoint holds."""
    path, reports = checkpoint.newest_good(run / "checkpoints")
    assert path is not None, reports
    return checkpoint.load(path)


def logged(run: Path, name: str) -> list[float]:
    """The values of a metric, in their order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]
