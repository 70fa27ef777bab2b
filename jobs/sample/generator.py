"""Generate a data set of images with a trained diffusion model."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplense.data.building import build
from deeplense.data.order import num_steps
from deeplense.data.scaling import Scaling
from deeplense.data.shards import Samples, Schema
from deeplense.diffusion.denoiser import Denoiser
from deeplense.diffusion.samplers import Plan
from deeplense.diffusion.zoo import SAMPLERS
from deeplense.training.fitting import put_into
from deeplense.training.loop import make_accelerator
from jobs.console import say, track
from jobs.data.part import Part, image_parts
from jobs.data.shares import make_part
from jobs.diffuse.images import bounds_of, compile_network, conditions_of, make_denoiser, make_images
from jobs.diffuse.settings import CLASS
from jobs.diffuse.settings import Settings as DiffuseSettings
from jobs.runs.environment import num_cores
from jobs.runs.folder import find_run
from jobs.runs.opening import Extent, extent_of, open_run_for
from jobs.sample.settings import USUAL_GUIDANCE, Settings
from jobs.settings import require


@dataclass(frozen=True)
class Generator:
    """A trained diffusion model, ready to generate images."""

    settings: DiffuseSettings
    denoiser: Denoiser
    plan: Plan
    scaling: Scaling
    bounds: tuple[float, float] | None
    train: Part
    told: Tensor | None
    """conditions of the generated images, used in turn, (N, K)"""
    facts: Mapping[str, Any]
    """origin of the weights"""
    extent: Extent

    def told_to(self, rows: range) -> Tensor | None:
        """Return the conditions of the images with these numbers, (n, K)."""
        return None if self.told is None else self.told[np.asarray(rows) % len(self.told)]


def sample(settings: Settings) -> int:
    """Generate all images that are missing."""
    generator = make_generator(settings)
    schema, folder = schema_of(settings, generator), settings.output / settings.split
    make, facts = partial(make_samples, settings=settings), generator.facts
    is_cpu = generator.denoiser.schedule.device.type == "cpu"
    workers = settings.num_workers or (num_cores() if is_cpu else 1)
    say(
        f"generating {settings.num_images} images with {facts['run']} (step {facts['step']}), {settings.sampler} with "
        f"{settings.num_steps} steps, into {folder}"
    )
    if not generator.extent.finished:
        say(f"note: {settings.run} is {generator.extent}")
    if settings.part:
        make_part({folder: (schema, make)}, settings.part, num_workers=workers)
        return 0
    track(build(folder, schema, make, num_workers=workers), total=settings.num_images, unit="images")
    say(f"{folder} is complete")
    return 0


@cache
def make_generator(settings: Settings) -> Generator:
    """Load the model, once per process. Raises ValueError if the run is not a diffusion run, or has no intact
    checkpoint."""
    run = find_run(settings.run, settings.runs_root)
    opened = open_run_for(run, "diffuse", DiffuseSettings, which=settings.weights)
    learnt, files = opened.settings, opened.files
    require(
        settings.guidance == USUAL_GUIDANCE or bool(learnt.conditions),
        f"--guidance needs a model trained with --conditions, but {run} was trained without; leave it out.",
    )
    name = "ema" if settings.weights == "last" and "ema.json" in files else "model"
    train, _ = image_parts(learnt, labelled=CLASS in learnt.condition_names)
    opened.require_data(train.split)
    accelerator = make_accelerator(device=settings.device, precision="fp32")
    scaling = Scaling(opened.progress["statistics"], learnt.stretch)
    denoiser = make_denoiser(learnt, train)
    put_into(denoiser, opened.load(name), path=opened.checkpoint)
    if settings.compile:
        compile_network(denoiser, accelerator.device)
    return Generator(
        settings=learnt,
        denoiser=denoiser.to(accelerator.device).eval(),
        plan=SAMPLERS[settings.sampler](denoiser.schedule.cpu(), settings.num_steps),
        scaling=scaling,
        bounds=bounds_of(learnt, train, scaling),
        train=train,
        told=told(settings.conditions, learnt, train),
        facts={
            "run": run.resolve().name,
            "step": opened.step,
            "weights": files[f"{name}.safetensors"],
            "trained_on": train.split.dataset_id,
        },
        extent=extent_of(opened, num_steps(learnt.epochs, num_samples=len(train), batch_size=learnt.batch_size)),
    )


def told(text: str, learnt: DiffuseSettings, train: Part) -> Tensor | None:
    """Return the conditions of the generated images, used in turn (N, K): those of the training images, or those that
    the text sets for all. Raises ValueError for conditions that the model was not trained with."""
    known = conditions_of(learnt, train)
    if not text:
        return None if known is None else known[train.indices]
    names, classes = learnt.condition_names, train.split.schema.classes
    said = torch.full((1, len(names)), torch.nan)
    for each in text.split(","):
        name, _, value = (word.strip() for word in each.partition("="))
        require(name in names, f"conditions: unknown condition {name!r}; the model was trained with {names or 'none'}.")
        number = class_number(value, classes) if name == CLASS else finite(name, value)
        said[0, names.index(name)] = number
    return said


def class_number(value: str, classes: tuple[str, ...]) -> float:
    """Return the index of a class. Raises ValueError if there is no such class."""
    require(value in classes, f"conditions: no such class {value!r}; choose from {', '.join(classes)}.")
    return float(classes.index(value))


def finite(name: str, value: str) -> float:
    """Return a number. Raises ValueError if it is not a finite number."""
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    require(np.isfinite(number), f"conditions: {name}={value!r} must be a number.")
    return number


def schema_of(settings: Settings, generator: Generator) -> Schema:
    """Return the schema of the split, including all parameters of the generation."""
    real, names = generator.train.split.schema, generator.settings.condition_names
    return Schema(
        split=settings.split,
        num_samples=settings.num_images,
        shape=real.shape,
        dtype="float32",
        bands=real.bands,
        unit=real.unit,
        pixel_scale_arcsec=real.pixel_scale_arcsec,
        classes=real.classes if CLASS in names else (),
        targets={name: real.targets[name] for name in names if name != CLASS},
        provenance={
            "made_by": "deeplense sample",
            **generator.facts,
            "seed": settings.seed,
            "sampler": settings.sampler,
            "num_steps": settings.num_steps,
            "guidance": settings.guidance,
            "conditions": settings.conditions,
            "precision": settings.precision,
            "compile": settings.compile,
            "batch_size": settings.batch_size,
        },
    )


def make_samples(rows: range, *, settings: Settings) -> Samples:
    """Return the images of a range. They are generated in batches of one size, with one thread on a CPU, so that the
    bits of an image do not depend on the process or on the other images."""
    torch.set_num_threads(1)
    generator = make_generator(settings)
    size = settings.batch_size
    blocks = [make_block(range(k, k + size), settings, generator) for k in range(rows.start, rows.stop, size)]
    names, said = generator.settings.condition_names, generator.told_to(rows)
    columns = {} if said is None else dict(zip(names, said.double().numpy().T, strict=True))
    labels = columns.pop(CLASS, np.full(len(rows), np.nan))
    return Samples(
        images=np.concatenate(blocks)[: len(rows)],
        labels=np.nan_to_num(labels, nan=-1).astype(np.int64),
        targets=columns,
        ids=[f"{settings.split}-{settings.seed}-{k}" for k in rows],
        source_index=np.asarray(rows),
    )


def make_block(rows: range, settings: Settings, generator: Generator) -> np.ndarray:
    """Return the images with these numbers (b, C, H, W), in the unit of the data set."""
    device = generator.denoiser.schedule.device
    said = generator.told_to(rows)
    bf16 = torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()
    with bf16:
        made = make_images(
            generator.denoiser,
            generator.plan,
            torch.tensor(rows, device=device),
            generator.train.split.schema.shape,
            seed=settings.seed,
            said=None if said is None else said.to(device),
            guidance=settings.guidance,
            bounds=generator.bounds,
        )
    images = generator.scaling.unscaled(made.float()).cpu().numpy()
    bad = int((~np.isfinite(images)).any(axis=(1, 2, 3)).sum())
    require(
        not bad,
        f"{bad} of the images {rows.start} to {rows.stop - 1} generated by {settings.run} are not finite; use more "
        "--num_steps, a smaller --guidance, or --weights best.",
    )
    return images
