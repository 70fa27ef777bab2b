"""Simulate one split of a data set."""

import time
from functools import partial
from typing import Any

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema
from deeplense.files import sole_writer
from deeplense.simulation.images import CLASSES, simulate, unit
from deeplense.simulation.populations import Population, default_mass_slope
from jobs.console import say, track
from jobs.data.shares import make_part
from jobs.runs.environment import num_cores
from jobs.simulate.settings import Settings

ROWS_AT_A_TIME = 256


def run(settings: Settings) -> int:
    """Write the split; a second call with the same settings resumes it, or finds it complete."""
    slope = default_mass_slope(settings.preset) if settings.mass_slope is None else settings.mass_slope
    population = Population(settings.model, settings.preset, slope)
    schema = schema_of(settings, population)
    folder = settings.output / settings.split
    say(
        f"simulating {schema.num_samples} images of {settings.model}, preset {settings.preset}, "
        f"classes {', '.join(CLASSES)}, into {folder}"
    )
    start = time.monotonic()
    make = partial(make_samples, population=population, seed=settings.seed, split=settings.split)
    workers = settings.num_workers or num_cores()
    if settings.part:
        make_part({folder: (schema, make)}, settings.part, num_workers=workers)
        return 0
    with sole_writer(folder):
        track(build(folder, schema, make, num_workers=workers), total=schema.num_samples, unit="images")
    say(f"{folder} is complete: {schema.num_samples} images, {time.monotonic() - start:.1f} s")
    return 0


def schema_of(settings: Settings, population: "Population") -> "Schema":
    """Return the schema of the split, with all parameters of the simulation as provenance."""
    size = population.survey.num_pixels
    return Schema(
        split=settings.split,
        num_samples=settings.num_per_class * len(CLASSES),
        shape=(1, size, size),
        dtype=settings.dtype,
        compression=settings.compression,
        bands=(population.survey.name,),
        unit=unit(population),
        pixel_scale_arcsec=population.survey.pixel_scale_arcsec,
        classes=CLASSES,
        targets={
            "source_x": "arcsec",
            "source_y": "arcsec",
            "theta_E": "arcsec",
            "substructure_mass": "solar mass",
            "log10_axion_mass": "log10(eV)",
            "exposure_s": "s",
        },
        provenance={
            "made_by": "deeplense simulate",
            "model": settings.model,
            "preset": settings.preset,
            "seed": settings.seed,
            "mass_slope": population.mass_slope,
            "survey": vars(population.survey),
        },
    )


def make_samples(rows: range, *, population: "Population", seed: int, split: str) -> "Samples":
    """Simulate the samples of a range, in one thread, because other processes use the other cores."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    parts = [rows[k : k + ROWS_AT_A_TIME] for k in range(0, len(rows), ROWS_AT_A_TIME)]
    done = [simulate(part, population=population, seed=seed, split=split) for part in parts]
    systems = [system for result in done for system in result.systems]

    def column(name: str) -> Any:
        return np.array([getattr(system, name) for system in systems])

    names = ("source_x", "source_y", "theta_E", "substructure_mass", "log10_axion_mass", "exposure_s")
    return Samples(
        images=np.concatenate([result.images for result in done])[:, None],
        labels=column("label"),
        targets={name: column(name) for name in names},
        ids=[f"{split}-{seed}-{i}" for i in rows],
        source_index=np.arange(rows.start, rows.stop),
    )
