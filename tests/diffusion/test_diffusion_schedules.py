"""How much noise there is at each time."""

import math
from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deeplense.diffusion.schedules import (
    alpha_sigma,
    cosine,
    from_betas,
    linear,
    log_snr_at,
    sigmoid,
    time_of,
)
from deeplense.diffusion.zoo import SCHEDULES

Theirs = Literal["linear", "squaredcos_cap_v2"]


def alpha_bar(log_snr: Tensor) -> Tensor:
    """The share of the variance that is the image's."""
    return alpha_sigma(log_snr)[0].square()


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_alpha_bar_is_that_of_diffusers(name: str, theirs: Theirs) -> None:
    oracle = DDPMScheduler(1000, beta_schedule=theirs).alphas_cumprod.double()
    assert (alpha_bar(SCHEDULES[name](1000)) - oracle).abs().max() < 1e-6


def test_the_ends_of_the_cosine_are_those_of_the_paper() -> None:
    schedule = cosine()
    assert alpha_bar(schedule)[-1].item() == pytest.approx(2.4288e-9, rel=1e-4)
    assert (schedule[0].item(), schedule[-1].item()) == pytest.approx((10.09, -19.84), abs=0.01)
    assert (alpha_bar(schedule)[-1] / alpha_bar(schedule)[-2]).item() == pytest.approx(0.001)
    assert (alpha_bar(schedule)[499] / math.cos(0.508 / 1.008 * math.pi / 2) ** 2).item() == pytest.approx(1, rel=2e-4)


def test_the_sigmoid_is_that_of_jabri_and_not_that_of_diffusers() -> None:
    levels = alpha_bar(sigmoid())
    assert levels[500].item() == pytest.approx(0.498, abs=1e-3)
    assert DDPMScheduler(1000, beta_schedule="sigmoid").alphas_cumprod[500].item() == pytest.approx(0.299, abs=1e-3)
    assert (levels[249] + levels[749]).item() == pytest.approx(1, abs=1e-9), "it is as far from one end as the other"


def test_betas_give_what_their_products_give() -> None:
    betas = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert alpha_bar(from_betas(betas)).tolist() == pytest.approx([0.9, 0.45, 0.00045], rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_times", [2, 20, 1000, 4000])
def test_noise_only_grows(name: str, num_times: int) -> None:
    schedule = SCHEDULES[name](num_times)
    assert schedule.shape == (num_times,)
    assert schedule.dtype == torch.float64
    assert schedule.isfinite().all()
    assert (schedule.diff() < 0).all()
    alpha, sigma = alpha_sigma(schedule)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14)
    assert torch.allclose(2 * torch.log(alpha / sigma), schedule, rtol=1e-12)


def test_a_linear_schedule_of_other_lengths_ends_in_as_much_noise() -> None:
    assert linear(4000)[-1].item() == pytest.approx(linear(1000)[-1].item(), abs=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_whole_times_give_the_table_to_the_bit(name: str) -> None:
    schedule = SCHEDULES[name](50)
    assert torch.equal(log_snr_at(schedule, torch.arange(50)), schedule)
    assert torch.allclose(time_of(schedule, schedule), torch.arange(50.0, dtype=torch.float64), atol=1e-12)


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 999), st.sampled_from(sorted(SCHEDULES)))
def test_a_time_is_found_again_from_its_noise(time: float, name: str) -> None:
    schedule = SCHEDULES[name](1000)
    times = torch.tensor([time], dtype=torch.float64)
    log_snr = log_snr_at(schedule, times)
    below, above = schedule[math.floor(time)], schedule[math.ceil(time)]
    assert above <= log_snr <= below
    assert time_of(schedule, log_snr).item() == pytest.approx(time, abs=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_one_time_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="num_times=1 is too small; it must be 2 or more"):
        SCHEDULES[name](1)
