"""From noise to images, in steps. S evaluations of the denoiser, B batch, T times.

Each sampler is a table: the next image is a sum, with weights, of the last one, of what the denoiser said of it, of
what it said before, and of fresh noise. So they differ in numbers alone, which are made in float64, and one loop, or
one recorded step, does them all. They are made on the CPU.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplense.choices import Choices
from deeplense.diffusion.denoiser import Denoise
from deeplense.diffusion.schedules import alpha_sigma, log_snr_at, time_of

LOWEST_LOG_SNR = -10.2
"""Where solvers of few steps begin: there an image has 0.6 % of its amplitude, and is as good as noise. The cosine
schedule goes on to -20, where steps are wasted; diffusers advises the same cut for it (lambda = -5.1)."""


@dataclass(frozen=True)
class Plan:
    """What a sampler does in each of its S evaluations of the denoiser."""

    times: Tensor
    """(S,) in [0, T - 1], float64"""
    weights: Tensor
    """(S, 4), float64: of the image, of its denoised image, of the denoised image before, of fresh noise"""

    def __len__(self) -> int:
        return len(self.times)


def ddpm(schedule: Tensor, num_steps: int) -> Plan:
    """Ancestral sampling with the variance of the posterior (Ho et al. 2020, arXiv:2006.11239, equations 6 and 7; with
    fewer steps than times, between those that are taken).

    With less than all steps, images come out too smooth: its noise is that of a perfectly known image.
    """
    times = even_times(schedule, num_steps)
    (alpha, _), (next_alpha, next_sigma), ratio = ends(log_snr_at(schedule, times))
    image = ratio * next_alpha / alpha
    return make_plan(times, image, next_alpha * (1 - ratio), 0 * ratio, next_sigma * (1 - ratio).sqrt())


def ddim(schedule: Tensor, num_steps: int, *, eta: float = 0.0) -> Plan:
    """First order, with fresh noise of `eta` times what `ddpm` has, so 0 without (Song et al. 2021, arXiv:2010.02502,
    equations 12 and 16)."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must be between 0 (no fresh noise) and 1 (as much as ddpm).")
    times = even_times(schedule, num_steps)
    (alpha, sigma), (next_alpha, next_sigma), ratio = ends(log_snr_at(schedule, times))
    fresh = eta * next_sigma * (1 - ratio).sqrt()
    image = next_sigma / sigma * (1 - eta**2 + eta**2 * ratio).sqrt()
    return make_plan(times, image, next_alpha - image * alpha, 0 * ratio, fresh)


def dpm_solver(schedule: Tensor, num_steps: int) -> Plan:
    """DPM-Solver++(2M): second order, one evaluation a step (Lu et al. 2022, arXiv:2211.01095, algorithm 2), in even
    steps of the log signal-to-noise ratio. The first step, which knows nothing from before, and the last one, to the
    image itself, are of first order."""
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
    """Heun's method on the probability flow: second order, two evaluations a step but for the last, as in EDM (Karras
    et al. 2022, arXiv:2206.00364, algorithm 1), at even steps of the log signal-to-noise ratio.

    Its variable is the angle whose cosine and sine are alpha and sigma, along which the flow is v (Salimans & Ho 2022,
    arXiv:2202.00512, appendix D), not EDM's sigma / alpha, which has no bound: with 20 steps for a Gaussian of
    width 0.5, that is off by 4 %, this by 1 %.
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


SAMPLERS: Choices[Callable[[Tensor, int], Plan]] = Choices(
    "sampler",
    {
        "ddpm": ddpm,
        "ddim": ddim,
        "dpm_solver": dpm_solver,
        "heun": heun,
    },
)


def even_times(schedule: Tensor, num_steps: int) -> Tensor:
    """Whole times from T - 1 to 0, evenly spaced (Lin et al. 2024, arXiv:2305.08891, table 2: the last one must be
    there)."""
    check_steps(schedule, num_steps)
    return torch.linspace(len(schedule) - 1, 0, num_steps, dtype=torch.float64).round()


def even_log_snr(schedule: Tensor, num_steps: int) -> Tensor:
    """Times down to 0 between which the log of the signal-to-noise ratio grows evenly."""
    check_steps(schedule, num_steps)
    first, last = schedule[-1].clamp(min=LOWEST_LOG_SNR).item(), schedule[0].item()
    return time_of(schedule, torch.linspace(first, last, num_steps, dtype=torch.float64))


def check_steps(schedule: Tensor, num_steps: int) -> None:
    """Raise ValueError where so many steps cannot be made."""
    if not 1 <= num_steps <= len(schedule):
        raise ValueError(f"num_steps={num_steps} must be from 1 to {len(schedule)}, the times of the schedule.")


def ends(log_snr: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """alpha and sigma before and after each step, (S,), and the signal-to-noise ratio before over that after. After the
    last step there is no noise."""
    alpha, sigma = alpha_sigma(log_snr)
    next_alpha, next_sigma = torch.cat([alpha[1:], alpha.new_ones(1)]), torch.cat([sigma[1:], sigma.new_zeros(1)])
    return (alpha, sigma), (next_alpha, next_sigma), torch.cat([(-log_snr.diff()).exp(), log_snr.new_zeros(1)])


def make_plan(times: Tensor, *weights: Tensor) -> Plan:
    """From the four weights of each step."""
    return Plan(times, torch.stack(weights, dim=1))


@torch.no_grad()
def walk(denoise: Denoise, plan: Plan, noise: Callable[[int], Tensor]) -> Generator[Tensor, None, None]:
    """The image after each evaluation of the denoiser; the last one is the sample.

    Args:
        denoise: from noisy images and their times (B,) to what is expected of the images.
        plan: of a sampler.
        noise: the noise of step n, (B, C, H, W), from 1 on; 0 is what it all begins with. Image k depends on its own
            noise alone, so where that is a function of (seed, k), as in noise.py, the image is. To the last bit it is
            only in batches of one size, by the same number of threads or the same kind of GPU: in others a network adds
            in another order.
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
    """What a step with weights (4,) makes of an image, but for the fresh noise."""
    return weights[0] * image + weights[1] * denoised + weights[2] * before


def sample(denoise: Denoise, plan: Plan, noise: Callable[[int], Tensor]) -> Tensor:
    """The images (B, C, H, W) at the end of a `walk`."""
    return deque(walk(denoise, plan, noise), maxlen=1).pop()
