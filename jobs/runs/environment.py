"""Environment of a run: machine, package versions, commit."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from deeplense.files import read_json

SNAPSHOT = "snapshot.json"
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


def environment() -> dict[str, Any]:
    """Return the environment in which a run was started."""
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
    """Return the version of this code: from the note made when it was copied for a job, or else its commit."""
    noted = Path(__file__).parents[2] / SNAPSHOT
    try:
        return read_json(noted) if noted.exists() else {"commit": git_commit()}
    except ValueError:
        return {"commit": None, "damaged": str(noted)}


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def version_of(package: str) -> str | None:
    """Return the version of an installed package without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def git_commit() -> str | None:
    """Return the commit of the code, with a + if there are uncommitted changes; None outside git. It is asked for once:
    a process runs the code that it has loaded."""
    where = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", where, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
