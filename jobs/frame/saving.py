"""When the next checkpoint is due, and how it is written in the background while the training continues."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from deeplense.training import checkpoint
from deeplense.training.agreement import Agreement, Request
from deeplense.training.checkpoint import Snapshot
from jobs.frame.attempt import Attempt
from jobs.frame.plan import Progress
from jobs.frame.settings import LearningSettings
from jobs.frame.weights import States, Weights
from jobs.ranks import on_main
from jobs.runs.attempts import refuse_if_superseded


@dataclass
class SaveClock:
    """Decides on the main process, after each step, whether to request a checkpoint. Several ranks save one step after
    the request, so it is made one step ahead."""

    seconds: float
    """seconds between checkpoints"""
    last_save: float = field(default_factory=time.monotonic)
    last_look: float = field(default_factory=time.monotonic)

    def is_due(self, agreement: Agreement, *, better: bool, writing: bool) -> bool:
        """Whether to request a checkpoint now. It is postponed while another one is being written. The best weights
        have to wait for that write anyway, so a single rank then saves the checkpoint together with them.

        Args:
        agreement: used for the request.
        better: whether the best weights are saved after this step.
        writing: whether a checkpoint is being written.
        """
        now = time.monotonic()
        step, self.last_look = now - self.last_look, now
        if agreement.at_once:
            return now - self.last_save > self.seconds and (better or not writing)
        if Request.SAVE in agreement.sent:
            return step > self.seconds
        return now + step - self.last_save > self.seconds and not (better or writing)

    def saved(self) -> None:
        """Note that a checkpoint was started."""
        self.last_save = time.monotonic()


def states_of(attempt: Attempt, weights: Weights, progress: Progress) -> States:
    """Return all states to save, and the record of their origin, on the main process. All ranks must call it."""
    return weights.states(progress) | {"record": attempt.record_now}


def prepare(attempt: Attempt, weights: Weights, progress: Progress) -> None:
    """Allocate the memory for checkpoints, once the optimizer has its states."""
    states = states_of(attempt, weights, progress)
    if weights.accelerator.is_main_process:
        attempt.saver.prepare(states)


def save(attempt: Attempt, weights: Weights, progress: Progress, *, better: bool, last: bool) -> None:
    """Start to write a checkpoint, and mark it as the best weights if `better`. With `last`, all ranks wait until it is
    written."""
    folder, step = attempt.checkpoints, progress.step

    def ready(written: Path) -> None:
        refuse_if_superseded(attempt.run, attempt.number)
        if attempt.tracker is not None:
            attempt.tracker.sync()
        # The best weights come first: a checkpoint must not refer to best weights that do not exist.
        if better:
            checkpoint.link(written, checkpoint.step_folder(folder, step, kind="best"), weights.best_names)

    def write(taken: Snapshot) -> None:
        checkpoint.write(checkpoint.step_folder(folder, step), taken, ready=ready)
        remove_old(folder, attempt.settings)

    states = states_of(attempt, weights, progress)
    on_main(weights.accelerator, lambda: attempt.saver.begin(states, write))
    if last:
        on_main(weights.accelerator, attempt.saver.wait)
    attempt.watchdog.beat()


def save_best(attempt: Attempt, weights: Weights, progress: Progress) -> None:
    """Start to write the weights that were evaluated as the best."""
    path = checkpoint.step_folder(attempt.checkpoints, progress.step, kind="best")

    def write(taken: Snapshot) -> None:
        checkpoint.write(path, taken, ready=lambda _: refuse_if_superseded(attempt.run, attempt.number))
        remove_old(attempt.checkpoints, attempt.settings)

    states = weights.best_states(progress) | {"record": attempt.record_now}
    on_main(weights.accelerator, lambda: attempt.saver.begin(states, write))


def remove_old(folder: Path, settings: LearningSettings) -> None:
    """Remove checkpoints and best weights that are superseded."""
    checkpoint.remove_old(folder, count=1, kind="best")
    checkpoint.remove_old(folder, count=settings.keep_checkpoints, every_hours=settings.keep_every_hours)
