"""Learning rates as functions of the step: nothing to save, nothing to restore."""

import math
from typing import Literal, get_args

from deeplense.choices import require_choice

Schedule = Literal["constant", "cosine", "restarts", "step"]


def learning_rate(
    step: int,
    *,
    schedule: Schedule,
    lr: float,
    lr_min: float,
    num_steps: int,
    warmup_steps: int,
    period_steps: int,
    gamma: float,
) -> float:
    """The learning rate of the update after `step` updates: a linear warm-up to `lr`, then the schedule.

    Args:
        step: updates made so far.
        schedule: `constant`; `cosine` from lr to lr_min at num_steps; `restarts`, that cosine again and again, each
            `period_steps`
            long (Loshchilov and Hutter 2017, with T_mult = 1); `step`, times `gamma` after every `period_steps`.
        lr: the highest rate.
        lr_min: the lowest rate of the cosines.
        num_steps: updates of the whole training.
        warmup_steps: updates of the warm-up.
        period_steps: at least 1.
        gamma: a factor.
    """
    require_choice("schedule", schedule, get_args(Schedule))
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    after = step - warmup_steps
    if schedule == "cosine":
        return cosine(after / max(num_steps - warmup_steps, 1), high=lr, low=lr_min)
    if schedule == "restarts":
        return cosine(after % period_steps / period_steps, high=lr, low=lr_min)
    if schedule == "step":
        return lr * gamma ** (after // period_steps)
    return lr


def cosine(progress: float, *, high: float, low: float) -> float:
    """Half a cosine from `high` at 0 to `low` at 1."""
    return low + (high - low) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
