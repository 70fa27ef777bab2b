"""Noise schedules. A schedule is the log signal-to-noise ratio at times 0 (almost the image) to T - 1 (almost pure
noise), float64 (T,), decreasing: log(alpha^2 / sigma^2) for an image of weight alpha in noise of weight sigma, alpha^2
+ sigma^2 = 1.

The log keeps both ends precise, where 1 - alpha^2 or alpha^2 is close to 0.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_BETA = 0.999
"""Largest fraction of the variance that noise takes in one time step (Nichol & Dhariwal 2021, arXiv:2102.09672, section
3.2)."""


def linear(num_times: int = 1000) -> Tensor:
    """Return the linear schedule: beta from 1e-4 to 0.02 along a line (Ho et al. 2020, arXiv:2006.11239, section 4) for
    1000 times; for other T, beta is multiplied by 1000 / T, so that both ends stay the same.

    Example:
        >>> schedule = linear(1000)
        >>> schedule.shape, round(float(schedule[0]), 2)
        (torch.Size([1000]), 9.21)
    """
    betas = torch.linspace(1e-4, 0.02, check_times(num_times), dtype=torch.float64) * (1000 / num_times)
    return from_betas(betas)


def cosine(num_times: int = 1000, *, offset: float = 0.008) -> Tensor:
    """Return the cosine schedule: the signal is a squared cosine (Nichol & Dhariwal 2021, arXiv:2102.09672, equation
    17).

    Args:
        num_times: T, at least 2.
        offset: keeps the noise at time 0 above zero; dimensionless.

    Raises:
        ValueError: `num_times` is below 2.

    Example:
        >>> bool((cosine(1000).diff() < 0).all())
        True
    """
    return from_signal(num_times, lambda u: torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2)


def sigmoid(num_times: int = 1000, *, start: float = -3, end: float = 3, tau: float = 1) -> Tensor:
    """Return the sigmoid schedule: the signal is a piece of the logistic function (Jabri et al. 2022, arXiv:2212.11972,
    algorithm 2; not the one on betas that diffusers calls sigmoid).

    Args:
        num_times: T, at least 2.
        start: argument of the logistic function at time 0, before the division by `tau`.
        end: argument at time T.
        tau: temperature, above 0.

    Raises:
        ValueError: `num_times` is below 2.

    Example:
        >>> sigmoid(100).shape
        torch.Size([100])
    """
    last = 1 / (1 + math.exp(-end / tau))
    return from_signal(num_times, lambda u: last - torch.sigmoid((u * (end - start) + start) / tau))


def check_times(num_times: int) -> int:
    """Return `num_times`. Raises ValueError if it is below 2."""
    if num_times < 2:
        raise ValueError(f"num_times={num_times} is too small; it must be 2 or more (1000 is usual).")
    return num_times


def from_signal(num_times: int, signal: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a schedule from its signal.

    Args:
        num_times: T, at least 2.
        signal: returns alpha^2, up to a factor, at times between 0 and 1.

    Raises:
        ValueError: `num_times` is below 2.
    """
    levels = signal(torch.arange(check_times(num_times) + 1, dtype=torch.float64) / num_times)
    return from_betas(1 - levels[1:] / levels[:-1])


def from_betas(betas: Tensor) -> Tensor:
    """Return a schedule from beta, the fraction of the variance that becomes noise at each time, (T,)."""
    log_signal = torch.log1p(-betas.clamp(max=MAX_BETA)).cumsum(0)
    return log_signal - torch.log(-torch.expm1(log_signal))


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights alpha of the image and sigma of the noise, in the shape of `log_snr`.

    Example:
        >>> alpha, sigma = alpha_sigma(torch.tensor(0.0))
        >>> round(float(alpha), 4), round(float(sigma), 4)
        (0.7071, 0.7071)
    """
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def log_snr_at(schedule: Tensor, times: Tensor) -> Tensor:
    """Return the log signal-to-noise ratio at given times, float64, interpolated linearly between integer times.

    Args:
        schedule: (T,).
        times: any shape, in [0, T - 1].
    """
    below = times.double().floor().clamp(0, len(schedule) - 2).long()
    return torch.lerp(schedule[below], schedule[below + 1], times.double() - below)


def time_of(schedule: Tensor, log_snr: Tensor) -> Tensor:
    """Return the times of given log signal-to-noise ratios: the inverse of `log_snr_at`.

    Args:
        schedule: (T,).
        log_snr: any shape, within the range of the schedule.

    Example:
        >>> schedule = cosine(1000)
        >>> round(float(time_of(schedule, log_snr_at(schedule, torch.tensor([12.5])))), 6)
        12.5
    """
    above = torch.searchsorted(-schedule, -log_snr).clamp(1, len(schedule) - 1)
    before, after = schedule[above - 1], schedule[above]
    return above - 1 + (log_snr - before) / (after - before)
