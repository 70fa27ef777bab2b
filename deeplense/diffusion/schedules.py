"""How much noise there is at each time of a diffusion. A schedule is the log of the signal-to-noise ratio at times
0 (almost the image) to T - 1 (almost all noise), float64 (T,), falling: log(alpha^2 / sigma^2) for an image of weight
alpha in noise of weight sigma, alpha^2 + sigma^2 = 1.

The log keeps both ends to the last digits, where 1 - alpha^2 and alpha^2 are near 0.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deeplense.choices import Choices

MAX_BETA = 0.999
"""Largest share of the variance that noise takes in one time step (Nichol & Dhariwal 2021, arXiv:2102.09672,
section 3.2)."""


def linear(num_times: int = 1000) -> Tensor:
    """Shares of noise beta from 1e-4 to 0.02 along a line (Ho et al. 2020, arXiv:2006.11239, section 4) for 1000
    times; for other numbers, times 1000 / T, so that the ends stay where they are."""
    betas = torch.linspace(1e-4, 0.02, check_times(num_times), dtype=torch.float64) * (1000 / num_times)
    return from_betas(betas)


def cosine(num_times: int = 1000, *, offset: float = 0.008) -> Tensor:
    """The signal falls as a cosine squared (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17)."""
    return from_signal(num_times, lambda u: torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2)


def sigmoid(num_times: int = 1000, *, start: float = -3, end: float = 3, tau: float = 1) -> Tensor:
    """The signal falls as a piece of the logistic function, from `start` to `end`, in units of `tau` (Jabri et al.
    2022, arXiv:2212.11972, algorithm 2; not the one on betas that diffusers calls so)."""
    last = 1 / (1 + math.exp(-end / tau))
    return from_signal(num_times, lambda u: last - torch.sigmoid((u * (end - start) + start) / tau))


SCHEDULES: Choices[Callable[[int], Tensor]] = Choices(
    "noise_schedule", {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
)


def check_times(num_times: int) -> int:
    """Raise ValueError where there are less than two."""
    if num_times < 2:
        raise ValueError(f"num_times={num_times} is no schedule; it must be 2 or more (1000 is usual).")
    return num_times


def from_signal(num_times: int, signal: Callable[[Tensor], Tensor]) -> Tensor:
    """From alpha^2, up to a factor, as a function of time between 0 and 1: its ratios from one time to the next."""
    levels = signal(torch.arange(check_times(num_times) + 1, dtype=torch.float64) / num_times)
    return from_betas(1 - levels[1:] / levels[:-1])


def from_betas(betas: Tensor) -> Tensor:
    """From the share of the variance that becomes noise at each time, (T,)."""
    log_signal = torch.log1p(-betas.clamp(max=MAX_BETA)).cumsum(0)
    return log_signal - torch.log(-torch.expm1(log_signal))


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of image and noise."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def log_snr_at(schedule: Tensor, times: Tensor) -> Tensor:
    """The log of the signal-to-noise ratio at times in [0, T - 1], float64; between whole ones along a line."""
    below = times.double().floor().clamp(0, len(schedule) - 2).long()
    return torch.lerp(schedule[below], schedule[below + 1], times.double() - below)


def time_of(schedule: Tensor, log_snr: Tensor) -> Tensor:
    """The times with these signal-to-noise ratios: the inverse of `log_snr_at`."""
    above = torch.searchsorted(-schedule, -log_snr).clamp(1, len(schedule) - 1)
    before, after = schedule[above - 1], schedule[above]
    return above - 1 + (log_snr - before) / (after - before)
