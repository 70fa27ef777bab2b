"""Detection of values that are not finite. It ends the training before such values are evaluated or saved."""

import math

from accelerate import Accelerator

from deeplense.training.finite import LossWatch, NotFinite
from deeplense.training.loop import Update, gather_lists, mean_over_ranks
from jobs.frame.weights import Weights


def watch(losses: LossWatch, accelerator: Accelerator, update: Update) -> None:
    """Record the loss of an update, which must be finite. With fp16 it is not checked, because the scaler skips such
    updates."""
    if accelerator.scaler is None:
        losses.note(update.step, update.metrics["loss"])


def means_of(update: Update, losses: LossWatch, accelerator: Accelerator) -> dict[str, float]:
    """Return the metrics of an update as means over the samples of all ranks. Raises NotFinite if the loss is not
    finite."""
    means = mean_over_ranks(accelerator, update.metrics, weight=update.weight)
    scaler = accelerator.scaler
    # The scaler of fp16 skips updates while it searches for its scale.
    if not math.isfinite(means["loss"]) and (scaler is None or scaler.get_scale() < 1):
        first, loss = losses.read() or (update.step, means["loss"])
        raise NotFinite(in_words(f"the loss is {loss} at step {first}"))
    return means


def refuse_divergence(losses: LossWatch, weights: Weights, *, step: int) -> None:
    """Raise NotFinite, naming the first step, if a loss so far, the weights, or other saved states are not finite on
    any rank. All ranks must call it before anything is evaluated or saved."""
    found = losses.read()
    told = [(found[0], f"the loss is {found[1]} at step {found[0]}")] if found else []
    told += [(step + 1, f"{name}: some values are not finite after step {step}") for name in weights.not_finite]
    problems = gather_lists(weights.accelerator, told)
    if problems:
        raise NotFinite(in_words(min(problems)[1]))


def in_words(problem: str) -> str:
    """Return a message about values that are not finite, with advice for the user."""
    return (
        f"{problem}; use a lower --lr, a --clip_grad, or --precision fp32, and another --run. "
        "The last checkpoint was saved before this."
    )
