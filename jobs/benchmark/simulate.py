"""`deeplense benchmark simulate`: compare rendering by this package with lenstronomy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from deeplense.simulation.images import (
    HOST_ELLIPTICITY,
    PARAMETERS,
    SOURCE_ELLIPTICITY,
    SOURCE_INDEX,
    SOURCE_RADIUS,
    image_generator,
    render,
    source_amplitude,
)
from deeplense.simulation.populations import CLASSES, Population, System, default_mass_slope, draw_system
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, compare


def measure(settings: Settings) -> list[Row]:
    """Compare noiseless rendering of the same systems, on one core, in float32 (ours) and float64 (both)."""
    try:
        import lenstronomy  # noqa: F401  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            "this benchmark needs lenstronomy: run `pip install --no-deps lenstronomy` and `pip install astropy`."
        ) from error
    torch.set_num_threads(1)
    population = Population(settings.model, settings.preset, default_mass_slope(settings.preset))
    rows = []
    for label, name in enumerate(CLASSES):
        systems = [
            draw_system(population, label, image_generator(0, "benchmark", i, PARAMETERS))
            for i in range(settings.num_images)
        ]
        theirs = partial(render_with_lenstronomy, systems, population)
        for dtype in (torch.float32, torch.float64):
            ours = partial(count_rendered, systems, population, dtype)
            title = f"{settings.model} {settings.preset} {name} {str(dtype).removeprefix('torch.')}"
            rows.append(compare(title, ours, theirs, other_name="lenstronomy", rounds=settings.rounds))
    return rows


def count_rendered(systems: list[System], population: Population, dtype: torch.dtype) -> int:
    """Render with this package and return the number of images."""
    return len(render(systems, population=population, dtype=dtype))


def render_with_lenstronomy(systems: list[System], population: Population) -> int:
    """Render with lenstronomy's ImageModel, in its fastest (single-plane) form."""
    for system in systems:
        lenstronomy_image(system, population)
    return len(systems)


def lenstronomy_image(system: System, population: Population) -> np.ndarray:
    """Render one noiseless image (H, W) with lenstronomy; a vortex line is replaced by 100 point masses."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    survey = population.survey
    scale, size = survey.pixel_scale_arcsec, survey.num_pixels
    corner = -(size - 1) / 2 * scale
    pixels = {"ra_at_xy_0": corner, "dec_at_xy_0": corner, "transform_pix2angle": np.eye(2) * scale}
    data = ImageData(image_data=np.zeros((size, size)), **pixels)
    blur: dict[str, Any] = {"fwhm": survey.fwhm_arcsec, "truncation": survey.psf_truncation}
    psf = PSF(psf_type="GAUSSIAN", **blur)
    masses = list(lenstronomy_masses(system))
    model = ImageModel(
        data, psf, LensModel(["SIE", "SHEAR"] + ["POINT_MASS"] * len(masses)), LightModel(["SERSIC_ELLIPSE"])
    )
    host = {"theta_E": system.theta_E, "e1": HOST_ELLIPTICITY[0], "e2": HOST_ELLIPTICITY[1]}
    shear = {"gamma1": system.gamma1, "gamma2": 0.0}
    source = {
        "amp": source_amplitude(population),
        "R_sersic": SOURCE_RADIUS,
        "n_sersic": SOURCE_INDEX,
        "e1": SOURCE_ELLIPTICITY[0],
        "e2": SOURCE_ELLIPTICITY[1],
        "center_x": system.source_x,
        "center_y": system.source_y,
    }
    return model.image([host, shear, *masses], [source])


def lenstronomy_masses(system: System, *, num_points: int = 100) -> Iterator[dict[str, float]]:
    """Yield the substructure of a system as point masses of lenstronomy."""
    for theta_E, x, y in zip(system.point_theta_E, system.point_x, system.point_y, strict=True):
        yield {"theta_E": theta_E, "center_x": x, "center_y": y}
    if system.line_half_length:
        for along in np.linspace(-system.line_half_length, system.line_half_length, num_points):
            yield {
                "theta_E": system.line_theta_E / num_points**0.5,
                "center_x": along * np.cos(system.line_angle),
                "center_y": along * np.sin(system.line_angle),
            }
