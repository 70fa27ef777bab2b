"""The run folder: all files of a run.

RUN/ config.yaml environment.json attempts.jsonl metrics.jsonl seen.npz wandb/ checkpoints/ report/ stopped.json
     finished.json; during training also lock.json and progress.json; after a submission also launch.json code/ logs/
     notices/

A damaged record is renamed to damaged_NAME, and the run continues without it.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeplense.files import TEMPORARY, find_below, replacing
from deeplense.records import DAMAGED, read_record, set_aside, write_record
from deeplense.training.tracking import METRICS, read_wandb_id
from deeplense.training.tracking import WANDB_ID as WANDB_ID
from jobs.console import say
from jobs.runs.attempts import ATTEMPTS, STACKS, has_begun
from jobs.runs.environment import environment
from jobs.runs.stored import CONFIG, known_settings, refuse_differences, stored_config
from jobs.settings import dump, require

ENVIRONMENT = "environment.json"
STOPPED, FINISHED = "stopped.json", "finished.json"
LOCK = "lock.json"
KINDS = {
    ENVIRONMENT: {"command": list, "python": str, "host": str, "platform": str, "packages": dict},
    FINISHED: {"step": int},
    STOPPED: {"step": int, "signal": str},
}
"""Fields of the records of a run, and their types."""
SEEN = "seen.npz"
"""File with the hashes of all images used in a training."""
LAUNCH, CODE, LOGS, NOTICES = "launch.json", "code", "logs", "notices"
OURS = {CONFIG, ENVIRONMENT, ATTEMPTS, STACKS, LAUNCH, CODE, LOGS, NOTICES, SEEN, LOCK}
OURS |= {f"{DAMAGED}{name}" for name in OURS}
"""Names that may exist in a run folder before the run has begun."""
COPIED = {METRICS, "checkpoints"}
"""Names that may exist, too, if the run lengthens another."""


def check_run(run: Path, settings: Any) -> None:
    """Raise ValueError unless a run with these settings can be started or resumed in the folder. Nothing is written."""
    if has_begun(run):
        refuse_differences(run, known_settings(run, settings), settings)
        return
    # If no attempt reached its first step, the settings may have been the reason, so other settings are allowed.
    ours = OURS | (COPIED if getattr(settings, "lengthen", None) else set())
    others = (
        [p for p in run.iterdir() if p.name not in ours and not p.name.startswith(TEMPORARY)] if run.is_dir() else []
    )
    require(not others, f"{run} is not a run folder, and not empty; give another --run.")
    require(run.is_dir() or not run.exists(), f"{run} is a file; give another --run.")


def open_run(run: Path, settings: Any) -> None:
    """Create the run folder, or check that it holds a run with the same settings. Damaged records are written again.

    Raises ValueError, naming the differences, if the settings differ; settings that do not affect numerical results
    may.
    """
    check_run(run, settings)
    begun = has_begun(run)
    if not begun or is_damaged(lambda: read_record(run / ENVIRONMENT, KINDS[ENVIRONMENT])):
        keep_aside(run / ENVIRONMENT, when=begun)
        write_record(run / ENVIRONMENT, environment())
    if (run / FINISHED).exists() and not is_finished(run):
        say(f"{run / FINISHED} is damaged; it was moved to {set_aside(run / FINISHED).name}, and the run is resumed")
    if not begun or is_damaged(lambda: refuse_differences(run, stored_config(run), settings)):
        keep_aside(run / CONFIG, when=begun)
        with replacing(run / CONFIG) as temporary:
            temporary.write_text(dump(replace(settings, take_over=0) if hasattr(settings, "take_over") else settings))


def is_damaged(read: Callable[[], object]) -> bool:
    """Whether a record cannot be read or has other content than required."""
    try:
        read()
    except (ValueError, FileNotFoundError):
        return True
    return False


def keep_aside(path: Path, *, when: bool) -> None:
    """Move a damaged record aside and report it."""
    if when and path.exists():
        say(f"{path} is damaged; it was moved to {set_aside(path).name}, and a new file is written")


def is_finished(run: Path) -> bool:
    """Whether a run is finished, according to a valid record."""
    return not is_damaged(lambda: read_record(run / FINISHED, KINDS[FINISHED]))


def find_run(text: str, root: Path) -> Path:
    """Return the run folder for a path or a W&B run id; ids are searched below `root`."""
    if (Path(text) / CONFIG).exists():
        return Path(text)
    ids = {number: path.parent for path in find_below(root, WANDB_ID) if (number := read_wandb_id(path.parent))}
    if text in ids:
        return ids[text]
    known = [*ids, *(str(path.parent) for path in find_below(root, CONFIG))]
    near = difflib.get_close_matches(text, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{text} is neither a run folder nor the W&B id of a run below {root}.{hint}")
