"""One attempt at a training on this rank: its records, from the first step to the reason why it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deeplense.files import checksum
from deeplense.training.saving import Saver
from deeplense.training.tracking import Tracker, read_wandb_id
from jobs.console import say
from jobs.frame.settings import LearningSettings
from jobs.frame.watchdog import Watchdog
from jobs.runs.attempts import EXIT_STOPPED, begin_attempt, end_attempt
from jobs.runs.environment import PACKAGES, code_version, version_of
from jobs.runs.folder import STOPPED
from jobs.runs.stored import CONFIG, CONFIG_HASH
from jobs.settings import plain


@dataclass(frozen=True)
class Attempt:
    """One start of a run. Only the main process has a number and a tracker."""

    settings: LearningSettings
    number: int
    tracker: Tracker | None
    watchdog: Watchdog
    record: Mapping[str, Any]
    """information about the run and this attempt that is stored in each checkpoint"""
    saver: Saver = field(default_factory=Saver)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.settings.run

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.run / "checkpoints"

    @property
    def record_now(self) -> dict[str, Any]:
        """The record to store in a checkpoint, with the current time."""
        metrics = {"metrics": self.tracker.mark()} if self.tracker else {}
        return dict(self.record) | metrics | {"time": datetime.now(UTC).isoformat(timespec="seconds")}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step, on the main process."""
        if self.tracker is not None:
            self.tracker.log(step, dict(values))

    def end(self, *, step: int, reason: str, code: int) -> None:
        """Record why the attempt ends. A full disk may be the reason, so an OSError here must not hide the original
        error."""
        if self.tracker is None:
            return
        try:
            end_attempt(self.run, self.number, reason=reason, last_step=step)
            if code == EXIT_STOPPED:
                self.tracker.mark_preempting()
            self.tracker.close(exit_code=0 if code in (0, EXIT_STOPPED) else 1)
        except OSError as error:
            say(f"could not record why the attempt ended ({reason}): {error}")

    def close(self) -> None:
        """Close the metrics log of an attempt that is only a measurement."""
        if self.tracker is not None:
            self.tracker.close(exit_code=0)


def begin(
    settings: LearningSettings,
    accelerator: Accelerator,
    watchdog: Watchdog,
    *,
    step: int,
    before: Mapping[str, Any],
    seen: Mapping[str, Any],
) -> Attempt:
    """Start the record of the attempt and its metrics log, on the main process.

    Args:
        settings: of the run.
        accelerator: of this rank.
        watchdog: ends the attempt if it hangs.
        step: the step after which the attempt resumes.
        before: the record of the checkpoint from which it resumes; empty at the start.
        seen: what the record states about the training images.
    """
    number, tracker = 0, None
    if accelerator.is_main_process:
        number = begin_attempt(settings.run, first_step=step, num_processes=accelerator.num_processes)
        (settings.run / STOPPED).unlink(missing_ok=True)
        tracker = Tracker(
            settings.run,
            mode=settings.wandb,
            project=settings.wandb_project,
            config=plain(settings),
            last_step=step,
            expected=before.get("metrics"),
        )
        if tracker.report:
            say(tracker.report)
    return Attempt(settings, number, tracker, watchdog, record_of(settings, accelerator) | dict(seen))


def record_of(settings: LearningSettings, accelerator: Accelerator) -> dict[str, Any]:
    """Return the information about the current attempt that is stored in its checkpoints."""
    return {
        "settings": plain(settings),
        CONFIG_HASH: checksum(settings.run / CONFIG),
        "code": code_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "wandb_id": read_wandb_id(settings.run),
        "num_processes": accelerator.num_processes,
    }
