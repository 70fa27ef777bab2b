"""Samplers: from noise to images in steps. Shapes: S evaluations of the denoiser, B batch, T times.

Each sampler is a table: the next image is a weighted sum of the last image, its denoised image, the denoised image
before, and fresh noise. So samplers differ in numbers alone, which are computed in float64 on the CPU, and one loop, or
one recorded step, runs them all.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplense.diffusion.denoiser import Denoise
from deeplense.diffusion.schedules import alpha_sigma, log_snr_at, time_of

LOWEST_LOG_SNR = -10.2
"""Where solvers of few steps begin: there an image has 0.6 % of its amplitude, and is as good as noise. The cosine
schedule continues to -20, where steps are wasted; diffusers recommends the same cut (lambda = -5.1)."""


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler: what it does in each of its S evaluations of the denoiser."""

    times: Tensor
    """(S,) in [0, T - 1], float64"""
    weights: Tensor
    """(S, 4), float64: of the image, of its denoised image, of the denoised image before, of fresh noise"""

    def __len__(self) -> int:
        return len(self.times)


def ddpm(schedule: Tensor, num_steps: int) -> Plan:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, arXiv:2006.11239, equations 6 and 7; with fewer
    steps than times, between the times that are visited).

    With fewer steps than times, images come out too smooth: the noise added is that of a perfectly known image.

    Args:
        schedule: log signal-to-noise ratios (T,) of schedules.py.
        num_steps: number of evaluations of the denoiser, 1 to T.

    Raises:
        ValueError: `num_steps` is out of range.

    Example:
        >>> from deeplense.diffusion.schedules import cosine
        >>> plan = ddpm(cosine(1000), 50)
        >>> len(plan), plan.weights.shape
        (50, torch.Size([50, 4]))
    """
    times = even_times(schedule, num_steps)
    (alpha, _), (next_alpha, next_sigma), ratio = ends(log_snr_at(schedule, times))
    image = ratio * next_alpha / alpha
    return make_plan(times, image, next_alpha * (1 - ratio), 0 * ratio, next_sigma * (1 - ratio).sqrt())


def ddim(schedule: Tensor, num_steps: int, *, eta: float = 0.0) -> Plan:
    """First-order sampler without or with fresh noise (Song et al. 2021, arXiv:2010.02502, equations 12 and 16).

    Args:
        schedule: log signal-to-noise ratios (T,).
        num_steps: number of evaluations of the denoiser, 1 to T.
        eta: fresh noise in units of that of `ddpm`, 0 (deterministic) to 1.

    Raises:
        ValueError: `num_steps` or `eta` is out of range.

    Example:
        >>> from deeplense.diffusion.schedules import cosine
        >>> float(ddim(cosine(1000), 10).weights[:, 3].abs().max())
        0.0
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must be between 0 (deterministic) and 1 (as much noise as ddpm).")
    times = even_times(schedule, num_steps)
    (alpha, sigma), (next_alpha, next_sigma), ratio = ends(log_snr_at(schedule, times))
    fresh = eta * next_sigma * (1 - ratio).sqrt()
    image = next_sigma / sigma * (1 - eta**2 + eta**2 * ratio).sqrt()
    return make_plan(times, image, next_alpha - image * alpha, 0 * ratio, fresh)


def dpm_solver(schedule: Tensor, num_steps: int) -> Plan:
    """DPM-Solver++(2M): second order, one evaluation per step (Lu et al. 2022, arXiv:2211.01095, algorithm 2), in even
    steps of the log signal-to-noise ratio.

    The first step, which has no earlier evaluation, and the last one, to the image itself, are of first order.

    Args:
        schedule: log signal-to-noise ratios (T,).
        num_steps: number of evaluations of the denoiser, 1 to T; 20 are usual.

    Raises:
        ValueError: `num_steps` is out of range.

    Example:
        >>> from deeplense.diffusion.schedules import cosine
        >>> start = torch.zeros(2, 1, 8, 8)
        >>> images = sample(lambda noisy, times: torch.ones_like(noisy), dpm_solver(cosine(1000), 5), lambda n: start)
        >>> images.shape, bool((images == 1).all())
        (torch.Size([2, 1, 8, 8]), True)
    """
    times = even_log_snr(schedule, num_steps)
    log_snr = log_snr_at(schedule, times)
    (alpha, sigma), (next_alpha, next_sigma), _ = ends(log_snr)
    image = next_sigma / sigma
    denoised = next_alpha - image * alpha
    steps = log_snr.diff()
    ahead = torch.zeros_like(log_snr)
    ahead[1:-1] = steps[1:] / (2 * steps[:-1])
    return make_plan(times, image, (1 + ahead) * denoised, -ahead * denoised, 0 * image)


def heun(schedule: Tensor, num_steps: int) -> Plan:
    """Heun's method on the probability flow: second order, two evaluations per step except the last, as in EDM (Karras
    et al. 2022, arXiv:2206.00364, algorithm 1), at even steps of the log signal-to-noise ratio.

    Its variable is the angle whose cosine and sine are alpha and sigma, along which the flow is v (Salimans & Ho 2022,
    arXiv:2202.00512, appendix D), not EDM's sigma / alpha, which is unbounded: with 20 steps for a Gaussian of width
    0.5, the latter is off by 4 %, this by 1 %.

    Args:
        schedule: log signal-to-noise ratios (T,).
        num_steps: number of steps, 1 to T; the denoiser is evaluated 2 * num_steps - 1 times.

    Raises:
        ValueError: `num_steps` is out of range.

    Example:
        >>> from deeplense.diffusion.schedules import cosine
        >>> len(heun(cosine(1000), 10))
        19
    """
    times = even_log_snr(schedule, num_steps)
    alpha, sigma = alpha_sigma(log_snr_at(schedule, times))
    angles = torch.atan2(sigma, alpha).diff()
    last = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    if num_steps == 1:
        return Plan(times, last)
    # Euler's step: x + angle (alpha x - x0) / sigma.
    guess = 1 + angles * alpha[:-1] / sigma[:-1], -angles / sigma[:-1]
    # Its middle with a step that goes on from there, with what was x written in what Euler made of it.
    onward = 1 + angles * alpha[1:] / sigma[1:], -angles / sigma[1:]
    corrected = (1 / guess[0] + onward[0]) / 2, onward[1] / 2, -guess[1] / guess[0] / 2
    nothing = torch.zeros_like(angles)
    pairs = torch.stack([torch.stack([*guess, nothing, nothing], 1), torch.stack([*corrected, nothing], 1)], 1)
    visited = torch.stack([times[:-1], times[1:]], dim=1).flatten()
    return Plan(torch.cat([visited, times[-1:]]), torch.cat([pairs.flatten(0, 1), last]))


def even_times(schedule: Tensor, num_steps: int) -> Tensor:
    """Return integer times from T - 1 to 0, evenly spaced, (num_steps,) float64 (Lin et al. 2024, arXiv:2305.08891,
    table 2: the last time, T - 1, must be included).

    Args:
        schedule: log signal-to-noise ratios (T,).
        num_steps: number of times, 1 to T.

    Raises:
        ValueError: `num_steps` is out of range.
    """
    check_steps(schedule, num_steps)
    return torch.linspace(len(schedule) - 1, 0, num_steps, dtype=torch.float64).round()


def even_log_snr(schedule: Tensor, num_steps: int) -> Tensor:
    """Return decreasing times, (num_steps,) float64, between which the log signal-to-noise ratio grows evenly.

    Args:
        schedule: log signal-to-noise ratios (T,).
        num_steps: number of times, 1 to T.

    Raises:
        ValueError: `num_steps` is out of range.
    """
    check_steps(schedule, num_steps)
    first, last = schedule[-1].clamp(min=LOWEST_LOG_SNR).item(), schedule[0].item()
    return time_of(schedule, torch.linspace(first, last, num_steps, dtype=torch.float64))


def check_steps(schedule: Tensor, num_steps: int) -> None:
    """Raise an error unless a schedule allows this number of steps.

    Args:
        schedule: log signal-to-noise ratios (T,).
        num_steps: number of steps.

    Raises:
        ValueError: `num_steps` is not between 1 and T.
    """
    if not 1 <= num_steps <= len(schedule):
        raise ValueError(
            f"num_steps={num_steps} must be from 1 to {len(schedule)}, the number of times of the schedule."
        )


def ends(log_snr: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Return alpha and sigma before and after each step, (S,), and the ratio of the signal-to-noise ratios before and
    after.

    After the last step there is no noise.
    """
    alpha, sigma = alpha_sigma(log_snr)
    next_alpha, next_sigma = torch.cat([alpha[1:], alpha.new_ones(1)]), torch.cat([sigma[1:], sigma.new_zeros(1)])
    return (alpha, sigma), (next_alpha, next_sigma), torch.cat([(-log_snr.diff()).exp(), log_snr.new_zeros(1)])


def make_plan(times: Tensor, *weights: Tensor) -> Plan:
    """Return a plan from its times (S,) and the four weights of each step, (S,) each.

    Args:
        times: (S,) in [0, T - 1].
        *weights: of the image, its denoised image, the denoised image before, and fresh noise, (S,) each.
    """
    return Plan(times, torch.stack(weights, dim=1))


@torch.no_grad()
def walk(denoise: Denoise, plan: Plan, noise: Callable[[int], Tensor]) -> Generator[Tensor, None, None]:
    """Yield the image after each evaluation of the denoiser; the last one is the sample.

    Args:
        denoise: maps noisy images (B, C, H, W) and their times (B,) to expected images without noise.
        plan: steps of a sampler.
        noise: returns the noise of step n, (B, C, H, W), for n from 1; n = 0 is the start image. Image k depends on its
            own noise alone, so if that is a function of (seed, k), as in noise.py, the image is, too. This holds to the
            last bit only in batches of one size, with the same number of threads or the same kind of GPU: otherwise a
            network sums in another order.
    """
    image = noise(0)
    before = torch.zeros_like(image)
    weights, times = plan.weights.to(image), plan.times.to(image.device)
    is_random = (plan.weights[:, 3] > 0).tolist()
    for n in range(len(plan)):
        denoised = denoise(image, times[n].expand(len(image)))
        image = advance(image, denoised, before, weights=weights[n])
        if is_random[n]:
            image = image + weights[n, 3] * noise(n + 1)
        before = denoised
        yield image


def advance(image: Tensor, denoised: Tensor, before: Tensor, *, weights: Tensor) -> Tensor:
    """Return the image after a step, without the fresh noise.

    Args:
        image: (B, C, H, W).
        denoised: its denoised image.
        before: the denoised image of the step before.
        weights: the weights of the step, (4,).
    """
    return weights[0] * image + weights[1] * denoised + weights[2] * before


def sample(denoise: Denoise, plan: Plan, noise: Callable[[int], Tensor]) -> Tensor:
    """Return the images (B, C, H, W) at the end of a `walk`.

    Args:
        denoise: maps noisy images (B, C, H, W) and their times (B,) to expected images without noise.
        plan: steps of a sampler, such as `dpm_solver(schedule, 20)`.
        noise: returns the noise of step n, (B, C, H, W); n = 0 is the start image.

    Example:
        >>> from deeplense.diffusion.schedules import cosine
        >>> start = torch.ones(1, 1, 4, 4)
        >>> sample(lambda noisy, times: 0 * noisy, ddim(cosine(1000), 4), lambda n: start).abs().max().item()
        0.0
    """
    return deque(walk(denoise, plan, noise), maxlen=1).pop()
