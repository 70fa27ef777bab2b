"""Light of the source and its way through the instrument, in pure torch. Shapes broadcast as in `lenses`."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def sersic_b(index: float) -> float:
    """The constant b_n that makes R_sersic the half-light radius, as 1.9992 n - 0.3271 (Capaccioli 1989)."""
    return 1.9992 * index - 0.3271


def sersic_flux(*, radius: float, index: float) -> float:
    """Flux to infinity of a Sersic profile whose brightness at `radius` (arcsec) is 1 per arcsec^2."""
    b = sersic_b(index)
    return 2 * math.pi * radius**2 * index * math.exp(b) * b ** (-2 * index) * math.gamma(2 * index)


def sersic_brightness(
    x: Tensor,
    y: Tensor,
    *,
    amplitude: float | Tensor,
    radius: float,
    index: float,
    e1: float,
    e2: float,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """Surface brightness of an elliptical Sersic profile, per arcsec^2 (Sersic 1963).

    `amplitude` is the brightness at `radius` (arcsec, the product average of the axes). Radii below 1e-4 arcsec count
    as 1e-4.
    """
    dx, dy = x - center_x, y - center_y
    stretch = (1 - e1 * e1 - e2 * e2) ** 0.5
    u = ((1 - e1) * dx - e2 * dy) / stretch
    v = ((1 + e1) * dy - e2 * dx) / stretch
    r = torch.sqrt((u * u + v * v).clamp(min=1e-8)) / radius
    return amplitude * torch.exp(-sersic_b(index) * (r ** (1 / index) - 1))


def gaussian_kernel(sigma: float, truncation: float) -> list[float]:
    """Weights of a sampled Gaussian of `sigma` pixels, cut at `truncation` sigma, normalised to a sum of 1."""
    radius = int(truncation * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def gaussian_blur(images: Tensor, *, fwhm_pixels: float, truncation: float = 5.0) -> Tensor:
    """Convolve images (B, H, W) with a round Gaussian PSF; the borders continue with their edge value.

    Written as a sum of shifted images, whose bits do not depend on the batch (a convolution's may).
    """
    kernel = gaussian_kernel(fwhm_pixels / (2 * math.sqrt(2 * math.log(2))), truncation)
    radius = len(kernel) // 2
    for axis in (-2, -1):
        size = images.shape[axis]
        pad = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        padded = functional.pad(images[:, None], pad, mode="replicate")[:, 0]
        images = sum(
            (weight * padded.narrow(axis, k, size) for k, weight in enumerate(kernel)), torch.zeros_like(images)
        )
    return images
