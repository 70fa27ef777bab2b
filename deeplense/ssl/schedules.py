"""Numbers that change in the course of a pretraining, as functions of the updates made: nothing to save."""

import math


def cosine(step: int, num_steps: int, *, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at `num_steps`."""
    return end + (start - end) * (1 + math.cos(math.pi * min(step / num_steps, 1))) / 2


def ramp(step: int, num_steps: int, *, start: float, end: float) -> float:
    """A line from `start` at step 0 to `end` at `num_steps`, and `end` from there on."""
    return start + (end - start) * (step / num_steps) if step < num_steps else end
