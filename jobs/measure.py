"""The measurements behind `deeplense benchmark`."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.nn import functional

from deeplense.data.shards import build
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
from deeplense.training.stopping import StopFlag
from jobs.benchmark import Settings
from jobs.config import require
from jobs.simulate import Settings as SimulateSettings
from jobs.simulate import make_samples, schema_of
from jobs.train import Settings as TrainSettings

Row = dict[str, Any]


def compare(what: str, ours: Callable[[], int], other: Callable[[], int], *, other_name: str, rounds: int) -> Row:
    """Images per second of two ways to do the same, in turns after a warm-up; the ratio is formed round by round."""
    rate(ours)
    rate(other)
    rates = [(rate(ours), rate(other)) for _ in range(rounds)]
    ratios = [first / second for first, second in rates]
    return {
        "what": what,
        "ours": statistics.median(first for first, _ in rates),
        "other_name": other_name,
        "other": statistics.median(second for _, second in rates),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def rate(work: Callable[[], int]) -> float:
    """Images per second of one call, which returns how many it made."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def measure_simulation(settings: Settings) -> list[Row]:
    """Noiseless rendering of the same systems by both, on one core, in float32 (ours) and float64 (both)."""
    try:
        import lenstronomy  # noqa: F401  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            "the benchmark needs lenstronomy beside deeplense: pip install --no-deps lenstronomy, and astropy."
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
    """Render by this package."""
    return len(render(systems, population=population, dtype=dtype))


def render_with_lenstronomy(systems: list[System], population: Population) -> int:
    """Render by lenstronomy's ImageModel, in the single-plane form that it is fastest in."""
    for system in systems:
        lenstronomy_image(system, population)
    return len(systems)


def lenstronomy_image(system: System, population: Population) -> np.ndarray:
    """One noiseless image (H, W) by lenstronomy; a vortex line becomes the 100 point masses it stands for."""
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
    """The substructure of a system as lenstronomy's point masses."""
    for theta_E, x, y in zip(system.point_theta_E, system.point_x, system.point_y, strict=True):
        yield {"theta_E": theta_E, "center_x": x, "center_y": y}
    if system.line_half_length:
        for along in np.linspace(-system.line_half_length, system.line_half_length, num_points):
            yield {
                "theta_E": system.line_theta_E / num_points**0.5,
                "center_x": along * np.cos(system.line_angle),
                "center_y": along * np.sin(system.line_angle),
            }


def measure_training(settings: Settings) -> list[Row]:
    """Updates of `deeplense train` (shards, order, normalisation, agreement on stopping) against a bare loop over a
    tensor in memory."""
    from jobs.staged import Copies
    from jobs.training_run import advance
    from jobs.training_start import begin
    from jobs.watchdog import Watchdog

    with tempfile.TemporaryDirectory() as folder:
        num_per_class = -(-settings.batch_size * settings.num_steps // 3)
        simulated = SimulateSettings(output=Path(folder) / "data", model=settings.model, num_per_class=num_per_class)
        population = Population(settings.model, simulated.preset, default_mass_slope(simulated.preset))
        schema = schema_of(simulated, population)
        make = partial(make_samples, population=population, seed=0, split="train")
        require(list(build(simulated.output / "train", schema, make))[-1] > 0, "nothing was simulated.")
        trained = TrainSettings(
            run=Path(folder) / "run",
            dataset=str(simulated.output),
            model_name=settings.model_name,
            batch_size=settings.batch_size,
            epochs=1e6,
            evaluate_epochs=1e6,
            device=settings.device,
            flips=0,
            stage="none",
        )
        stop, watchdog = StopFlag(), Watchdog(trained.run, minutes=0)
        training = begin(trained, watchdog, Copies(stop, watchdog))
        assert training is not None
        device = training.accelerator.device
        ours = advance(training, stop)
        bare = bare_loop(training.train.split.images(training.train.indices), training.train.labels, settings, device)
        count = settings.num_steps * settings.batch_size

        def drive(loop: Iterator[Any]) -> int:
            for _ in range(settings.num_steps):
                next(loop)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return count

        row = compare(
            f"training {settings.model_name} on {device.type}",
            partial(drive, ours),
            partial(drive, bare),
            other_name="bare PyTorch",
            rounds=settings.rounds,
        )
        if training.tracker is not None:
            training.tracker.close(exit_code=0)
        return [row]


def bare_loop(images: np.ndarray, labels: np.ndarray, settings: Settings, device: torch.device) -> Iterator[None]:
    """The shortest training loop: random batches of a tensor in memory, forward, backward, update."""
    model = timm.create_model(settings.model_name, in_chans=images.shape[1], num_classes=len(CLASSES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    x = (x - x.mean()) / x.std()
    while True:
        chosen = torch.randint(len(x), (settings.batch_size,))
        loss = functional.cross_entropy(model(x[chosen].to(device)), y[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield
