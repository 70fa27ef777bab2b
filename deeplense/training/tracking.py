"""Metrics of a run: JSON lines always, Weights & Biases when asked, with one id over all attempts."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from deeplense.files import finite, replacing
from deeplense.training.stopping import signals_held_back

WandbMode = Literal["off", "offline", "online"]
METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id.txt"


def trim(path: Path, *, last_step: int) -> None:
    """Cut from a metrics file what a killed attempt wrote after the step that is resumed, and a torn last line."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if step_of(line) <= last_step]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))


def step_of(line: str) -> float:
    """The step of a line; infinite where the line is torn."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def wandb_id(run: Path) -> str:
    """The id of the run at W&B, the same in all attempts."""
    path = run / WANDB_ID
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(f"{uuid4().hex[:12]}\n")
    return path.read_text().strip()


class Tracker:
    """Writes metrics of a run folder. Only one process of a run has one."""

    def __init__(self, run: Path, *, mode: WandbMode, project: str, config: Mapping[str, Any], last_step: int) -> None:
        trim(run / METRICS, last_step=last_step)
        self.file = (run / METRICS).open("a", buffering=1)
        self.wandb = start_wandb(run, mode=mode, project=project, config=config) if mode != "off" else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line; `step` is the number of updates made."""
        self.file.write(json.dumps(finite({"step": step, **values})) + "\n")
        self.tell_wandb(lambda wandb: wandb.log(dict(values), step=step))

    def sync(self) -> None:
        """Force the lines so far to the disk; a checkpoint that counts their steps as made must not outlive them."""
        os.fsync(self.file.fileno())

    def mark_preempting(self) -> None:
        """Tell W&B that the run goes on in another attempt."""
        self.tell_wandb(lambda wandb: wandb.mark_preempting())

    def close(self, *, exit_code: int) -> None:
        """Finish both."""
        self.file.close()
        self.tell_wandb(lambda wandb: wandb.finish(exit_code=exit_code))

    def tell_wandb(self, tell: Callable[[Any], object]) -> None:
        """Say something to W&B, which must never end a training: where it fails, it is left out from then on."""
        if self.wandb is None:
            return
        try:
            tell(self.wandb)
        except Exception as error:
            self.wandb = None
            warnings.warn(f"W&B failed and gets nothing more ({error!r}); all is in {METRICS}.", stacklevel=2)


def start_wandb(run: Path, *, mode: WandbMode, project: str, config: Mapping[str, Any]) -> Any:
    """A W&B run with the id of the folder. Offline needs no login and no network.

    W&B's service ends on SIGTERM, which a scheduler sends to all processes of a job, so that the metrics of the last
    step may be in metrics.jsonl only; SIGUSR1 and SIGUSR2 do not reach it.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    # It would tell of the lost connection to the service many times over.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with signals_held_back():
        return wandb.init(
            dir=run,
            project=project,
            name=run.name,
            id=wandb_id(run),
            resume="allow" if mode == "online" else None,
            mode="online" if mode == "online" else "offline",
            config=dict(config),
        )
