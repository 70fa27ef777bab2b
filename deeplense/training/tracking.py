"""Metrics of a run: JSON lines always, Weights & Biases on request, with one id for all attempts."""

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import xxhash

from deeplense.choices import require_choice
from deeplense.files import finite, replacing
from deeplense.records import keep_copy, read_lines, set_aside
from deeplense.training.stopping import signals_held_back

WandbMode = Literal["off", "offline", "online"]
METRICS = "metrics.jsonl"
KINDS = {"step": int}
WANDB_ID = "wandb_id.txt"
ID = re.compile(r"[\w-]{1,128}", re.ASCII)


def trim(path: Path, *, last_step: int, expected: Mapping[str, Any] | None = None) -> str:
    """Remove lines of a killed attempt after the step that is resumed from a metrics file, and a torn last line.

    A file with other damaged lines, or whose content up to that step differs from `expected`, is copied to another
    name; the readable lines are kept.

    Args:
        path: metrics file.
        last_step: number of updates of the checkpoint that is resumed.
        expected: size and hash of the lines up to that step (see `Tracker.mark`); None for unknown.

    Returns:
        A message about damage, or "".
    """
    if not path.exists():
        return ""
    lines = read_lines(path, KINDS)
    texts = path.read_bytes().split(b"\n")
    kept = [texts[number - 1] for number, values in lines.good.items() if values["step"] <= last_step]
    content = b"".join(b"%s\n" % text for text in kept)
    torn = lines.torn and texts[-1] != b""
    report = ""
    if (lines.bad and not torn) or (expected is not None and expected != mark_of(content)):
        report = f"{path} is damaged; it is kept as {keep_copy(path).name}, and the readable part is used"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return report


def mark_of(content: bytes) -> dict[str, Any]:
    """Return the length and the hash of some bytes."""
    return {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


def read_wandb_id(run: Path) -> str | None:
    """Return the W&B id of the run; None if there is none, or it is damaged."""
    try:
        text = (run / WANDB_ID).read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    return text if ID.fullmatch(text) else None


def wandb_id(run: Path) -> str:
    """Return the W&B id of the run, the same in all attempts; a new one if none can be read."""
    known = read_wandb_id(run)
    return known or write_wandb_id(run, uuid4().hex[:12])


def write_wandb_id(run: Path, number: str) -> str:
    """Give a run a W&B id; a damaged one is moved aside. Returns the id.

    Args:
        run: folder of the run.
        number: the id, of letters, digits, `_` and `-`.
    """
    path = run / WANDB_ID
    if path.exists():
        aside = set_aside(path)
        warnings.warn(f"{path} is damaged; it is kept as {aside.name}, and {number} is used", stacklevel=2)
    with replacing(path) as temporary:
        temporary.write_text(f"{number}\n")
    return number


class Tracker:
    """Writes the metrics of a run. Only one process of a run has one.

    Args:
        run: folder of the run.
        mode: W&B `off`, `offline` or `online`.
        project: W&B project.
        config: settings for W&B.
        last_step: number of updates of the checkpoint that is resumed; 0 for a new run.
        expected: see `trim`.

    Raises:
        ValueError: unknown mode.
    """

    def __init__(
        self,
        run: Path,
        *,
        mode: WandbMode,
        project: str,
        config: Mapping[str, Any],
        last_step: int,
        expected: Mapping[str, Any] | None = None,
    ) -> None:
        require_choice("mode", mode, get_args(WandbMode))
        self.report = trim(run / METRICS, last_step=last_step, expected=expected)
        before = (run / METRICS).read_bytes() if (run / METRICS).exists() else b""
        self.num_bytes, self.digest = len(before), xxhash.xxh3_128(before)
        self.file = (run / METRICS).open("a", buffering=1)
        self.wandb = start_wandb(run, mode=mode, project=project, config=config) if mode != "off" else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line.

        Args:
            step: number of updates made.
            values: metrics by name; null is written for numbers that are not finite.
        """
        line = json.dumps(finite({"step": step, **values})) + "\n"
        self.file.write(line)
        self.num_bytes += len(line.encode())
        self.digest.update(line.encode())
        self.tell_wandb(lambda wandb: wandb.log(dict(values), step=step))

    def mark(self) -> dict[str, Any]:
        """Return the size and the hash of the lines so far; a checkpoint that stores them detects damaged lines."""
        return {"bytes": self.num_bytes, "xxh3_128": self.digest.hexdigest()}

    def sync(self) -> None:
        """Flush the lines so far to the disk, before a checkpoint that counts their steps as made."""
        os.fsync(self.file.fileno())

    def mark_preempting(self) -> None:
        """Tell W&B that the run will continue in another attempt."""
        self.tell_wandb(lambda wandb: wandb.mark_preempting())

    def close(self, *, exit_code: int) -> None:
        """Close the file and finish the W&B run."""
        self.file.close()
        self.tell_wandb(lambda wandb: wandb.finish(exit_code=exit_code))

    def tell_wandb(self, tell: Callable[[Any], object]) -> None:
        """Call W&B, which must never end a training: after an error it is not called again."""
        if self.wandb is None:
            return
        try:
            tell(self.wandb)
        except Exception as error:
            self.wandb = None
            warnings.warn(f"W&B failed ({error!r}) and is no longer used; all metrics are in {METRICS}.", stacklevel=2)


def start_wandb(run: Path, *, mode: WandbMode, project: str, config: Mapping[str, Any]) -> Any:
    """Return a W&B run with the id of the folder. Offline mode needs no login and no network.

    W&B's service ends on SIGTERM, which a scheduler sends to all processes of a job, so that the metrics of the last
    step may be in metrics.jsonl only; SIGUSR1 and SIGUSR2 do not reach it.

    Args:
        run: folder of the run.
        mode: `offline` or `online`.
        project: W&B project.
        config: settings for W&B.

    Raises:
        ValueError: unknown mode.
    """
    import wandb

    require_choice("mode", mode, get_args(WandbMode))
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
