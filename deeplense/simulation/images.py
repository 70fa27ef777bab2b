"""From lens systems to images: lens, source, PSF, pixels, noise. Shapes: B images, H x W pixels, K point masses.

Image i of a split is a function of (seed, split, i) alone: its class is i modulo 3, its random numbers come from
generators of its own, and no operation here lets one image of a batch affect another.
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
    """Simulated images and the systems that they show.

    Args:
        images: (B, H, W) float32, in the unit that `unit` returns.
        systems: the B systems: labels and true parameters.
    """

    images: np.ndarray
    systems: list[System]


def image_generator(seed: int, split: str, index: int, purpose: int) -> Generator:
    """Return the random generator of one image.

    Args:
        seed: seed of the data set, 0 or more.
        split: name of the split.
        index: number of the image within the split, 0 or more.
        purpose: `PARAMETERS` or `NOISE`; keeps the random numbers of the noise independent of those of the system.
    """
    words = (seed, int.from_bytes(split.encode(), "big"), index, purpose)
    return Generator(Philox(SeedSequence(words)))


def simulate(
    indices: Sequence[int], *, population: Population, seed: int, split: str, dtype: torch.dtype = torch.float32
) -> Simulated:
    """Simulate the images with these numbers. An image does not depend on which others are simulated with it.

    Args:
        indices: numbers of the images within the split, each 0 or more; image i is of class i modulo 3 (`CLASSES`).
        population: model (I, II or III), preset and mass slope.
        seed: seed of the data set, 0 or more.
        split: name of the split; the same number in another split is another image.
        dtype: precision of the rendering; images are returned as float32 in any case.

    Returns:
        The images (B, H, W), 150 x 150 pixels for Model I and 64 x 64 for Models II and III, with their systems.

    Example:
        >>> from deeplense.simulation.populations import Population
        >>> population = Population("Model_II", "noisy", mass_slope=-0.9)
        >>> found = simulate([0, 1], population=population, seed=0, split="train")
        >>> found.images.shape
        (2, 64, 64)
        >>> [system.label for system in found.systems]
        [0, 1]
    """
    systems = [draw_system(population, i % len(CLASSES), image_generator(seed, split, i, PARAMETERS)) for i in indices]
    generators = [image_generator(seed, split, i, NOISE) for i in indices]
    clean = render(systems, population=population, dtype=dtype)
    return Simulated(expose(clean, systems, generators, population=population), systems)


def render(systems: Sequence[System], *, population: Population, dtype: torch.dtype) -> Tensor:
    """Return noiseless images (B, H, W), in electrons per second and pixel (Models II, III) or the brightness of Model
    I.

    Args:
        systems: B systems, of any classes.
        population: model and preset that they were sampled from.
        dtype: float32 or float64, the precision of the computation and of the result.
    """
    size = population.survey.num_pixels
    images = torch.empty(len(systems), size, size, dtype=dtype)
    for members in render_groups(systems):
        images[members] = render_group([systems[i] for i in members], population=population, dtype=dtype)
    return images


def render_groups(systems: Sequence[System]) -> list[list[int]]:
    """Return the positions of the systems in groups of one class, at most `BATCH` in each.

    One class per group keeps images without substructure cheap.
    """
    by_class = [[i for i, system in enumerate(systems) if system.label == label] for label in range(len(CLASSES))]
    return [members[k : k + BATCH] for members in by_class for k in range(0, len(members), BATCH)]


def render_group(systems: Sequence[System], *, population: Population, dtype: torch.dtype) -> Tensor:
    """Return noiseless images (B, H, W) of systems of one class, in the unit of `render`.

    Args:
        systems: B systems of the same class.
        population: model and preset that they were sampled from.
        dtype: float32 or float64.
    """
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
    """Return the positions of the pixel centres in arcsec from the image centre, as an open grid (1, W), (H, 1).

    Args:
        survey: instrument, which has the number and the scale of the pixels.
        dtype: float32 or float64.

    Example:
        >>> from deeplense.simulation.surveys import EUCLID_VIS
        >>> x, y = pixel_grid(EUCLID_VIS, torch.float64)
        >>> x.shape, y.shape, round(float(x[0, -1]), 4)
        (torch.Size([1, 64]), torch.Size([64, 1]), 3.1815)
    """
    along = (torch.arange(survey.num_pixels, dtype=dtype) - (survey.num_pixels - 1) / 2) * survey.pixel_scale_arcsec
    return along[None, :], along[:, None]


def source_positions(
    x: Tensor, y: Tensor, systems: Sequence[System], column: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the source-plane position of each pixel, beta = theta - alpha(theta), (B, H, W) each, in arcsec.

    Args:
        x: x of the pixel centres in arcsec, (1, W).
        y: y of the pixel centres in arcsec, (H, 1).
        systems: B systems of one class.
        column: returns an attribute of all systems by its name, as a tensor (B, 1, 1).
    """
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
    """Return Einstein radii and positions of the point masses in arcsec, (B, 1, 1, K) each.

    K is the largest number of point masses in a system; systems with fewer are padded with masses of zero.

    Args:
        systems: B systems.
        dtype: float32 or float64.
    """
    most = max(len(system.point_x) for system in systems)

    def padded(name: str, filler: float) -> Tensor:
        rows = [np.pad(getattr(s, name), (0, most - len(s.point_x)), constant_values=filler) for s in systems]
        return torch.tensor(np.stack(rows), dtype=dtype)[:, None, None, :]

    return padded("point_theta_E", 0.0), padded("point_x", 1e3), padded("point_y", 1e3)


def source_amplitude(population: Population) -> float:
    """Return the brightness of the source at its half-light radius, per arcsec^2.

    It is a constant for Model I and that of a source of magnitude 20 for Models II and III.
    """
    if population.model == "Model_I":
        return MODEL_I_AMPLITUDE
    return population.survey.flux(SOURCE_MAGNITUDE) / sersic_flux(radius=SOURCE_RADIUS, index=SOURCE_INDEX)


def unit(population: Population) -> str:
    """Return the unit of the pixels of a population.

    Example:
        >>> from deeplense.simulation.populations import Population
        >>> unit(Population("Model_I", "published", mass_slope=-0.9))
        'counts'
    """
    return "counts" if population.model == "Model_I" else "electron / s"


def expose(
    clean: Tensor, systems: Sequence[System], generators: Sequence[Generator], *, population: Population
) -> np.ndarray:
    """Return what the instrument records, (B, H, W) float32.

    Model I: see `expose_counts`. Models II and III, `published`: twice the noiseless model, as in the public images;
    `noisy` and `physical`: the model with read-out, sky and photon noise in the Gaussian approximation (lenstronomy,
    `noise_for_model`).

    Args:
        clean: noiseless images (B, H, W) of `render`.
        systems: their B systems.
        generators: a random generator for the noise of each image.
        population: model and preset.
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
    """Return the counts of a Model I image, (H, W).

    published: photon noise twice (Gaussian, then Poisson), a background of 0.01 per second, negative values cut, as in
    the public code. Otherwise photon noise once and the same background, which may be negative.

    Args:
        image: noiseless brightness per second, (H, W).
        exposure_s: exposure time in seconds.
        generator: random generator of the noise.
        published: whether to reproduce the public code.
    """
    background = generator.normal(0.0, MODEL_I_BACKGROUND, size=image.shape)
    if not published:
        return generator.poisson(exposure_s * image) + exposure_s * background
    shot = generator.normal(size=image.shape) * np.sqrt(np.abs(image) / exposure_s)
    return generator.poisson((exposure_s * (image + shot + background)).clip(min=0))
