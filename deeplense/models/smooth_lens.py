"""A smooth lens and its source in one image: what it looks like, and which one fits. B images, S pixels a side.

The lens is a singular isothermal ellipsoid with external shear, the source a Sersic ellipse, the PSF a Gaussian.
Lengths are in units of half the image, so that no pixel scale is needed. A lens is a vector of P latents, standard
normal a priori.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.simulation.lenses import Deflection, shear_deflection, sie_deflection

# What is probable a priori: e to the mean of the logarithm and its spread, or the spread about zero.
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
LONGEST = 0.7
BRIGHT = 3.0
GUESSES = (0.7, 0.85, 1.0)
# How many pixels are one along each axis, the misfit forgiven in units of the brightest pixel, the steps.
COARSE_STEPS = ((4, 0.03, 5), (2, 0.02, 4))
FINE_STEPS = 2
SMALLEST = 16
# Smaller weights than exp of this would be denormal numbers, in which matrices are multiplied very slowly.
FAINTEST = -30.0


def parameters(latents: Tensor) -> dict[str, Tensor]:
    """The parameters of lenses by name, (B, 1, 1) each, of latents (B, P); no latent counts beyond 3 sigma."""
    bounded = FARTHEST * torch.tanh(latents / FARTHEST)
    columns = dict(zip(NAMES, bounded[:, :, None, None].unbind(1), strict=True))
    logarithms = {name: middle * torch.exp(spread * columns[name]) for name, (middle, spread) in LOGARITHMS.items()}
    return logarithms | {name: spread * columns[name] for name, spread in LINEAR.items()}


def rates(latents: Tensor) -> Tensor:
    """How fast each parameter, or its logarithm, changes with its latent, (B, P)."""
    return torch.tensor(SPREADS, device=latents.device) * (1 - torch.tanh(latents / FARTHEST) ** 2)


def grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the pixel centres as an open grid (1, S), (S, 1), from -1 to 1 between the borders."""
    along = (torch.arange(size, device=device) - (size - 1) / 2) / (size / 2)
    return along[None, :], along[:, None]


def sersic(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Brightness of the source, a Sersic ellipse about the origin: 1 at its half-light radius (Sersic 1963)."""
    r_squared, _ = ellipse(x, y, p["source_e1"], p["source_e2"])
    b, power = sersic_power(r_squared, p)
    return torch.exp((-b * (power - 1)).clamp(min=FAINTEST))


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
    """The brightness of the source, and its derivatives by x, y, ellipticity, and logarithms of radius and index."""
    n = p["source_index"]
    r_squared, by_position = ellipse(x, y, p["source_e1"], p["source_e2"])
    b, power = sersic_power(r_squared, p)
    bright = torch.exp((-b * (power - 1)).clamp(min=FAINTEST))
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
    return images[:, 0], torch.stack([slopes[name] for name in NAMES], dim=1) * rates(latents)[:, :, None, None]


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
    """Lenses as latents (B, P), what they leave of the images, in units of the noise (B, S, S), and the negative
    logarithm of their posterior up to a constant (B,)."""

    latents: Tensor
    residual: Tensor
    loss: Tensor

    def where(self, better: Tensor, other: "Fit") -> "Fit":
        """These lenses where `better` (B,) holds, others elsewhere."""
        latents = torch.where(better[:, None], self.latents, other.latents)
        residual = torch.where(better[:, None, None], self.residual, other.residual)
        return Fit(latents, residual, torch.where(better, self.loss, other.loss))


class Linear(NamedTuple):
    """A fit to first order: how the model changes, in units of the noise, with the latents, the amplitude and the
    background, `columns` (B, P + 2, S * S); the curvature of the loss and its negative slope, both in units of `size`
    (B, P + 2), in which the diagonal of the curvature is 1."""

    columns: Tensor
    curvature: Tensor
    gradient: Tensor
    size: Tensor


def compare(latents: Tensor, images: Tensor, sigma: Tensor) -> Fit:
    """How well lenses fit images of noise `sigma` (B, S, S), with the best amplitude and background."""
    _, model = scaled(render(latents, images.shape[-1]), images, sigma)
    residual = (images - model) / sigma
    return Fit(latents, residual, residual.square().sum(dim=(1, 2)) / 2 + latents.square().sum(dim=1) / 2)


def linearise(fit: Fit, images: Tensor, sigma: Tensor) -> Linear:
    """The fit to first order in everything that is free."""
    model, slopes = derivatives(fit.latents, images.shape[-1])
    amplitude, _ = scaled(model, images, sigma)
    columns = [amplitude[:, None] * slopes, model[:, None], torch.ones_like(model)[:, None]]
    columns = torch.cat(columns, dim=1) / sigma[:, None]
    return normal_equations(columns.flatten(2), fit.residual.flatten(1), fit.latents)


def normal_equations(columns: Tensor, residual: Tensor, latents: Tensor) -> Linear:
    """Those of columns (B, P + 2, N) and a residual (B, N), with the prior of the latents."""
    prior = functional.pad(torch.ones_like(latents), (0, 2))
    curvature = columns @ columns.mT + torch.diag_embed(prior)
    gradient = (columns @ residual[:, :, None])[:, :, 0] - functional.pad(latents, (0, 2))
    size = torch.diagonal(curvature, dim1=1, dim2=2).clamp(min=1e-12).rsqrt()
    return Linear(columns, size[:, :, None] * curvature * size[:, None, :], size * gradient, size)


def solve(linear: Linear, right: Tensor, damping: Tensor) -> Tensor:
    """The curvature, its diagonal raised by `damping` (B,), divides `right` (B, P + 2, K); zero where it cannot."""
    raised = linear.curvature + torch.diag_embed(damping[:, None].expand_as(linear.size))
    return torch.linalg.solve_ex(raised, right)[0].nan_to_num(0.0, 0.0, 0.0)


def refine(latents: Tensor, images: Tensor, sigma: Tensor, *, num_steps: int) -> Fit:
    """Better latents than these by steps of Levenberg and Marquardt, each taken only where it makes the fit better."""
    fit = compare(latents, images, sigma)
    damping = torch.full_like(fit.loss, 1e-2)
    for _ in range(num_steps):
        linear = linearise(fit, images, sigma)
        change = linear.size * solve(linear, linear.gradient[:, :, None], damping)[:, :, 0]
        tried = compare(fit.latents + change[:, :NUM_LATENTS].clamp(-LONGEST, LONGEST), images, sigma)
        better = tried.loss < fit.loss
        fit, damping = tried.where(better, fit), torch.where(better, damping / 5, damping * 5)
    return fit


def first_guesses(images: Tensor) -> Tensor:
    """Latents (B, K, P) to start from: round lenses of about the radius at which the light is, nothing else known."""
    x, y = grid(images.shape[-1], images.device)
    light = (images - BRIGHT).clamp(min=0) + 1e-6
    radius = (light * torch.sqrt(x * x + y * y)).sum(dim=(1, 2)) / light.sum(dim=(1, 2))
    middle, spread = LOGARITHMS["theta_E"]
    radii = torch.tensor(GUESSES, device=images.device) * radius[:, None]
    latent = FARTHEST * torch.atanh((torch.log(radii / middle) / (FARTHEST * spread)).clamp(-0.9, 0.9))
    return functional.pad(latent[:, :, None], (0, NUM_LATENTS - 1))


def best_of(guesses: Tensor, images: Tensor, sigma: Tensor, *, num_steps: int) -> Fit:
    """The best of what is found from several guesses (B, K, P) at each image."""
    count = guesses.shape[1]
    images, sigma = images.repeat_interleave(count, dim=0), sigma.repeat_interleave(count, dim=0)
    found = refine(guesses.flatten(0, 1), images, sigma, num_steps=num_steps)
    first = torch.arange(0, len(images), count, device=images.device)
    best = first + found.loss.view(-1, count).argmin(dim=1)
    return Fit(*(each[best] for each in found))


def coarsened(images: Tensor, sigma: Tensor, *, factor: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Images and their noise with `factor` pixels as one along each axis; a misfit of `tolerance` times the brightest
    pixel counts as noise."""
    images, variance = functional.avg_pool2d(images, factor), functional.avg_pool2d(sigma**2, factor) / factor**2
    return images, torch.sqrt(variance + (tolerance * images.amax(dim=(1, 2), keepdim=True)) ** 2)


@torch.no_grad()
def fit_lens(images: Tensor, sigma: Tensor) -> Fit:
    """The smooth lens that explains images (B, S, S) best, from coarse images, forgiving of misfits, to the images as
    they are: at full size the posterior has many maxima.

    Args:
        images: about zero where there is no light, in units of the noise there. S is a multiple of 4.
        sigma: the noise in each pixel in this unit, (B, S, S).
    """
    latents = first_guesses(images)
    for factor, tolerance, num_steps in COARSE_STEPS:
        if images.shape[-1] >= factor * SMALLEST:
            coarse = coarsened(images, sigma, factor=factor, tolerance=tolerance)
            latents = best_of(latents, *coarse, num_steps=num_steps).latents[:, None]
    return best_of(latents, images, sigma, num_steps=FINE_STEPS)
