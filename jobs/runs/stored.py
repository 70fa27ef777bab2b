"""The settings stored in a run folder, and their comparison with given settings."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from jobs.conditions import counting
from jobs.runs.attempts import ATTEMPTS
from jobs.settings import plain, require

REPORT, DOCUMENT = "report", "report.json"
"""Folder of the report of a run, and the file with its numbers."""


CONFIG = "config.yaml"
CONFIG_HASH = "config_hash"
"""Key of the checksum of config.yaml in the record of a checkpoint."""
RESTORE = "restore it from a copy; `deeplense verify RUN` prints the settings if a checkpoint has them"


def known_settings(run: Path, settings: Any) -> Mapping[str, Any]:
    """Return the settings of a run that has begun: those of its newest checkpoint if its own record is damaged, and the
    given ones if none are known."""
    stored = None
    with contextlib.suppress(ValueError):
        stored = stored_config(run)
        refuse_differences(run, stored, settings)
        return stored
    return recorded_settings(run) or stored or (plain(settings) if (run / ATTEMPTS).exists() else {})


def recorded_settings(run: Path) -> dict[str, Any]:
    """Return the settings in the newest intact checkpoint of a run; empty if there is none."""
    from jobs.runs.checkpoints import newest_record

    settings = newest_record(run)[1].get("settings")
    return dict(settings) if isinstance(settings, Mapping) else {}


def listed_settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run of any job as plain values, to list them: those of its newest checkpoint, or of
    `config.yaml` if it has none. Raises ValueError if the folder is not a run."""
    stored = stored_config(run)
    return recorded_settings(run) or stored


def refuse_differences(run: Path, stored: Mapping[str, Any], settings: Any) -> None:
    """Raise ValueError if settings that affect numerical results differ from those of the run."""
    if told := differences(stored, settings):
        raise ValueError(
            f"{run} was started with other settings: {told}. Give the settings of the run to resume it, or another "
            f"--run.{how_to_lengthen(run, stored, settings)}"
        )


def differences(stored: Mapping[str, Any], settings: Any, *, but: Collection[str] = ()) -> str:
    """Return which settings that affect numerical results differ from those of a run, as text; empty if none does.

    Args:
        stored: settings of the run.
        settings: the given settings.
        but: names of settings that may differ.
    """
    asked = counting(type(settings), plain(settings))
    free = {field.name for field in fields(settings) if field.metadata.get("free")} | {"run"}
    # A setting newer than the run had no effect on it, and neither has its default.
    defaults = {field.name: field.default for field in fields(settings)}
    stored = defaults | counting(type(settings), defaults | dict(stored))
    differing = [name for name in asked if name not in {*free, *but} and asked[name] != stored[name]]
    return ", ".join(f"{name}={asked[name]} (the run has {stored[name]})" for name in differing)


def how_to_lengthen(run: Path, stored: Mapping[str, Any], settings: Any) -> str:
    """Return how to train a run for more epochs, as text, if that is what the given settings ask for; else empty."""
    epochs = getattr(settings, "epochs", 0)
    if differences(stored, settings, but=("epochs",)) or not epochs > stored.get("epochs", epochs):
        return ""
    words = f"{job_of(stored)} --config {run / CONFIG} --run NEW --lengthen {run} --epochs {epochs:g}"
    return f" To train it longer when it is finished: deeplense {words}"


def stored_config(run: Path) -> dict[str, Any]:
    """Return the stored settings of a run as plain values. Raises ValueError if the folder is not a run, or they cannot
    be read."""
    path = run / CONFIG
    if not path.exists():
        raise ValueError(f"{run} is not a run folder: it has no {CONFIG}.")
    try:
        stored = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({told}); {RESTORE}.") from error
    named = isinstance(stored, dict) and all(isinstance(name, str) for name in stored)
    require(named, f"{path} contains no settings: it was damaged or edited; {RESTORE}.")
    return stored


def job_of(settings: Mapping[str, Any]) -> str:
    """Return the job that these settings belong to: `train`, `pretrain`, `diffuse`, or `finetune` for a probe."""
    told = {"method": "pretrain", "noise_schedule": "diffuse", "mode": "finetune"}
    return next((job for name, job in told.items() if name in settings), "train")


def require_job(run: Path, settings: Mapping[str, Any], job: str) -> None:
    """Raise ValueError, with the purpose of the run, if a run with these settings is not of this job."""
    found = job_of(settings)
    if found == job:
        return
    if job == "diffuse":
        told = f"{run} is a run of `deeplense {found}`, not of `deeplense diffuse`, so it cannot generate images"
        raise ValueError(f"{told}; give a run of diffuse.")
    if job == "pretrain":
        raise ValueError(f"{run} is not a run of `deeplense pretrain`; give such a run as --backbone.")
    uses = {
        "train": f"{run} is a run of `deeplense train`.",
        "pretrain": f"{run} is a run of `deeplense pretrain`, which has no classifier; `deeplense finetune "
        f"--backbone {run}` trains one and evaluates it.",
        "diffuse": f"{run} is a run of `deeplense diffuse`, which has no classifier; `deeplense sample --run "
        f"{run}` generates images, and `deeplense evaluate --generated` evaluates them.",
        "finetune": f"{run} is a probe of `deeplense finetune --mode {settings.get('mode')}`, and contains no network; "
        f"its report is {run / REPORT}. To evaluate another split, run finetune with that --split and another --run; "
        "to get a network, use --mode full.",
    }
    raise ValueError(uses[found])
