"""The run folder: everything about a run, under one path.

RUN/ config.yaml environment.json attempts.jsonl metrics.jsonl seen.npz wandb/ checkpoints/ report/ stopped.json
     finished.json; while it is trained, lock.json and progress.json; where it was submitted, launch.json code/ logs/

A record that is damaged is kept as damaged_NAME, and the run goes on without it.
"""

import contextlib
import difflib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from deeplense.files import TEMPORARY, find_below, read_json, replacing
from deeplense.records import DAMAGED, read_record, set_aside, write_record
from deeplense.training.tracking import WANDB_ID as WANDB_ID
from deeplense.training.tracking import read_wandb_id
from jobs.attempts import ATTEMPTS, STACKS, has_begun
from jobs.config import counting, dump, from_plain, plain, require
from jobs.progress import say
from jobs.train import Settings as TrainSettings

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
STOPPED, FINISHED = "stopped.json", "finished.json"
LOCK = "lock.json"
KINDS = {
    ENVIRONMENT: {"command": list, "python": str, "host": str, "platform": str, "packages": dict},
    FINISHED: {"step": int},
    STOPPED: {"step": int, "signal": str},
}
"""What the records of a run say, and of which type."""
SNAPSHOT = "snapshot.json"
REPORT = "report"
SEEN = "seen.npz"
"""Which images a training has seen."""
LAUNCH, CODE, LOGS = "launch.json", "code", "logs"
CONFIG_HASH = "config_hash"
"""In the record of a checkpoint, the checksum of config.yaml."""
RESTORE = "restore it from a copy; `deeplense verify RUN` shows the settings if a checkpoint has them"
OURS = {CONFIG, ENVIRONMENT, ATTEMPTS, STACKS, LAUNCH, CODE, LOGS, SEEN, LOCK}
OURS |= {f"{DAMAGED}{name}" for name in OURS}
"""What may lie in the folder of a run that has not begun."""
PACKAGES = (
    "deeplense",
    "torch",
    "timm",
    "accelerate",
    "numpy",
    "h5py",
    "scikit-learn",
    "scipy",
    "safetensors",
    "wandb",
)


def check_run(run: Path, settings: Any) -> None:
    """Raise ValueError unless a run of these settings can begin in a folder or go on there. Nothing is written."""
    if has_begun(run):
        refuse_differences(run, known_settings(run, settings), settings)
        return
    # Where no attempt came to its first step, the settings may have been the reason.
    others = (
        [p for p in run.iterdir() if p.name not in OURS and not p.name.startswith(TEMPORARY)] if run.is_dir() else []
    )
    require(not others, f"{run} is no run folder, and not empty; give another --run.")
    require(run.is_dir() or not run.exists(), f"{run} is a file; give another --run.")


def open_run(run: Path, settings: Any) -> None:
    """Make the run folder, or check that it is a run of the same settings; its records, where damaged, are made anew.

    Raises ValueError, naming the differences, where it is not; settings that change no number may differ.
    """
    check_run(run, settings)
    begun = has_begun(run)
    if not begun or is_damaged(lambda: read_record(run / ENVIRONMENT, KINDS[ENVIRONMENT])):
        keep_aside(run / ENVIRONMENT, when=begun)
        write_record(run / ENVIRONMENT, environment())
    if (run / FINISHED).exists() and not is_finished(run):
        say(f"{run / FINISHED} is damaged; it is kept as {set_aside(run / FINISHED).name}, and the run goes on")
    if not begun or is_damaged(lambda: refuse_differences(run, stored_config(run), settings)):
        keep_aside(run / CONFIG, when=begun)
        with replacing(run / CONFIG) as temporary:
            temporary.write_text(dump(replace(settings, take_over=0) if hasattr(settings, "take_over") else settings))


def is_damaged(read: Callable[[], object]) -> bool:
    """Whether a record cannot be read, or says something else than it must."""
    try:
        read()
    except (ValueError, FileNotFoundError):
        return True
    return False


def keep_aside(path: Path, *, when: bool) -> None:
    """Set a damaged record aside, and say so."""
    if when and path.exists():
        say(f"{path} is damaged; it is kept as {set_aside(path).name}, and written anew")


def is_finished(run: Path) -> bool:
    """Whether a run says that it is finished, in a record that can be read."""
    return not is_damaged(lambda: read_record(run / FINISHED, KINDS[FINISHED]))


def known_settings(run: Path, settings: Any) -> Mapping[str, Any]:
    """The settings of a run that has begun: those of its newest checkpoint where its own record is damaged; where
    nothing is known of them, those that are asked for."""
    stored = None
    with contextlib.suppress(ValueError):
        stored = stored_config(run)
        refuse_differences(run, stored, settings)
        return stored
    return recorded_settings(run) or stored or (plain(settings) if (run / ATTEMPTS).exists() else {})


def recorded_settings(run: Path) -> dict[str, Any]:
    """The settings in the newest checkpoint of a run that is whole; none where there is no such checkpoint."""
    from jobs.opening import newest_record

    settings = newest_record(run)[1].get("settings")
    return dict(settings) if isinstance(settings, Mapping) else {}


def refuse_differences(run: Path, stored: Mapping[str, Any], settings: Any) -> None:
    """Raise ValueError where settings that decide the numbers differ from those of the run."""
    asked = counting(type(settings), plain(settings))
    free = {field.name for field in fields(settings) if field.metadata.get("free")} | {"run"}
    # What is newer than the run had no effect on it, as its default has none.
    defaults = {field.name: field.default for field in fields(settings)}
    stored = defaults | counting(type(settings), defaults | dict(stored))
    differing = [name for name in asked if name not in free and asked[name] != stored[name]]
    if differing:
        told = ", ".join(f"{name}={asked[name]} (the run has {stored[name]})" for name in differing)
        raise ValueError(
            f"{run} is a run of other settings: {told}. Give the run's own settings to continue it, or another --run."
        )


def stored_config(run: Path) -> dict[str, Any]:
    """The settings of a run, as plain values. Raises ValueError where the folder is no run, or they cannot be read."""
    path = run / CONFIG
    if not path.exists():
        raise ValueError(f"{run} is no run folder: it has no {CONFIG}.")
    try:
        stored = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({told}); {RESTORE}.") from error
    named = isinstance(stored, dict) and all(isinstance(name, str) for name in stored)
    require(named, f"{path} holds no settings: it was damaged or edited; {RESTORE}.")
    return stored


def job_of(settings: Mapping[str, Any]) -> str:
    """Whose settings these are: `train`, `pretrain`, `diffuse`, or `finetune` for a probe."""
    told = {"method": "pretrain", "noise_schedule": "diffuse", "mode": "finetune"}
    return next((job for name, job in told.items() if name in settings), "train")


def require_job(run: Path, settings: Mapping[str, Any], job: str) -> None:
    """Raise ValueError where a run of these settings is none of this job, saying what it is for."""
    found = job_of(settings)
    if found == job:
        return
    if job == "diffuse":
        raise ValueError(f"{run} is no run of `deeplense diffuse`, and makes no images; give one.")
    if job == "pretrain":
        raise ValueError(f"{run} is no run of `deeplense pretrain`; give one as --backbone.")
    uses = {
        "train": f"{run} is a run of `deeplense train`.",
        "pretrain": f"{run} is a run of `deeplense pretrain`, which has learnt no classes; `deeplense finetune "
        f"--backbone {run}` learns them, and evaluates.",
        "diffuse": f"{run} is a run of `deeplense diffuse`, which has learnt no classes; `deeplense sample --run "
        f"{run}` makes images, and `deeplense evaluate --generated` judges them.",
        "finetune": f"{run} is a probe of `deeplense finetune --mode {settings.get('mode')}`, and holds no network; "
        f"its report is {run / REPORT}. For another --split, give finetune that and another --run; for a network, "
        "--mode full.",
    }
    raise ValueError(uses[found])


def train_settings(run: Path) -> TrainSettings:
    """The settings of a run of `deeplense train`, or of a training of `deeplense finetune`, as `config.yaml` has them.
    Raises ValueError for other runs, telling what they are for."""
    stored = stored_config(run)
    require_job(run, stored, "train")
    return from_plain(TrainSettings, stored)


def find_run(text: str, root: Path) -> Path:
    """The run folder that a path or a W&B run id names; ids are looked for below `root`."""
    if (Path(text) / CONFIG).exists():
        return Path(text)
    ids = {number: path.parent for path in find_below(root, WANDB_ID) if (number := read_wandb_id(path.parent))}
    if text in ids:
        return ids[text]
    known = [*ids, *(str(path.parent) for path in find_below(root, CONFIG))]
    near = difflib.get_close_matches(text, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{text} is neither a run folder nor the W&B id of a run below {root}.{hint}")


def environment() -> dict[str, Any]:
    """Where and with what a run was begun."""
    return {
        "command": sys.argv,
        "python": sys.version.split()[0],
        "host": platform.node(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def code_version() -> dict[str, Any]:
    """Which code this is: what was noted of it when it was copied for a job, or its commit."""
    noted = Path(__file__).parents[1] / SNAPSHOT
    try:
        return read_json(noted) if noted.exists() else {"commit": git_commit()}
    except ValueError:
        return {"commit": None, "damaged": str(noted)}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version_of(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the code, with a + where the tree has changes; None outside git."""
    where = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", where, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
