"""A smooth lens and its source in one image: what it looks like, and which one fits. B images, S pixels a side, P latents.

The lens is a singular isothermal ellipsoid with external shear, the source a Sersic ellipse. Lengths are in units of half the
image, so that no pixel scale is needed. Each lens is a vector of P latents, standard normal a priori.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.simulation.lenses import Deflection, shear_deflection, sie_deflection

# Name, middle, spread; the middle of a logarithm is told as its exponential, and below it as it is.
LOGARITHMS = {
    "theta_E": (0.42, 0.4),
    "source_radius": (0.09, 0.4),
    "source_index": (1.0, 0.3),
    "psf_sigma": (0.02, 0.5),
}
LINEAR = {
    "e1": 0.12,
    "e2": 0.12,
    "gamma1": 0.05,
    "gamma2": 0.05,
    "center_x": 0.03,
    "center_y": 0.03,
    "source_x": 0.1,
    "source_y": 0.1,
    "source_e1": 0.12,
    "source_e2": 0.12,
}
NAMES = (*LOGARITHMS, *LINEAR)
SPREADS = (*(spread for _, spread in LOGARITHMS.values()), *LINEAR.values())
NUM_LATENTS = len(NAMES)
FARTHEST = 3.0
DIFFERENCE = 2e-3
# Smaller weights than exp of this would be denormal numbers, in which matrices are multiplied very slowly.
FAINTEST = -30.0


def parameters(latents: Tensor) -> dict[str, Tensor]:
    """The parameters of lenses by name, (B, 1, 1) each, of latents (B, P); no latent counts beyond 3 sigma."""
    bounded = FARTHEST * torch.tanh(latents / FARTHEST)
    columns = dict(zip(NAMES, bounded[:, :, None, None].unbind(1), strict=True))
    logarithms = {name: middle * torch.exp(spread * columns[name]) for name, (middle, spread) in LOGARITHMS.items()}
    return logarithms | {name: spread * columns[name] for name, spread in LINEAR.items()}


def grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the pixel centres as an open grid (1, S), (S, 1), from -1 to 1 between the borders."""
    along = (torch.arange(size, device=device) - (size - 1) / 2) / (size / 2)
    return along[None, :], along[:, None]


def sersic(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Brightness of the source, an elliptical Sersic profile about the origin: 1 at its half-light radius (Sersic 1963)."""
    r_squared, _ = ellipse(x, y, p["source_e1"], p["source_e2"])
    b, power = sersic_power(r_squared, p)
    return torch.exp(-b * (power - 1))


def ellipse(x: Tensor, y: Tensor, e1: Tensor, e2: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The elliptical radius squared, and its derivatives by x, y, e1 and e2."""
    area = 1 - e1 * e1 - e2 * e2
    u, v = ((1 - e1) * x - e2 * y) / area, ((1 + e1) * y - e2 * x) / area
    r_squared = ((u * u + v * v) * area).clamp(min=1e-8)
    by_x, by_y = 2 * ((1 - e1) * u - e2 * v), 2 * ((1 + e1) * v - e2 * u)
    by_e1, by_e2 = 2 * (y * v - x * u + e1 / area * r_squared), 2 * (e2 / area * r_squared - y * u - x * v)
    return r_squared, (by_x, by_y, by_e1, by_e2)


def sersic_power(r_squared: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The constant b_n that makes the radius that of half the light (Capaccioli 1989), and (r / radius)^(1 / n)."""
    power = (r_squared / p["source_radius"] ** 2) ** (0.5 / p["source_index"])
    return 1.9992 * p["source_index"] - 0.3271, power


def sersic_slopes(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The brightness of the source, and its derivatives by x, y, the ellipticities, and the logarithms of radius and index."""
    n = p["source_index"]
    r_squared, by_position = ellipse(x, y, p["source_e1"], p["source_e2"])
    b, power = sersic_power(r_squared, p)
    bright = torch.exp(-b * (power - 1))
    by_radius = bright * power * (b / n)
    outward = by_radius / (-2 * r_squared)
    slopes = {name: outward * by for name, by in zip(("x", "y", "source_e1", "source_e2"), by_position, strict=True)}
    by_index = n * by_radius * torch.log(power) - 1.9992 * n * bright * (power - 1)
    return bright, slopes | {"source_radius": by_radius, "source_index": by_index}


def psf(sigma: Tensor, size: int) -> Tensor:
    """The blur by a Gaussian of `sigma` (B, 1, 1) along one axis as a matrix (B, S, S); at a border it stays inside."""
    x, y = grid(size, sigma.device)
    return torch.softmax((-0.5 * ((x - y) / sigma) ** 2).clamp(min=FAINTEST), dim=-1)


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Images (B, K, S, S) blurred along both axes by matrices (B, S, S)."""
    for _ in range(2):
        images = (images.flatten(1, 2) @ kernel.mT).view_as(images).mT.contiguous()
    return images


def lens(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> Deflection:
    """Deflection by the lens without its shear, at positions from its centre."""
    return sie_deflection(x, y, theta_E=p["theta_E"], e1=p["e1"], e2=p["e2"])


def source_positions(x: Tensor, y: Tensor, alpha: Deflection, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where in the source each position looks, from the middle of the source."""
    shear_x, shear_y = shear_deflection(x, y, gamma1=p["gamma1"], gamma2=p["gamma2"])
    return x - alpha[0] - shear_x - p["source_x"], y - alpha[1] - shear_y - p["source_y"]


def render(latents: Tensor, size: int) -> Tensor:
    """Images (B, S, S) of the lenses of these latents (B, P), of brightness 1 at the half-light radius."""
    p = parameters(latents)
    x, y = grid(size, latents.device)
    x, y = x - p["center_x"], y - p["center_y"]
    source = sersic(*source_positions(x, y, lens(x, y, p), p), p)
    return blur(source[:, None], psf(p["psf_sigma"], size))[:, 0]


def derivatives(latents: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Images (B, S, S) as of `render`, and how they change with each latent (B, P, S, S)."""
    p = parameters(latents)
    x, y = grid(size, latents.device)
    x, y = x - p["center_x"], y - p["center_y"]
    alpha = lens(x, y, p)
    bright, by = sersic_slopes(*source_positions(x, y, alpha, p), p)

    def moved(along_x: Tensor | float, along_y: Tensor | float) -> Tensor:
        return by["x"] * along_x + by["y"] * along_y

    def difference(at: Deflection) -> Tensor:
        return moved(alpha[0] - at[0], alpha[1] - at[1]) / DIFFERENCE

    g1, g2 = p["gamma1"], p["gamma2"]
    by |= {
        "theta_E": moved(-alpha[0], -alpha[1]),
        "gamma1": moved(-x, y),
        "gamma2": moved(-y, -x),
        "e1": difference(lens(x, y, p | {"e1": p["e1"] + DIFFERENCE})),
        "e2": difference(lens(x, y, p | {"e2": p["e2"] + DIFFERENCE})),
        "center_x": moved(g1 - 1, g2) - difference(lens(x + DIFFERENCE, y, p)),
        "center_y": moved(g2, -g1 - 1) - difference(lens(x, y + DIFFERENCE, p)),
        "source_x": -by["x"],
        "source_y": -by["y"],
    }
    kernel, wider = psf(p["psf_sigma"], size), psf(p["psf_sigma"] * (1 + DIFFERENCE), size)
    names = [name for name in NAMES if name != "psf_sigma"]
    images = blur(torch.stack([bright, *(by[name] for name in names)], dim=1), kernel)
    slopes = dict(zip(names, images[:, 1:].unbind(1), strict=True))
    slopes["psf_sigma"] = (blur(bright[:, None], wider)[:, 0] - images[:, 0]) / DIFFERENCE
    rates = torch.tensor(SPREADS, device=latents.device) * (1 - torch.tanh(latents / FARTHEST) ** 2)
    return images[:, 0], torch.stack([slopes[name] for name in NAMES], dim=1) * rates[:, :, None, None]


def scaled(model: Tensor, images: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The amplitude (B, 1, 1) that fits `amplitude * model + background` best to images (B, S, S), and that fit."""
    weight = sigma**-2
    weight = weight / weight.sum(dim=(1, 2), keepdim=True)
    mean, level = (weight * model).sum(dim=(1, 2), keepdim=True), (weight * images).sum(dim=(1, 2), keepdim=True)
    covariance = (weight * (model - mean) * (images - level)).sum(dim=(1, 2), keepdim=True)
    variance = (weight * (model - mean) ** 2).sum(dim=(1, 2), keepdim=True)
    amplitude = (covariance / variance.clamp(min=1e-20)).clamp(min=0)
    return amplitude, level + amplitude * (model - mean)


class Fit(NamedTuple):
    """A lens (latents, damping: (B, ...)) with its residual in units of the noise (B, S, S) and its loss (B,)."""

    latents: Tensor
    residual: Tensor
    loss: Tensor


def compare(latents: Tensor, images: Tensor, sigma: Tensor) -> Fit:
    """How lenses fit images: residual in units of `sigma`, loss -log posterior up to a constant."""
    _, model = scaled(render(latents, images.shape[-1]), images, sigma)
    residual = (images - model) / sigma
    return Fit(latents, residual, residual.square().sum(dim=(1, 2)) / 2 + latents.square().sum(dim=1) / 2)


def step(fit: Fit, damping: Tensor, images: Tensor, sigma: Tensor) -> Tensor:
    """The next latents of Levenberg and Marquardt's method, with amplitude and background free."""
    model, slopes = derivatives(fit.latents, images.shape[-1])
    amplitude, _ = scaled(model, images, sigma)
    columns = torch.cat([amplitude[:, None] * slopes, model[:, None], torch.ones_like(model)[:, None]], dim=1)
    columns = (columns / sigma[:, None]).flatten(2)
    prior = functional.pad(torch.ones_like(fit.latents), (0, 2))
    gradient = (columns @ fit.residual.flatten(1)[:, :, None])[:, :, 0] - functional.pad(fit.latents, (0, 2))
    curvature = columns @ columns.mT + torch.diag_embed(prior)
    size = torch.diagonal(curvature, dim1=1, dim2=2).clamp(min=1e-12).rsqrt()
    matrix = size[:, :, None] * curvature * size[:, None, :] + torch.diag_embed(damping[:, None].expand_as(size))
    change = size * torch.linalg.solve_ex(matrix, size * gradient)[0]
    return fit.latents + change[:, :NUM_LATENTS].nan_to_num().clamp(-0.7, 0.7)


@torch.no_grad()
def refine(latents: Tensor, images: Tensor, sigma: Tensor, *, num_steps: int, damping: float = 1e-2) -> Fit:
    """Better latents than these: steps of Levenberg and Marquardt, each taken only where it makes the fit better."""
    fit = compare(latents, images, sigma)
    dampings = torch.full_like(fit.loss, damping)
    for _ in range(num_steps):
        tried = compare(step(fit, dampings, images, sigma), images, sigma)
        better = tried.loss < fit.loss
        fit = Fit(
            *(
                torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(tried, fit, strict=True)
            )
        )
        dampings = torch.where(better, dampings / 5, dampings * 5).clamp(1e-6, 1e3)
    return fit
