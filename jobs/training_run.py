"""One attempt at a training, once begun: update, evaluate, save, stop."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from deeplense.data.loading import StepBatches, step_loader
from deeplense.data.order import step_seed
from deeplense.records import write_record
from deeplense.training import checkpoint
from deeplense.training.checkpoint import Snapshot
from deeplense.training.finite import NotFinite
from deeplense.training.loop import (
    Request,
    Update,
    agree,
    fit,
    gather_lists,
    mean_over_ranks,
)
from deeplense.training.schedules import learning_rate
from deeplense.training.stopping import StopFlag
from deeplense.training.tracking import Tracker
from jobs.attempts import DIVERGED, EXIT_STOPPED, end_attempt, refuse_if_superseded
from jobs.config import require
from jobs.experiment import make_order
from jobs.progress import Reporter, say
from jobs.progress_file import ProgressFile
from jobs.ranks import announce, on_main
from jobs.runs import FINISHED, STOPPED
from jobs.training_start import TrainingRun


def train_to_the_end(training: TrainingRun, stop: StopFlag) -> int:
    """Make the remaining updates and leave a record of why the attempt ended."""
    reason, code = "error", 1
    try:
        reason, code = update_until_done(training, stop)
    except NotFinite as error:
        reason = f"{DIVERGED}: {error}"
        raise
    except BaseException as error:
        reason = f"error: {type(error).__name__}: {error}"
        raise
    finally:
        with contextlib.suppress(ValueError, OSError):
            training.saver.wait()
        if training.tracker is not None:
            record_end(training, training.tracker, reason=reason, code=code)
    # Without the wait a rank may tear the group down while another still reads the last message.
    training.accelerator.wait_for_everyone()
    training.accelerator.end_training()
    return code


def record_end(training: TrainingRun, tracker: Tracker, *, reason: str, code: int) -> None:
    """Write why the attempt ends; a full disk, which may be why, must not hide the error that is under way."""
    try:
        end_attempt(training.settings.run, training.attempt, reason=reason, last_step=training.progress.step)
        if code == EXIT_STOPPED:
            tracker.mark_preempting()
        tracker.close(exit_code=0 if code in (0, EXIT_STOPPED) else 1)
    except OSError as error:
        say(f"could not write why the attempt ends ({reason}): {error}")


def update_until_done(training: TrainingRun, stop: StopFlag) -> tuple[str, int]:
    """Make the remaining updates; returns why they ended and the exit code."""
    settings, accelerator, progress = training.settings, training.accelerator, training.progress
    main = accelerator.is_main_process
    file = ProgressFile(settings.run, total=training.num_steps, first=progress.step) if main else None
    with Reporter(total=training.num_steps, unit="steps", done=progress.step, enabled=main) as reporter:
        for loss in advance(training, stop):
            if file is not None:
                file.update(progress.step)
            best = best_in_words(training)
            # Until the first line is logged, an attempt knows of no loss.
            reporter.update(progress.step, "" if math.isnan(loss) else ", ".join([f"loss {loss:.4f}", *best]))
    if file is not None:
        file.update(progress.step, at_once=True)
    if not done(training):
        return leave(training, stop)
    best = {"best": progress.best, "best_step": progress.best_step} if progress.best_step else {}
    on_main(accelerator, lambda: write_record(settings.run / FINISHED, {"step": progress.step} | best))
    if progress.step < training.num_steps:
        patience = training.learner.patience_epochs
        announce(accelerator, f"{patience} epochs brought nothing better than at step {progress.highest_step}")
    kept = [f"kept the weights of step {progress.best_step}" for _ in best_in_words(training)]
    announce(accelerator, "; ".join([f"finished after step {progress.step}", *kept, *best_in_words(training)]))
    return "finished", 0


def best_in_words(training: TrainingRun) -> list[str]:
    """The score of the weights that are kept so far, if there are any, and the highest, if that is another."""
    progress, name = training.progress, training.learner.score_name
    if not progress.best_step:
        return []
    highest = f" (highest {progress.highest:.4f} at step {progress.highest_step})"
    return [f"best {name} {progress.best:.4f}{highest if progress.highest > progress.best else ''}"]


def advance(training: TrainingRun, stop: StopFlag) -> Iterator[float]:
    """Update, log, evaluate and save until done or told to stop; yields the last loss that was logged, after each
    update."""
    settings, progress, saver = training.settings, training.progress, training.saver
    between = steps_between(training)
    first, last_save, loss = progress.step + 1, time.monotonic(), math.nan
    for update in updates(training):
        progress.step = update.step
        loss_seen = watched(training, update)
        training.learner.after_update(update.step, training.accelerator)
        # A write that takes for ever is a hang too.
        if saver.seconds <= 60 * settings.hang_minutes:
            training.watchdog.beat()
        at_end = update.step == training.num_steps
        if at_end or update.step % settings.log_interval == 0:
            loss = log_update(training, update.lr, update.metrics)
        better = (at_end or update.step % between == 0) and evaluate(training)
        last = done(training)
        # One that falls due while another is written is put off; the best weights wait for that one anyway.
        due = time.monotonic() - last_save > 60 * settings.checkpoint_minutes and (better or not saver.writing)
        agreed = agree(training.accelerator, requests(training, stop, due=due), loss=loss_seen)
        if Request.DIVERGED in agreed:
            refuse_divergence(training)
        if Request.FAIL in agreed:
            on_main(training.accelerator, saver.wait)
        last = last or Request.STOP in agreed
        if last or Request.SAVE in agreed:
            save(training, better=better, last=last)
            last_save = time.monotonic()
        elif better:
            save_best(training)
        elif update.step == first:
            prepare_saving(training)
        yield loss
        if last:
            return


def steps_between(training: TrainingRun) -> int:
    """Updates from one evaluation on the validation samples to the next."""
    return max(round(training.settings.evaluate_epochs * len(training.learner.train) / training.settings.batch_size), 1)


def done(training: TrainingRun) -> bool:
    """Whether there is nothing left to update."""
    return training.progress.step >= training.num_steps or out_of_patience(training)


def out_of_patience(training: TrainingRun) -> bool:
    """Whether the last evaluations brought nothing better for as long as the settings allow. A function of what a
    checkpoint holds, so that a training that was stopped right after it goes no further either."""
    learner, progress = training.learner, training.progress
    if learner.patience_epochs is None or progress.step % steps_between(training):
        return False
    patience = learner.patience_epochs * len(learner.train) / training.settings.batch_size
    return progress.step - progress.highest_step - progress.undefined >= patience


def requests(training: TrainingRun, stop: StopFlag, *, due: bool) -> Request:
    """What this rank wants of all."""
    wanted = {
        Request.STOP: bool(stop.signal_name),
        Request.SAVE: due and training.accelerator.is_main_process,
        Request.FAIL: training.saver.failed,
    }
    return Request(sum(request for request, wants in wanted.items() if wants))


def updates(training: TrainingRun) -> Iterator[Update]:
    """The remaining updates of a training."""
    settings, accelerator, learner = training.settings, training.accelerator, training.learner
    batches = StepBatches(
        learner.train.split,
        make_order(settings, learner.train),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        target=learner.train.target,
        num_uniforms=learner.num_uniforms,
    )
    steps = range(training.progress.step, training.progress.step if done(training) else training.num_steps)
    return fit(
        lambda batch: learner.step(training.model, batch, training.progress.step),
        step_loader(batches, steps, num_threads=settings.read_ahead, num_workers=settings.num_workers),
        accelerator=accelerator,
        model=training.model,
        optimizer=training.optimizer,
        learning_rate=lambda step: rate_of(training, step),
        weight_decay=lambda step: learner.weight_decay(step, training.num_steps),
        first_step=steps.start,
        num_steps=steps.stop,
        step_seed=lambda step: step_seed(settings.seed, step, accelerator.process_index),
        accumulate=settings.gradient_accumulation,
        clip_grad=settings.clip_grad,
        ema=training.ema,
    )


def rate_of(training: TrainingRun, step: int) -> float:
    """The learning rate of the update after `step` updates."""
    settings = training.settings
    steps_per_epoch = len(training.learner.train) / settings.batch_size
    return learning_rate(
        step,
        schedule="restarts" if settings.decay_lr else settings.schedule,
        lr=settings.lr,
        lr_min=settings.lr_min,
        num_steps=training.num_steps,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        period_steps=max(round(settings.period_epochs * steps_per_epoch), 1),
        gamma=settings.gamma,
    )


def log_update(training: TrainingRun, lr: float, metrics: Any) -> float:
    """Write the metrics of an update, as means over ranks; returns the loss. Raises NotFinite where it is not
    finite."""
    step, settings = training.progress.step, training.settings
    means = mean_over_ranks(training.accelerator, metrics)
    if training.tracker is not None:
        epoch = step * settings.batch_size / len(training.learner.train)
        training.tracker.log(
            step, {"epoch": epoch, "lr": lr, **{f"train/{name}": value for name, value in means.items()}}
        )
    scaler = training.accelerator.scaler
    # While the scaler of fp16 looks for its scale, it skips updates.
    if not math.isfinite(means["loss"]) and (scaler is None or scaler.get_scale() < 1):
        first, loss = training.losses.read() or (step, means["loss"])
        raise NotFinite(in_words(f"the loss is {loss} at step {first}"))
    return means["loss"]


def watched(training: TrainingRun, update: Update) -> Tensor | None:
    """The loss of an update, which must be finite; None with fp16, whose scaler leaves out such updates."""
    if training.accelerator.scaler is not None:
        return None
    training.losses.note(update.step, update.metrics["loss"])
    return update.metrics["loss"]


def refuse_divergence(training: TrainingRun) -> None:
    """Raise NotFinite, naming the first step, where a loss so far, the weights, or what is saved beside them are not
    finite on any rank. All must call it, before anything is evaluated or saved."""
    found, now = training.losses.read(), training.progress.step
    told = [(found[0], f"the loss is {found[1]} at step {found[0]}")] if found else []
    told += [(now + 1, f"{name}: not all numbers are finite after step {now}") for name in training.not_finite]
    problems = gather_lists(training.accelerator, told)
    if problems:
        raise NotFinite(in_words(min(problems)[1]))


def in_words(problem: str) -> str:
    """What a user can do about numbers that are not finite."""
    return (
        f"{problem}; use a lower --lr, a --clip_grad, or --precision fp32, and another --run. "
        "The last checkpoint is from before."
    )


def evaluate(training: TrainingRun) -> bool:
    """Evaluate on the validation samples; returns whether the weights are kept as the best so far. Raises ValueError
    where the evaluation finds that it is no use to go on."""
    progress = training.progress
    refuse_divergence(training)
    found = training.learner.evaluate(training.evaluated(), training.accelerator, training.watchdog.beat)
    if training.tracker is not None:
        training.tracker.log(progress.step, {f"val/{name}": value for name, value in found.metrics.items()})
    require(not found.problem, found.problem)
    if found.score is None:
        return False
    if math.isnan(found.score):
        progress.undefined += steps_between(training)
        announce(
            training.accelerator,
            f"after step {progress.step}: the {training.learner.score_name} of the validation images is undefined; it "
            "chooses no weights, and uses up no patience",
        )
        return False
    return progress.judge(found.score, found.loss)


def prepare_saving(training: TrainingRun) -> None:
    """Get the memory for checkpoints, once the optimizer has its states."""
    states = training.states()
    if training.accelerator.is_main_process:
        training.saver.prepare(states)


def save(training: TrainingRun, *, better: bool, last: bool) -> None:
    """Begin to write a checkpoint, and with it the best weights if it has them; with `last`, all ranks go on when it is
    safe."""
    folder, step = training.checkpoints, training.progress.step
    refuse_divergence(training)

    def ready(written: Path) -> None:
        refuse_if_superseded(training.settings.run, training.attempt)
        if training.tracker is not None:
            training.tracker.sync()
        # The best weights come first: a checkpoint must not tell of best weights that are not there.
        if better:
            checkpoint.link(written, checkpoint.step_folder(folder, step, kind="best"), training.best_names)

    def write(taken: Snapshot) -> None:
        checkpoint.write(checkpoint.step_folder(folder, step), taken, ready=ready)
        remove_old(training)

    states = training.states()
    on_main(training.accelerator, lambda: training.saver.begin(states, write))
    if last:
        on_main(training.accelerator, training.saver.wait)
    training.watchdog.beat()


def save_best(training: TrainingRun) -> None:
    """Begin to write the weights that were evaluated as the best."""
    path = checkpoint.step_folder(training.checkpoints, training.progress.step, kind="best")

    def write(taken: Snapshot) -> None:
        checkpoint.write(path, taken, ready=lambda _: refuse_if_superseded(training.settings.run, training.attempt))
        remove_old(training)

    states = training.best_states()
    on_main(training.accelerator, lambda: training.saver.begin(states, write))


def remove_old(training: TrainingRun) -> None:
    """Remove what newer checkpoints and better weights make superfluous."""
    settings = training.settings
    checkpoint.remove_old(training.checkpoints, count=1, kind="best")
    checkpoint.remove_old(training.checkpoints, count=settings.keep_checkpoints, every_hours=settings.keep_every_hours)


def leave(training: TrainingRun, stop: StopFlag) -> tuple[str, int]:
    """What is left to do when told to stop, after the save."""
    step = training.progress.step
    name = next(filter(None, gather_lists(training.accelerator, [stop.signal_name])))
    on_main(training.accelerator, lambda: write_record(training.settings.run / STOPPED, {"step": step, "signal": name}))
    announce(training.accelerator, f"told to stop ({name}); saved after step {step}. The same command continues.")
    return f"stopped by {name}", EXIT_STOPPED
