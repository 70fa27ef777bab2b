"""Light of the source and the PSF, in PyTorch. Shapes broadcast as in `lenses`."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def sersic_b(index: float) -> float:
    """Return the constant b_n that makes R_sersic the half-light radius: 1.9992 n - 0.3271 (Capaccioli 1989).

    Example:
        >>> round(sersic_b(4.0), 4)
        7.6697
    """
    return 1.9992 * index - 0.3271


def sersic_flux(*, radius: float, index: float) -> float:
    """Return the total flux of a Sersic profile whose brightness at `radius` is 1 per arcsec^2.

    Args:
        radius: half-light radius in arcsec.
        index: Sersic index n, above 0.2.

    Example:
        >>> round(sersic_flux(radius=1.0, index=1.0), 2)
        11.96
    """
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
    """Return the surface brightness of an elliptical Sersic profile per arcsec^2 (Sersic 1963).

    Args:
        x: positions in arcsec.
        y: positions in arcsec.
        amplitude: brightness at `radius` per arcsec^2.
        radius: half-light radius in arcsec, the square root of the product of the axes; distances below 1e-4 of arcsec
            count as 1e-4.
        index: Sersic index n, above 0.2.
        e1: first component of the ellipticity; |e| below 1.
        e2: second component of the ellipticity.
        center_x: position of the source in arcsec.
        center_y: position of the source in arcsec.

    Returns:
        The brightness in the broadcast shape of the positions and centres.
    """
    dx, dy = x - center_x, y - center_y
    stretch = (1 - e1 * e1 - e2 * e2) ** 0.5
    u = ((1 - e1) * dx - e2 * dy) / stretch
    v = ((1 + e1) * dy - e2 * dx) / stretch
    r = torch.sqrt((u * u + v * v).clamp(min=1e-8)) / radius
    return amplitude * torch.exp(-sersic_b(index) * (r ** (1 / index) - 1))


def gaussian_kernel(sigma: float, truncation: float) -> list[float]:
    """Return the weights of a sampled Gaussian, normalised to a sum of 1.

    Args:
        sigma: standard deviation in pixels, above 0.
        truncation: distance at which the kernel is cut, in units of sigma.

    Example:
        >>> [round(weight, 3) for weight in gaussian_kernel(1.0, 2.0)]
        [0.054, 0.244, 0.403, 0.244, 0.054]
    """
    radius = int(truncation * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def gaussian_blur(images: Tensor, *, fwhm_pixels: float, truncation: float = 5.0) -> Tensor:
    """Convolve images with a round Gaussian PSF; beyond the borders, images continue with their edge value.

    This is a sum of shifted images, whose bits do not depend on the batch (those of a convolution may).

    Args:
        images: (B, H, W).
        fwhm_pixels: full width at half maximum of the PSF in pixels, above 0.
        truncation: distance at which the kernel is cut, in units of its standard deviation.

    Example:
        >>> blurred = gaussian_blur(torch.ones(1, 8, 8), fwhm_pixels=2.0)
        >>> blurred.shape, round(float(blurred.mean()), 4)
        (torch.Size([1, 8, 8]), 1.0)
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
