"""Start of a training from the complete state of a finished run, to train longer. The finished run is not changed.

Its newest checkpoint and its best weights are copied to the new run, with the new settings in their records. After
that, the new run resumes from them like any run.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from deeplense.files import checksum, replacing
from deeplense.training import checkpoint
from deeplense.training.tracking import METRICS
from jobs.console import say
from jobs.data.part import Part
from jobs.frame.plan import Plan
from jobs.frame.settings import LearningSettings
from jobs.runs.checkpoints import CHECKPOINTS, Which, newest_first
from jobs.runs.folder import is_finished
from jobs.runs.opening import Opened, open_run_for
from jobs.runs.stored import CONFIG, CONFIG_HASH, differences, job_of
from jobs.settings import plain, require

MAY_DIFFER = ("epochs", "patience_epochs", "lengthen")
"""Settings that a longer run may have changed."""


def copy_state(settings: LearningSettings, train: Part) -> None:
    """Copy the state of `settings.lengthen` to a new run, unless the new run already has a checkpoint. Raises
    ValueError if the other run is not finished, has other settings or data, or is not shorter.

    Args:
        settings: settings of the new run.
        train: training samples.
    """
    if settings.lengthen is None or newest_first(settings.run, "last"):
        return
    source, target = settings.lengthen, settings.run / CHECKPOINTS
    last = open_to_lengthen(source, settings, which="last")
    best = [open_to_lengthen(source, settings, which="best")] if newest_first(source, "best") else []
    refuse_unsuitable(source, last.settings, settings)
    last.require_data(train.split)
    if (source / METRICS).exists():
        with replacing(settings.run / METRICS) as temporary:
            temporary.write_bytes((source / METRICS).read_bytes())
    # The start is complete when the last checkpoint exists, so it comes last.
    for each in (*best, last):
        copy_checkpoint(each, target / each.checkpoint.name, settings)
    say(f"lengthening {source}: copied its state after step {last.step}")
    if note := change_of_rate(settings, last.settings.epochs, last.step, len(train)):
        say(note)


def open_to_lengthen(source: Path, settings: LearningSettings, *, which: Which) -> Opened[Any]:
    """Open the run to lengthen. Raises ValueError if it is a run of another job, or has no intact checkpoint."""
    return open_run_for(source, job_of(plain(settings)), type(settings), which=which)


def refuse_unsuitable(source: Path, before: LearningSettings, settings: LearningSettings) -> None:
    """Raise ValueError if a run with the settings `before` cannot be lengthened to the new settings."""
    require(source.resolve() != settings.run.resolve(), "lengthen and run are the same folder; give a new --run.")
    told = differences(plain(before), settings, but=MAY_DIFFER)
    require(
        not told,
        f"{source} was trained with other settings: {told}. Only epochs and patience_epochs may change; give "
        f"--config {source / CONFIG} for the rest.",
    )
    require(is_finished(source), f"{source} is not finished; run its own command again to resume it.")
    require(
        settings.epochs > before.epochs,
        f"epochs={settings.epochs} is not above the {before.epochs} epochs of {source}; give more --epochs.",
    )


def copy_checkpoint(opened: Opened[Any], target: Path, settings: LearningSettings) -> None:
    """Copy a checkpoint, with the new settings in its record, unless it was copied before."""
    if target.exists():
        return
    states = opened.load_all()
    ours = {"settings": plain(settings), CONFIG_HASH: checksum(settings.run / CONFIG), "wandb_id": None}
    checkpoint.save(target, states | {"record": {**states.get("record", {}), **ours}})


def change_of_rate(settings: LearningSettings, epochs: float, step: int, num_samples: int) -> str:
    """Return a note if the learning rate schedule depends on the number of epochs, so the rate jumps at this step; else
    empty."""
    if settings.schedule != "cosine":
        return ""
    old = Plan(replace(settings, epochs=epochs), num_samples).learning_rate(max(step - 1, 0))
    new = Plan(settings, num_samples).learning_rate(step)
    spans = f"the cosine schedule now spans {settings.epochs:g} instead of {epochs:g} epochs"
    return f"note: {spans}: the learning rate changes from {old:.2g} to {new:.2g}"
