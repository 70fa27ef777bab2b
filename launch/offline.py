"""Logs of Weights & Biases that were written without a network connection."""

import subprocess
from pathlib import Path

from jobs.imports import PYTHON
from jobs.runs.folder import WANDB_ID, read_wandb_id


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
