"""Schedules of pretraining."""

from itertools import pairwise

import numpy as np
import pytest
from lightly.utils.scheduler import cosine_schedule

from deeplense.schedules import cosine, ramp


def test_the_cosine_goes_from_start_to_end() -> None:
    values = [cosine(step, 40, start=0.99, end=1) for step in range(41)]
    assert values == pytest.approx([cosine_schedule(step, 41, 0.99, 1) for step in range(41)])
    assert (values[0], values[40], cosine(50, 40, start=0.99, end=1)) == pytest.approx((0.99, 1, 1))
    assert all(a < b for a, b in pairwise(values))


def test_the_ramp_is_a_line_and_then_flat() -> None:
    values = [ramp(step, 10, start=0.04, end=0.07) for step in range(16)]
    assert values == pytest.approx([*np.linspace(0.04, 0.07, 11), *[0.07] * 5])
    assert ramp(0, 0, start=0.04, end=0.07) == 0.07
