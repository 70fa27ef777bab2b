"""The run folder: everything about a run, under one path.

RUN/ config.yaml environment.json attempts.jsonl metrics.jsonl wandb/ checkpoints/ report/ stopped.json finished.json
"""

import difflib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from deeplense.files import TEMPORARY, replacing, write_json
from jobs.config import dump, plain, require

CONFIG, ENVIRONMENT, ATTEMPTS = "config.yaml", "environment.json", "attempts.jsonl"
STOPPED, FINISHED = "stopped.json", "finished.json"
EXIT_STOPPED = 85
"""Exit code of a job that saved its state on a signal and wants to be started again."""
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


def open_run(run: Path, settings: Any) -> None:
    """Make the run folder, or check that it is a run of the same settings.

    Raises ValueError, naming the differences, where it is not; settings that change no number may differ.
    """
    path = run / CONFIG
    if path.exists() and (run / ATTEMPTS).exists():
        refuse_differences(run, stored_config(run), settings)
        return
    # A folder with a configuration but no attempt is left from settings that failed before the first step.
    ours = {CONFIG, ENVIRONMENT}
    others = (
        [p for p in run.iterdir() if p.name not in ours and not p.name.startswith(TEMPORARY)] if run.is_dir() else []
    )
    require(not others, f"{run} is no run folder, and not empty; give another --run.")
    write_json(run / ENVIRONMENT, environment())
    with replacing(path) as temporary:
        temporary.write_text(dump(settings))


def refuse_differences(run: Path, stored: Mapping[str, Any], settings: Any) -> None:
    """Raise ValueError where settings that decide the numbers differ from those of the run."""
    asked = plain(settings)
    free = {field.name for field in fields(settings) if field.metadata.get("free")} | {"run"}
    differing = [name for name in asked if name not in free and asked[name] != stored.get(name)]
    if differing:
        told = ", ".join(f"{name}={asked[name]} (the run has {stored.get(name)})" for name in differing)
        raise ValueError(
            f"{run} is a run of other settings: {told}. Give the run's own settings to continue it, or another --run."
        )


def stored_config(run: Path) -> dict[str, Any]:
    """The settings of a run, as plain values. Raises ValueError where the folder is no run."""
    path = run / CONFIG
    if not path.exists():
        raise ValueError(f"{run} is no run folder: it has no {CONFIG}.")
    return yaml.safe_load(path.read_text())


def find_run(text: str, root: Path) -> Path:
    """The run folder that a path or a W&B run id names; ids are looked for below `root`."""
    if (Path(text) / CONFIG).exists():
        return Path(text)
    ids = (
        {path.read_text().strip(): path.parent for path in sorted(root.rglob("wandb_id.txt"))} if root.is_dir() else {}
    )
    if text in ids:
        return ids[text]
    known = [*ids, *(str(path.parent) for path in root.rglob(CONFIG))] if root.is_dir() else []
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


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """All attempts of a run so far."""
    path = run / ATTEMPTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begin_attempt(run: Path, *, first_step: int, num_processes: int) -> None:
    """Record that an attempt begins; one before it that has no end was killed."""
    attempts = read_attempts(run)
    if attempts and attempts[-1]["ended"] is None:
        attempts[-1] |= {"ended": "killed", "last_step": first_step}
    begun = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    attempts.append(
        {
            "attempt": len(attempts) + 1,
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "host": platform.node(),
            "pid": os.getpid(),
            "num_processes": num_processes,
            "begun": begun,
            "first_step": first_step,
            "last_step": None,
            "ended": None,
        }
    )
    (run / STOPPED).unlink(missing_ok=True)
    write_attempts(run, attempts)


def end_attempt(run: Path, *, last_step: int, reason: str) -> None:
    """Record why the attempt ends, and after which step: `finished`, `stopped by SIGNAL`, `error: ...`."""
    attempts = read_attempts(run)
    attempts[-1] |= {"last_step": last_step, "ended": reason}
    write_attempts(run, attempts)


def write_attempts(run: Path, attempts: list[dict[str, Any]]) -> None:
    """Write all attempts, atomically."""
    with replacing(run / ATTEMPTS) as temporary:
        temporary.write_text("".join(json.dumps(attempt) + "\n" for attempt in attempts))
