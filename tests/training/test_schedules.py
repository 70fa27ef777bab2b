"""Learning rates: the laws of each schedule, and PyTorch's own schedules as oracles."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LRScheduler, StepLR

from deeplense.schedules import Schedule, learning_rate

LR, LR_MIN, NUM_STEPS, PERIOD, GAMMA = 0.3, 0.02, 40, 7, 0.6
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
Torch = Callable[[torch.optim.Optimizer], LRScheduler]


def rates(schedule: Schedule, *, warmup_steps: int = 0, count: int = NUM_STEPS) -> list[float]:
    """The rates of the first `count` updates."""
    return [
        learning_rate(
            step,
            schedule=schedule,
            lr=LR,
            lr_min=LR_MIN,
            num_steps=NUM_STEPS,
            warmup_steps=warmup_steps,
            period_steps=PERIOD,
            gamma=GAMMA,
        )
        for step in range(count)
    ]


def rates_of_torch(make: Torch, count: int) -> list[float]:
    """The rates of the first `count` updates by one of PyTorch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, T_max=NUM_STEPS, eta_min=LR_MIN)),
        ("restarts", lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=PERIOD, eta_min=LR_MIN)),
        ("step", lambda optimizer: StepLR(optimizer, step_size=PERIOD, gamma=GAMMA)),
        ("constant", lambda optimizer: StepLR(optimizer, step_size=1, gamma=1.0)),
    ],
)
def test_a_schedule_is_that_of_pytorch(schedule: Schedule, make: Torch) -> None:
    assert rates(schedule) == pytest.approx(rates_of_torch(make, NUM_STEPS))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_linear_and_the_schedule_follows_it_unchanged(schedule: Schedule) -> None:
    warmed = rates(schedule, warmup_steps=10)
    assert warmed[:10] == pytest.approx([LR * k / 10 for k in range(1, 11)])
    assert warmed[10] == LR
    if schedule != "cosine":
        assert warmed[10:] == rates(schedule)[:-10]


def test_a_cosine_falls_all_the_way_to_the_lowest_rate_and_stays_there() -> None:
    for warmup_steps in (0, 10, NUM_STEPS):
        found = rates("cosine", warmup_steps=warmup_steps, count=NUM_STEPS + 20)[warmup_steps:]
        assert found == sorted(found, reverse=True)
        assert found[NUM_STEPS - warmup_steps + 1 :] == pytest.approx([LR_MIN] * 19)


def test_restarts_are_periodic_and_a_step_multiplies_by_gamma() -> None:
    restarts, steps = rates("restarts"), rates("step")
    assert restarts[PERIOD:] == restarts[:-PERIOD]
    assert [restarts[k] for k in range(0, NUM_STEPS, PERIOD)] == [LR] * 6
    assert steps[PERIOD:] == pytest.approx([GAMMA * rate for rate in steps[:-PERIOD]])


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(SCHEDULES), st.permutations(range(NUM_STEPS)), st.integers(0, NUM_STEPS))
def test_a_rate_depends_on_its_step_alone_and_stays_within_bounds(
    schedule: Schedule, order: list[int], warmup_steps: int
) -> None:
    in_order = rates(schedule, warmup_steps=warmup_steps)
    for step in order[:5]:
        assert rates(schedule, warmup_steps=warmup_steps, count=step + 1)[step] == in_order[step]
    assert min(in_order) > 0
    assert max(in_order) <= LR
