"""Small lenses with a scatter in Einstein radius and brightness, and noise, for tests of what is measured on images."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d

from deeplense.simulation.images import PARAMETERS, image_generator, render
from deeplense.simulation.populations import MODEL_I, Population, draw_system
from deeplense.simulation.surveys import Survey

SIZE, FIELD_ARCSEC = 32, 4.0
PIXEL_SCALE = FIELD_ARCSEC / SIZE


@dataclass(frozen=True)
class ToyPopulation(Population):
    """Model I seen by another camera."""

    size: int = SIZE

    @property
    def survey(self) -> Survey:
        return replace(
            MODEL_I, num_pixels=self.size, pixel_scale_arcsec=FIELD_ARCSEC / self.size, fwhm_arcsec=FIELD_ARCSEC / 40
        )


def toy_lenses(
    count: int,
    seed: int,
    *,
    radii: tuple[float, float] = (0.7, 1.3),
    label: int | None = None,
    noise: float = 0.1,
    size: int = SIZE,
) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 1, size, size) of about 1 at the peak, with noise, and their Einstein radii in arcsec; of all
    classes in turn, or of one."""
    generator = np.random.default_rng((seed, 1))
    population = ToyPopulation("Model_I", "physical", -1.9, size)
    truth = generator.uniform(*radii, count)
    systems = [
        replace(
            draw_system(population, i % 3 if label is None else label, image_generator(seed, "toy", i, PARAMETERS)),
            theta_E=truth[i],
            gamma1=float(generator.normal(0, 0.05)),
        )
        for i in range(count)
    ]
    clean = render(systems, population=population, dtype=torch.float32).numpy() / 1.1 / (SIZE / size) ** 2
    bright = clean * 10 ** generator.normal(0, 0.5, size=(count, 1, 1))
    return (bright + noise * generator.normal(size=clean.shape)).astype(np.float32)[:, None], truth


def blurred(images: np.ndarray) -> np.ndarray:
    """Means over 3 x 3 pixels."""
    return uniform_filter1d(uniform_filter1d(images, 3, axis=2), 3, axis=3)


def normalised_one_by_one(images: np.ndarray) -> np.ndarray:
    """Each image from 0 to 1."""
    low, high = images.min(axis=(1, 2, 3), keepdims=True), images.max(axis=(1, 2, 3), keepdims=True)
    return (images - low) / (high - low)
