"""From systems to images: lens, source, PSF, pixels, noise. B images, H x W pixels, K point masses.

Image i of a split is a function of (seed, split, i) alone: its class is i modulo 3, its draws come from generators of
its own,
and no operation here lets one image of a batch touch another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from torch import Tensor

from deeplense.simulation.lenses import line_deflection, point_masses_deflection, shear_deflection, sie_deflection
from deeplense.simulation.light import gaussian_blur, sersic_brightness, sersic_flux
from deeplense.simulation.populations import CLASSES, Population, System, draw_system
from deeplense.simulation.surveys import Survey

HOST_ELLIPTICITY = (0.1, 0.0)
SOURCE_RADIUS, SOURCE_INDEX, SOURCE_ELLIPTICITY, SOURCE_MAGNITUDE = 0.25, 1.0, (-0.1, 0.1), 20.0
MODEL_I_AMPLITUDE, MODEL_I_BACKGROUND = 20.0, 0.01
PARAMETERS, NOISE = 0, 1
BATCH = 32


@dataclass(frozen=True)
class Simulated:
    """Images (B, H, W) float32 in the population's unit, with the system that each shows."""

    images: np.ndarray
    systems: list[System]


def image_generator(seed: int, split: str, index: int, purpose: int) -> Generator:
    """The random generator of one image; `purpose` keeps the draws of noise apart from those of the system."""
    words = (seed, int.from_bytes(split.encode(), "big"), index, purpose)
    return Generator(Philox(SeedSequence(words)))


def simulate(
    indices: Sequence[int], *, population: Population, seed: int, split: str, dtype: torch.dtype = torch.float32
) -> Simulated:
    """Simulate the images with these numbers. The result for an image does not depend on which others are asked for.

    Args:
        indices: numbers of images within the split, each 0 or more; image i is of class i modulo 3.
        population: model and preset.
        seed: 0 or more.
        split: name of the split; the same number in another split is another image.
        dtype: precision of the rendering; images come back as float32 either way.
    """
    systems = [draw_system(population, i % len(CLASSES), image_generator(seed, split, i, PARAMETERS)) for i in indices]
    generators = [image_generator(seed, split, i, NOISE) for i in indices]
    clean = render(systems, population=population, dtype=dtype)
    return Simulated(expose(clean, systems, generators, population=population), systems)


def render(systems: Sequence[System], *, population: Population, dtype: torch.dtype) -> Tensor:
    """Noiseless images (B, H, W): electrons per second and pixel (Models II, III) or the brightness of Model I."""
    size = population.survey.num_pixels
    images = torch.empty(len(systems), size, size, dtype=dtype)
    for members in render_groups(systems):
        images[members] = render_group([systems[i] for i in members], population=population, dtype=dtype)
    return images


def render_groups(systems: Sequence[System]) -> list[list[int]]:
    """Positions of the systems, by class, so that no image pays for another's substructure; at most `BATCH` in a
    group."""
    by_class = [[i for i, system in enumerate(systems) if system.label == label] for label in range(len(CLASSES))]
    return [members[k : k + BATCH] for members in by_class for k in range(0, len(members), BATCH)]


def render_group(systems: Sequence[System], *, population: Population, dtype: torch.dtype) -> Tensor:
    """Noiseless images of systems of one class."""
    survey = population.survey

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(system, name) for system in systems], dtype=dtype)[:, None, None]

    x, y = pixel_grid(survey, dtype)
    beta_x, beta_y = source_positions(x, y, systems, column)
    brightness = sersic_brightness(
        beta_x,
        beta_y,
        amplitude=source_amplitude(population),
        radius=SOURCE_RADIUS,
        index=SOURCE_INDEX,
        e1=SOURCE_ELLIPTICITY[0],
        e2=SOURCE_ELLIPTICITY[1],
        center_x=column("source_x"),
        center_y=column("source_y"),
    )
    flux = brightness * survey.pixel_scale_arcsec**2
    return gaussian_blur(
        flux, fwhm_pixels=survey.fwhm_arcsec / survey.pixel_scale_arcsec, truncation=survey.psf_truncation
    )


def pixel_grid(survey: Survey, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Positions of the pixel centres, arcsec from the image centre, as an open grid (1, W), (H, 1)."""
    along = (torch.arange(survey.num_pixels, dtype=dtype) - (survey.num_pixels - 1) / 2) * survey.pixel_scale_arcsec
    return along[None, :], along[:, None]


def source_positions(
    x: Tensor, y: Tensor, systems: Sequence[System], column: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """Where in the source plane each pixel looks: beta = theta - alpha(theta), (B, H, W) each."""
    e1, e2 = (torch.tensor(e, dtype=x.dtype) for e in HOST_ELLIPTICITY)
    deflections = [
        sie_deflection(x, y, theta_E=column("theta_E"), e1=e1, e2=e2),
        shear_deflection(x, y, gamma1=column("gamma1"), gamma2=torch.zeros((), dtype=x.dtype)),
    ]
    if any(len(system.point_x) for system in systems):
        theta_E, center_x, center_y = padded_points(systems, x.dtype)
        deflections.append(point_masses_deflection(x, y, theta_E=theta_E, center_x=center_x, center_y=center_y))
    if systems[0].line_half_length:
        line = {name: column(f"line_{name}") for name in ("theta_E", "half_length", "angle")}
        deflections.append(line_deflection(x, y, **line))
    for alpha_x, alpha_y in deflections:
        x, y = x - alpha_x, y - alpha_y
    return x, y


def padded_points(systems: Sequence[System], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Einstein radii and places of the point masses, (B, 1, 1, K) each; rows with fewer end in masses of zero."""
    most = max(len(system.point_x) for system in systems)

    def padded(name: str, filler: float) -> Tensor:
        rows = [np.pad(getattr(s, name), (0, most - len(s.point_x)), constant_values=filler) for s in systems]
        return torch.tensor(np.stack(rows), dtype=dtype)[:, None, None, :]

    return padded("point_theta_E", 0.0), padded("point_x", 1e3), padded("point_y", 1e3)


def source_amplitude(population: Population) -> float:
    """Brightness of the source at its half-light radius, per arcsec^2: given for Model I, of magnitude 20 elsewhere."""
    if population.model == "Model_I":
        return MODEL_I_AMPLITUDE
    return population.survey.flux(SOURCE_MAGNITUDE) / sersic_flux(radius=SOURCE_RADIUS, index=SOURCE_INDEX)


def unit(population: Population) -> str:
    """The unit of the pixels."""
    return "counts" if population.model == "Model_I" else "electron / s"


def expose(
    clean: Tensor, systems: Sequence[System], generators: Sequence[Generator], *, population: Population
) -> np.ndarray:
    """What the instrument records, float32 (B, H, W): see `expose_counts` (Model I), else

    published: twice the noiseless model, as in the public images; noisy, physical: the model with read-out, sky and
        photon
    noise in the Gaussian approximation (lenstronomy, `noise_for_model`).
    """
    model = clean.numpy()
    if population.model == "Model_I":
        rows = [
            expose_counts(image, system.exposure_s, generator, published=population.preset == "published")
            for image, system, generator in zip(model, systems, generators, strict=True)
        ]
        return np.stack(rows).astype(np.float32)
    if population.preset == "published":
        return (2 * model).astype(np.float32)
    survey = population.survey
    sigma = np.sqrt(survey.background_sigma**2 + model / survey.total_exposure_s)
    normal = np.stack([g.standard_normal(model.shape[1:], dtype=np.float32) for g in generators])
    return (model + sigma * normal).astype(np.float32)


def expose_counts(image: np.ndarray, exposure_s: float, generator: Generator, *, published: bool) -> np.ndarray:
    """Counts of a Model I image.

    published: photon noise twice (Gaussian, then Poisson), a background of 0.01 per second, negative values cut, as
        in the public code.
    Otherwise photon noise once and the same background, which may go below zero.
    """
    background = generator.normal(0.0, MODEL_I_BACKGROUND, size=image.shape)
    if not published:
        return generator.poisson(exposure_s * image) + exposure_s * background
    shot = generator.normal(size=image.shape) * np.sqrt(np.abs(image) / exposure_s)
    return generator.poisson((exposure_s * (image + shot + background)).clip(min=0))
