"""What the tests of samplers share: images whose best denoiser is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from deeplense.diffusion.denoiser import Denoise
from deeplense.diffusion.schedules import alpha_sigma, log_snr_at
from deeplense.random.noise import image_keys, normals

Noise = Callable[[int], Tensor]


def noise_of(seed: int, indices: range, shape: tuple[int, ...] = (1, 1, 1)) -> Noise:
    """Of images with these numbers, in float64."""
    keys = image_keys(seed, torch.tensor(indices))
    return lambda step: normals(keys, shape, step).double()


def one_at_a_time(num_noises: int) -> Noise:
    """Images of one pixel: the first has no noise, image n + 1 is 1 in noise n and has no other. Where a denoiser is
    linear, so is the sampler, and these give the mean and variance of its samples to the last digit."""
    return lambda step: torch.eye(num_noises + 1, dtype=torch.float64)[:, step + 1].view(-1, 1, 1, 1)


def moments(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of samples, from the images of `one_at_a_time`."""
    first, others = images.flatten()[0], images.flatten()[1:]
    return first.item(), (others - first).square().sum().sqrt().item()


def weights(schedule: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, (B, 1, 1, 1)."""
    alpha, sigma = alpha_sigma(log_snr_at(schedule, times))
    return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)


def of_gaussian(schedule: Tensor, *, mean: float, std: float) -> Denoise:
    """For pixels that are independent and Gaussian."""

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = weights(schedule, times)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (noisy - alpha * mean)

    return denoise


def of_mixture(schedule: Tensor, *, means: list[float], stds: list[float]) -> Denoise:
    """For pixels that are of one of several Gaussians, each as likely."""
    middle, width = (torch.tensor(each, dtype=torch.float64).view(-1, 1, 1, 1, 1) for each in (means, stds))

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = weights(schedule, times)
        variance = alpha**2 * width**2 + sigma**2
        shares = (-((noisy - alpha * middle) ** 2) / variance / 2 - variance.log() / 2).softmax(dim=0)
        return (shares * (middle + alpha * width**2 / variance * (noisy - alpha * middle))).sum(dim=0)

    return denoise


def of_images(schedule: Tensor, images: Tensor) -> Denoise:
    """For these images (N, C, H, W), each as likely, and no others: what a network learns that remembers all."""

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = weights(schedule, times)
        distances = ((noisy[:, None] - alpha[:, None] * images) / sigma[:, None]).square().flatten(2).sum(dim=2)
        return torch.einsum("bn,nchw->bchw", (-distances / 2).softmax(dim=1), images)

    return denoise


def of_field(schedule: Tensor, power: Tensor) -> Denoise:
    """For Gaussian random fields of this power (H, W) of each wave: the Wiener filter."""

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = weights(schedule, times)
        kept = alpha * power / (alpha**2 * power + sigma**2)
        return torch.fft.ifft2(kept * torch.fft.fft2(noisy)).real

    return denoise
