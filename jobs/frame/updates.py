"""The training loop of an attempt: update, evaluate, save, stop."""

import contextlib
import math
from collections.abc import Iterator

from deeplense.data.loading import StepBatches, step_loader
from deeplense.random.draws import step_seed
from deeplense.records import write_record
from deeplense.training.agreement import SECONDS, Agreement, Request
from deeplense.training.finite import LossWatch, NotFinite
from deeplense.training.loop import Update, fit, gather_lists
from deeplense.training.stopping import StopFlag
from jobs.console import Reporter
from jobs.data.order import make_order
from jobs.frame import saving
from jobs.frame.attempt import Attempt
from jobs.frame.divergence import means_of, refuse_divergence, watch
from jobs.frame.plan import Progress
from jobs.frame.saving import SaveClock
from jobs.frame.start import Training
from jobs.frame.weights import Weights
from jobs.ranks import announce, on_main
from jobs.runs.attempts import DIVERGED, EXIT_STOPPED
from jobs.runs.folder import FINISHED, STOPPED
from jobs.runs.progress import ProgressFile
from jobs.settings import require


def train_to_the_end(training: Training, stop: StopFlag) -> int:
    """Run the remaining updates and record why the attempt ended. Returns the exit code."""
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
            training.attempt.saver.wait()
        training.attempt.end(step=training.progress.step, reason=reason, code=code)
    accelerator = training.weights.accelerator
    # Without the wait a rank may tear the group down while another still reads the last message.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return code


def update_until_done(training: Training, stop: StopFlag) -> tuple[str, int]:
    """Run the remaining updates. Returns the reason why they ended and the exit code."""
    run, accelerator = training.attempt.run, training.weights.accelerator
    plan, progress, score_name = training.plan, training.progress, training.learner.score_name
    main = accelerator.is_main_process
    file = ProgressFile(run, total=plan.num_steps, first=progress.step) if main else None
    with Reporter(total=plan.num_steps, unit="steps", done=progress.step, enabled=main) as reporter:
        for loss in advance(training, stop):
            if file is not None:
                file.update(progress.step)
            best = best_in_words(progress, score_name)
            # The loss is unknown until the first line is logged.
            epoch = f"epoch {plan.epoch(progress.step):.1f} of {plan.settings.epochs:g}"
            known = [] if math.isnan(loss) else [f"loss {loss:.4f}", *best]
            reporter.update(progress.step, ", ".join([epoch, *known]))
    if file is not None:
        file.update(progress.step, at_once=True)
    if not plan.is_done(progress):
        return leave(training.attempt, training.weights, stop, step=progress.step)
    best = {"best": progress.best, "best_step": progress.best_step} if progress.best_step else {}
    on_main(accelerator, lambda: write_record(run / FINISHED, {"step": progress.step} | best))
    if progress.step < plan.num_steps:
        announce(
            accelerator,
            f"early stopping: no better score for {plan.patience_epochs} epochs, since step {progress.highest_step}",
        )
    words = best_in_words(progress, score_name)
    kept = [f"kept the weights of step {progress.best_step}" for _ in words]
    announce(accelerator, "; ".join([f"finished after step {progress.step}", *kept, *words]))
    return "finished", 0


def best_in_words(progress: Progress, score_name: str) -> list[str]:
    """Describe the score of the weights that are kept, if there are any, and the highest score if it is another."""
    if not progress.best_step:
        return []
    highest = f" (highest {progress.highest:.4f} at step {progress.highest_step})"
    return [f"best {score_name} {progress.best:.4f}{highest if progress.highest > progress.best else ''}"]


def advance(training: Training, stop: StopFlag) -> Iterator[float]:
    """Update, log, evaluate and save until finished or stopped. Yields the last logged loss after each update."""
    attempt, weights, losses = training.attempt, training.weights, training.losses
    settings, plan, progress = attempt.settings, training.plan, training.progress
    accelerator, saver, clock = weights.accelerator, attempt.saver, SaveClock(60 * settings.checkpoint_minutes)
    agreement = Agreement(accelerator, seconds=min(SECONDS, clock.seconds))
    first, loss = progress.step + 1, math.nan
    for update in updates(training):
        progress.step = update.step
        watch(losses, accelerator, update)
        training.trainee.after_update(update.step, accelerator)
        # A write that never ends counts as a hang.
        if saver.seconds <= 60 * settings.hang_minutes:
            attempt.watchdog.beat()
        if update.step == plan.num_steps or update.step % settings.log_interval == 0:
            loss = log_update(training, update)
        better = plan.is_evaluated(update.step) and evaluate(training)
        due = clock.is_due(agreement, better=better, writing=saver.writing)
        agreed = agreement.exchange(requests(attempt, weights, losses, stop, due=due))
        if Request.DIVERGED in agreed:
            refuse_divergence(losses, weights, step=progress.step)
        if Request.FAIL in agreed:
            on_main(accelerator, saver.wait)
        last = plan.is_done(progress) or Request.STOP in agreed
        if last or Request.SAVE in agreed:
            refuse_divergence(losses, weights, step=progress.step)
            saving.save(attempt, weights, progress, better=better, last=last)
            clock.saved()
        elif better:
            saving.save_best(attempt, weights, progress)
        elif update.step == first:
            saving.prepare(attempt, weights, progress)
        yield loss
        if last:
            agreement.finish()
            return


def requests(attempt: Attempt, weights: Weights, losses: LossWatch, stop: StopFlag, *, due: bool) -> Request:
    """Return what this rank requests from all ranks."""
    wanted = {
        Request.STOP: bool(stop.signal_name),
        Request.SAVE: due and weights.accelerator.is_main_process,
        Request.FAIL: attempt.saver.failed,
        Request.DIVERGED: losses.seen(),
    }
    return Request(sum(request for request, wants in wanted.items() if wants))


def updates(training: Training) -> Iterator[Update]:
    """Yield the remaining updates of a training."""
    settings, learner, trainee = training.attempt.settings, training.learner, training.trainee
    weights, plan, progress = training.weights, training.plan, training.progress
    accelerator = weights.accelerator
    batches = StepBatches(
        learner.train.split,
        make_order(settings, learner.train),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        target=learner.train.target,
        num_uniforms=trainee.columns.total,
    )
    steps = range(progress.step, progress.step if plan.is_done(progress) else plan.num_steps)
    return fit(
        lambda batch: trainee.step(weights.model, batch, progress.step),
        step_loader(
            batches,
            steps,
            num_threads=settings.read_ahead,
            num_workers=settings.num_workers,
            pinned=accelerator.device.type == "cuda",
        ),
        accelerator=accelerator,
        model=weights.model,
        optimizer=weights.optimizer,
        learning_rate=plan.learning_rate,
        weight_decay=lambda step: learner.weight_decay(step, plan.num_steps),
        first_step=steps.start,
        num_steps=steps.stop,
        step_seed=lambda step: step_seed(settings.seed, step, accelerator.process_index),
        batch_size=settings.batch_size,
        accumulate=settings.gradient_accumulation,
        clip_grad=settings.clip_grad,
        ema=weights.ema,
    )


def log_update(training: Training, update: Update) -> float:
    """Log the metrics of an update as means over ranks, and return the loss. Raises NotFinite if it is not finite."""
    means = means_of(update, training.losses, training.weights.accelerator)
    values = {
        "epoch": training.plan.epoch(update.step),
        "lr": update.lr,
        **{f"train/{name}": value for name, value in means.items()},
    }
    training.attempt.log(update.step, values)
    return means["loss"]


def evaluate(training: Training) -> bool:
    """Evaluate on the validation samples. Returns whether the weights are kept as the best so far. Raises ValueError if
    the evaluation shows that the training must not continue."""
    attempt, weights, progress = training.attempt, training.weights, training.progress
    refuse_divergence(training.losses, weights, step=progress.step)
    found = training.trainee.evaluate(
        weights.evaluated(), weights.accelerator, step=progress.step, beat=attempt.watchdog.beat
    )
    attempt.log(progress.step, {f"val/{name}": value for name, value in found.metrics.items()})
    require(not found.problem, found.problem)
    if found.score is None:
        return False
    if math.isnan(found.score):
        progress.undefined += training.plan.steps_between
        announce(
            weights.accelerator,
            f"after step {progress.step}: the {training.learner.score_name} of the validation images is undefined; it "
            "is ignored for the choice of the best weights and for early stopping",
        )
        return False
    return progress.judge(found.score, found.loss)


def leave(attempt: Attempt, weights: Weights, stop: StopFlag, *, step: int) -> tuple[str, int]:
    """Record and report a stop by a signal, after the checkpoint was saved. Returns the reason and the exit code."""
    name = next(filter(None, gather_lists(weights.accelerator, [stop.signal_name])))
    on_main(weights.accelerator, lambda: write_record(attempt.run / STOPPED, {"step": step, "signal": name}))
    announce(weights.accelerator, f"stopped by {name}; saved after step {step}. Run the same command again to resume.")
    return f"stopped by {name}", EXIT_STOPPED
