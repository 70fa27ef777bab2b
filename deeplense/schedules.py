"""Values that change in the course of a training, as functions of the step: nothing to save, nothing to restore."""

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
    """Return the learning rate of the update after `step` updates: a linear warm-up to `lr`, then the schedule.

    Args:
        step: number of updates made so far.
        schedule: `constant`; `cosine` from `lr` to `lr_min` at `num_steps`; `restarts`, that cosine repeated, each
            `period_steps` long (Loshchilov and Hutter 2017, with T_mult = 1); `step`, multiplied by `gamma` after every
            `period_steps`.
        lr: highest learning rate.
        lr_min: lowest learning rate of the cosines.
        num_steps: number of updates of the whole training.
        warmup_steps: number of updates of the warm-up; 0 for none.
        period_steps: number of updates of a period, at least 1.
        gamma: factor per period of the schedule `step`.

    Raises:
        ValueError: unknown schedule.

    Example:
        >>> options = dict(schedule="cosine", lr=1.0, lr_min=0.0, period_steps=1, gamma=1.0)
        >>> [round(learning_rate(step, num_steps=10, warmup_steps=2, **options), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    require_choice("schedule", schedule, get_args(Schedule))
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    after = step - warmup_steps
    if schedule == "cosine":
        return cosine(after, max(num_steps - warmup_steps, 1), start=lr, end=lr_min)
    if schedule == "restarts":
        return cosine(after % period_steps, period_steps, start=lr, end=lr_min)
    if schedule == "step":
        return lr * gamma ** (after // period_steps)
    return lr


def cosine(step: int, num_steps: int, *, start: float, end: float) -> float:
    """Return a value on half a cosine from `start` at step 0 to `end` at `num_steps`, and `end` after that.

    Args:
        step: number of steps made, 0 or more.
        num_steps: length of the half cosine in steps, at least 1.
        start: value at step 0.
        end: value at `num_steps`.

    Example:
        >>> [round(cosine(step, 10, start=1.0, end=0.0), 2) for step in (0, 5, 10, 20)]
        [1.0, 0.5, 0.0, 0.0]
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(step / num_steps, 1))) / 2


def ramp(step: int, num_steps: int, *, start: float, end: float) -> float:
    """Return a value on a line from `start` at step 0 to `end` at `num_steps`, and `end` after that.

    Args:
        step: number of steps made, 0 or more.
        num_steps: length of the line in steps; 0 for `end` at once.
        start: value at step 0.
        end: value at `num_steps`.

    Example:
        >>> [ramp(step, 10, start=0.0, end=1.0) for step in (0, 5, 20)]
        [0.0, 0.5, 1.0]
    """
    return start + (end - start) * (step / num_steps) if step < num_steps else end
