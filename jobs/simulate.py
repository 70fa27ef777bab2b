"""Simulate one split of a data set of lenses."""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.config import FREE, require
from jobs.parts import make_part, read_part
from jobs.runs import num_cores

if TYPE_CHECKING:
    from deeplense.data.shards import Samples, Schema
    from deeplense.simulation.populations import Population


ROWS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to simulate."""

    output: Path
    """folder of the data set; the split becomes a folder in it"""
    model: Literal["Model_I", "Model_II", "Model_III"] = "Model_III"
    """I: 150 x 150 pixels; II: Euclid VIS, 64 x 64; III: HST F160W, 64 x 64"""
    preset: Literal["published", "noisy", "physical"] = "noisy"
    """published: as the public data sets are, flaws included; noisy: the same physics with the instrument's noise;
    physical: right Einstein radii, a drawn number of subhaloes, a mass function with slope -1.9"""
    num_per_class: int = 1000
    """images of each of the three classes"""
    split: str = "train"
    """name of the split; equal numbers in different splits are different images"""
    seed: int = 0
    """0 or more"""
    mass_slope: float | None = None
    """slope of the subhalo mass function dN/dm; by default -1.9 in physical, -0.9 elsewhere"""
    dtype: Literal["float32", "float16"] = "float32"
    """type of the stored pixels; float16 is half as large, and rounds to 3 decimal digits"""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """of the stored images, each by itself, without loss; needs the package hdf5plugin. Uncompressed reads fastest"""
    num_workers: int = field(default=0, metadata=FREE)
    """processes; 0 for one on each core. The bytes do not depend on it"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N makes only every N-th shard, from the K-th on; whichever part ends last completes the split"""

    def __post_init__(self) -> None:
        require(self.num_per_class > 0, f"num_per_class={self.num_per_class} must be above 0.")
        require(self.seed >= 0, f"seed={self.seed} must be 0 or more.")
        require(self.split.isidentifier(), f"split={self.split!r} must be a plain name, such as train, val or test.")
        if self.part is not None:
            read_part(self.part)


def run(settings: Settings) -> int:
    """Write the split; a second call with the same settings continues or finds it done."""
    from deeplense.data.building import build
    from deeplense.files import sole_writer
    from deeplense.simulation.images import CLASSES
    from deeplense.simulation.populations import Population, default_mass_slope
    from jobs.progress import say, track

    slope = default_mass_slope(settings.preset) if settings.mass_slope is None else settings.mass_slope
    population = Population(settings.model, settings.preset, slope)
    schema = schema_of(settings, population)
    folder = settings.output / settings.split
    say(
        f"simulating {schema.num_samples} images of {settings.model}, {settings.preset}, "
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
    """What the split will hold, with every parameter that makes it."""
    from deeplense.data.shards import Schema
    from deeplense.simulation.images import unit
    from deeplense.simulation.populations import CLASSES

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
    """The samples of a range, in one thread: other processes have the other cores."""
    import numpy as np
    import torch

    from deeplense.data.shards import Samples
    from deeplense.simulation.images import simulate

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
