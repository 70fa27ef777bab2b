"""A smooth lens and its source: rendering an image, and fitting one. Shapes: B images, S pixels per side, P latents.

The lens is a singular isothermal ellipsoid with external shear, the source a Sersic ellipse, the PSF a Gaussian.
Lengths are in units of half the image, so that no pixel scale is needed. A lens is a vector of P latents with a
standard normal prior.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.constants import constant
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
    """Return the parameters of lenses by name, (B, 1, 1) each, from latents (B, P); latents are bounded smoothly at 3
    sigma."""
    bounded = FARTHEST * torch.tanh(latents / FARTHEST)
    columns = dict(zip(NAMES, bounded[:, :, None, None].unbind(1), strict=True))
    logarithms = {name: middle * torch.exp(spread * columns[name]) for name, (middle, spread) in LOGARITHMS.items()}
    return logarithms | {name: spread * columns[name] for name, spread in LINEAR.items()}


def rates(latents: Tensor) -> Tensor:
    """Return the derivative of each parameter, or of its logarithm, by its latent, (B, P)."""
    return constant(SPREADS, torch.float32, latents.device) * (1 - torch.tanh(latents / FARTHEST) ** 2)


def grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the positions of the pixel centres as an open grid (1, S), (S, 1), from -1 to 1 between the borders.

    Args:
        size: S.
        device: device of the tensors.

    Example:
        >>> grid(2, torch.device("cpu"))[0]
        tensor([[-0.5000,  0.5000]])
    """
    along = (torch.arange(size, device=device) - (size - 1) / 2) / (size / 2)
    return along[None, :], along[:, None]


def sersic(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Return the brightness of the source, a Sersic ellipse about the origin: 1 at its half-light radius (Sersic 1963).

    Args:
        x: positions in half images.
        y: positions in half images.
        p: parameters by name, (B, 1, 1) each.
    """
    r_squared, _ = ellipse(x, y, p["source_e1"], p["source_e2"])
    b, power = sersic_power(r_squared, p)
    return torch.exp((-b * (power - 1)).clamp(min=FAINTEST))


def ellipse(x: Tensor, y: Tensor, e1: Tensor, e2: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the elliptical radius squared, and its derivatives by x, y, e1 and e2.

    Args:
        x: positions in half images.
        y: positions in half images.
        e1: first component of the ellipticity; |e| below 1.
        e2: second component of the ellipticity.
    """
    area = 1 - e1 * e1 - e2 * e2
    u, v = ((1 - e1) * x - e2 * y) / area, ((1 + e1) * y - e2 * x) / area
    r_squared = ((u * u + v * v) * area).clamp(min=1e-8)
    by_x, by_y = 2 * ((1 - e1) * u - e2 * v), 2 * ((1 + e1) * v - e2 * u)
    by_e1, by_e2 = 2 * (y * v - x * u + e1 / area * r_squared), 2 * (e2 / area * r_squared - y * u - x * v)
    return r_squared, (by_x, by_y, by_e1, by_e2)


def sersic_power(r_squared: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the constant b_n that makes the radius that of half the light (Capaccioli 1989), and (r / radius)^(1 / n).

    Args:
        r_squared: elliptical radius squared.
        p: parameters by name, (B, 1, 1) each.
    """
    power = (r_squared / p["source_radius"] ** 2) ** (0.5 / p["source_index"])
    return 1.9992 * p["source_index"] - 0.3271, power


def sersic_slopes(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the brightness of the source, and its derivatives by x, y, ellipticity, and logarithms of radius and
    index.

    Args:
        x: positions in half images.
        y: positions in half images.
        p: parameters by name, (B, 1, 1) each.
    """
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
    """Return the blur by a Gaussian along one axis as a matrix (B, S, S); at a border, flux stays inside.

    Args:
        sigma: standard deviation in half images, (B, 1, 1).
        size: S.

    Example:
        >>> psf(torch.full((1, 1, 1), 0.1), 8).sum(dim=-1).round(decimals=4).unique()
        tensor([1.])
    """
    x, y = grid(size, sigma.device)
    return torch.softmax((-0.5 * ((x - y) / sigma) ** 2).clamp(min=FAINTEST), dim=-1)


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Return images blurred along both axes.

    Args:
        images: (B, K, S, S).
        kernel: matrices of `psf`, (B, S, S).
    """
    for _ in range(2):
        images = (images.flatten(1, 2) @ kernel.mT).view_as(images).mT.contiguous()
    return images


def lens(x: Tensor, y: Tensor, p: Mapping[str, Tensor]) -> Deflection:
    """Return the deflection by the lens without its shear.

    Args:
        x: positions from the centre of the lens, in half images.
        y: positions from the centre of the lens.
        p: parameters by name, (B, 1, 1) each.
    """
    return sie_deflection(x, y, theta_E=p["theta_E"], e1=p["e1"], e2=p["e2"])


def source_positions(x: Tensor, y: Tensor, alpha: Deflection, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the source-plane position of each pixel, relative to the centre of the source.

    Args:
        x: positions from the centre of the lens, in half images.
        y: positions from the centre of the lens.
        alpha: deflection by the lens without its shear.
        p: parameters by name, (B, 1, 1) each.
    """
    shear_x, shear_y = shear_deflection(x, y, gamma1=p["gamma1"], gamma2=p["gamma2"])
    return x - alpha[0] - shear_x - p["source_x"], y - alpha[1] - shear_y - p["source_y"]


def render(latents: Tensor, size: int) -> Tensor:
    """Return images (B, S, S) of lenses, of brightness 1 at the half-light radius of the source.

    Args:
        latents: (B, P).
        size: S.

    Example:
        >>> render(torch.zeros(2, NUM_LATENTS), 16).shape
        torch.Size([2, 16, 16])
    """
    p = parameters(latents)
    x, y = grid(size, latents.device)
    x, y = x - p["center_x"], y - p["center_y"]
    source = sersic(*source_positions(x, y, lens(x, y, p), p), p)
    return blur(source[:, None], psf(p["psf_sigma"], size))[:, 0]


def derivatives(latents: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return images (B, S, S) as those of `render`, and their derivatives by each latent, (B, P, S, S).

    Args:
        latents: (B, P).
        size: S.
    """
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
    """Return the amplitude (B, 1, 1) for the best fit of `amplitude * model + background` to images, and that fit (B,
    S, S).

    Args:
        model: (B, S, S).
        images: (B, S, S).
        sigma: noise of each pixel, (B, S, S), above 0.

    Example:
        >>> model = torch.arange(4.0).view(1, 2, 2)
        >>> amplitude, fit = scaled(model, 2 * model + 1, torch.ones(1, 2, 2))
        >>> round(amplitude.item(), 4)
        2.0
    """
    weight = sigma**-2
    weight = weight / weight.sum(dim=(1, 2), keepdim=True)
    mean, level = (weight * model).sum(dim=(1, 2), keepdim=True), (weight * images).sum(dim=(1, 2), keepdim=True)
    covariance = (weight * (model - mean) * (images - level)).sum(dim=(1, 2), keepdim=True)
    variance = (weight * (model - mean) ** 2).sum(dim=(1, 2), keepdim=True)
    amplitude = (covariance / variance.clamp(min=1e-20)).clamp(min=0)
    return amplitude, level + amplitude * (model - mean)


class Fit(NamedTuple):
    """Lenses that were fitted to images.

    Args:
        latents: (B, P).
        residual: image minus model in units of the noise, (B, S, S).
        loss: negative logarithm of the posterior up to a constant, (B,).
    """

    latents: Tensor
    residual: Tensor
    loss: Tensor

    def where(self, better: Tensor, other: "Fit") -> "Fit":
        """Return these lenses where a mask is true, others elsewhere.

        Args:
            better: (B,) bool.
            other: another fit of the same images.
        """
        latents = torch.where(better[:, None], self.latents, other.latents)
        residual = torch.where(better[:, None, None], self.residual, other.residual)
        return Fit(latents, residual, torch.where(better, self.loss, other.loss))


class Linear(NamedTuple):
    """A fit to first order.

    Args:
        columns: derivatives of the model by the latents, the amplitude and the background, in units of the noise, (B, P
            + 2, S * S).
        curvature: curvature of the loss, (B, P + 2, P + 2), in units of `size`, in which its diagonal is 1.
        gradient: negative gradient of the loss, (B, P + 2), in units of `size`.
        size: unit of each free parameter, (B, P + 2).
    """

    columns: Tensor
    curvature: Tensor
    gradient: Tensor
    size: Tensor


def compare(latents: Tensor, images: Tensor, sigma: Tensor) -> Fit:
    """Return how well lenses fit images, with the best amplitude and background.

    Args:
        latents: (B, P).
        images: (B, S, S).
        sigma: noise of each pixel, (B, S, S), above 0.
    """
    _, model = scaled(render(latents, images.shape[-1]), images, sigma)
    residual = (images - model) / sigma
    return Fit(latents, residual, residual.square().sum(dim=(1, 2)) / 2 + latents.square().sum(dim=1) / 2)


def linearise(fit: Fit, images: Tensor, sigma: Tensor) -> Linear:
    """Return a fit to first order in all free parameters.

    Args:
        fit: lenses.
        images: (B, S, S).
        sigma: noise of each pixel, (B, S, S), above 0.
    """
    model, slopes = derivatives(fit.latents, images.shape[-1])
    amplitude, _ = scaled(model, images, sigma)
    columns = [amplitude[:, None] * slopes, model[:, None], torch.ones_like(model)[:, None]]
    columns = torch.cat(columns, dim=1) / sigma[:, None]
    return normal_equations(columns.flatten(2), fit.residual.flatten(1), fit.latents)


def normal_equations(columns: Tensor, residual: Tensor, latents: Tensor) -> Linear:
    """Return the normal equations with the prior of the latents.

    Args:
        columns: derivatives in units of the noise, (B, P + 2, N).
        residual: image minus model in units of the noise, (B, N).
        latents: (B, P).
    """
    prior = functional.pad(torch.ones_like(latents), (0, 2))
    curvature = columns @ columns.mT + torch.diag_embed(prior)
    gradient = (columns @ residual[:, :, None])[:, :, 0] - functional.pad(latents, (0, 2))
    size = torch.diagonal(curvature, dim1=1, dim2=2).clamp(min=1e-12).rsqrt()
    return Linear(columns, size[:, :, None] * curvature * size[:, None, :], size * gradient, size)


def solve(linear: Linear, right: Tensor, damping: Tensor) -> Tensor:
    """Solve the normal equations; zero where they have no solution.

    Args:
        linear: fit to first order.
        right: right-hand sides, (B, P + 2, K).
        damping: added to the diagonal of the curvature, (B,).
    """
    raised = linear.curvature + torch.diag_embed(damping[:, None].expand_as(linear.size))
    return torch.linalg.solve_ex(raised, right)[0].nan_to_num(0.0, 0.0, 0.0)


def refine(latents: Tensor, images: Tensor, sigma: Tensor, *, num_steps: int) -> Fit:
    """Improve latents by Levenberg-Marquardt steps, each taken only if it improves the fit.

    Args:
        latents: start, (B, P).
        images: (B, S, S).
        sigma: noise of each pixel, (B, S, S), above 0.
        num_steps: number of steps.
    """
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
    """Return latents (B, K, P) to start from: round lenses of about the radius of the light, everything else at its
    mean."""
    x, y = grid(images.shape[-1], images.device)
    light = (images - BRIGHT).clamp(min=0) + 1e-6
    radius = (light * torch.sqrt(x * x + y * y)).sum(dim=(1, 2)) / light.sum(dim=(1, 2))
    middle, spread = LOGARITHMS["theta_E"]
    radii = constant(GUESSES, torch.float32, images.device) * radius[:, None]
    latent = FARTHEST * torch.atanh((torch.log(radii / middle) / (FARTHEST * spread)).clamp(-0.9, 0.9))
    return functional.pad(latent[:, :, None], (0, NUM_LATENTS - 1))


def best_of(guesses: Tensor, images: Tensor, sigma: Tensor, *, num_steps: int) -> Fit:
    """Return the best fit of each image from several guesses.

    Args:
        guesses: latents, (B, K, P).
        images: (B, S, S).
        sigma: noise of each pixel, (B, S, S), above 0.
        num_steps: number of Levenberg-Marquardt steps.
    """
    count = guesses.shape[1]
    images, sigma = images.repeat_interleave(count, dim=0), sigma.repeat_interleave(count, dim=0)
    found = refine(guesses.flatten(0, 1), images, sigma, num_steps=num_steps)
    first = torch.arange(0, len(images), count, device=images.device)
    best = first + found.loss.view(-1, count).argmin(dim=1)
    return Fit(*(each[best] for each in found))


def coarsened(images: Tensor, sigma: Tensor, *, factor: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return images and their noise with fewer pixels.

    Args:
        images: (B, S, S).
        sigma: noise of each pixel, (B, S, S), above 0.
        factor: pixels along each axis that are averaged into one.
        tolerance: misfit that counts as noise, relative to the brightest pixel.

    Example:
        >>> ones = torch.ones(1, 8, 8)
        >>> images, sigma = coarsened(ones, ones, factor=4, tolerance=0.0)
        >>> images.shape, sigma.unique()
        (torch.Size([1, 2, 2]), tensor([0.2500]))
    """
    images, variance = functional.avg_pool2d(images, factor), functional.avg_pool2d(sigma**2, factor) / factor**2
    return images, torch.sqrt(variance + (tolerance * images.amax(dim=(1, 2), keepdim=True)) ** 2)


@torch.no_grad()
def fit_lens(images: Tensor, sigma: Tensor) -> Fit:
    """Return the smooth lens that fits images best.

    The fit goes from coarse images, with a tolerance for misfits, to the full images, for which the posterior has many
    maxima.

    Args:
        images: (B, S, S), about zero where there is no light, in units of the noise there; S is a multiple of 4.
        sigma: noise of each pixel in this unit, (B, S, S), above 0.
    """
    latents = first_guesses(images)
    for factor, tolerance, num_steps in COARSE_STEPS:
        if images.shape[-1] >= factor * SMALLEST:
            coarse = coarsened(images, sigma, factor=factor, tolerance=tolerance)
            latents = best_of(latents, *coarse, num_steps=num_steps).latents[:, None]
    return best_of(latents, images, sigma, num_steps=FINE_STEPS)
