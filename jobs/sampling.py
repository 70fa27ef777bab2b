"""From a trained diffusion model to a data set of its images."""

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
from deeplense.data.shards import Samples, Schema
from deeplense.diffusion.denoiser import Denoiser
from deeplense.diffusion.samplers import SAMPLERS, Plan
from deeplense.training.fitting import put_into
from deeplense.training.loop import make_accelerator
from jobs.config import require
from jobs.diffuse import CLASS
from jobs.diffuse import Settings as DiffuseSettings
from jobs.experiment import Part, image_parts
from jobs.generating import Scaling, bounds_of, compile_network, conditions_of, make_denoiser, make_images
from jobs.opening import Extent, extent_of, open_run_for
from jobs.parts import make_part
from jobs.progress import say, track
from jobs.runs import find_run, num_cores
from jobs.sample import USUAL_GUIDANCE, Settings


@dataclass(frozen=True)
class Generator:
    """A trained model, ready to make images."""

    settings: DiffuseSettings
    denoiser: Denoiser
    plan: Plan
    scaling: Scaling
    bounds: tuple[float, float] | None
    train: Part
    told: Tensor | None
    """what images are told to be, in turn, (N, K)"""
    facts: Mapping[str, Any]
    """which weights these are"""
    extent: Extent

    def told_to(self, rows: range) -> Tensor | None:
        """What images of these numbers are told to be, (n, K)."""
        return None if self.told is None else self.told[np.asarray(rows) % len(self.told)]


def sample(settings: Settings) -> int:
    """Make the images, or what is missing of them."""
    generator = make_generator(settings)
    schema, folder = schema_of(settings, generator), settings.output / settings.split
    make, facts = partial(make_samples, settings=settings), generator.facts
    is_cpu = generator.denoiser.schedule.device.type == "cpu"
    workers = settings.num_workers or (num_cores() if is_cpu else 1)
    say(
        f"making {settings.num_images} images by {facts['run']} (step {facts['step']}), {settings.sampler} with "
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
    """Read the weights, once in a process. Raises ValueError where the run is none of diffusion, or has no good
    checkpoint."""
    run = find_run(settings.run, settings.runs_root)
    opened = open_run_for(run, "diffuse", DiffuseSettings, which=settings.weights)
    learnt, files = opened.settings, opened.files
    require(
        settings.guidance == USUAL_GUIDANCE or bool(learnt.conditions),
        f"--guidance counts for a run with --conditions only, and {run} was trained without; leave it out.",
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
        },
        extent=extent_of(opened, num_steps(learnt.epochs, num_samples=len(train), batch_size=learnt.batch_size)),
    )


def told(text: str, learnt: DiffuseSettings, train: Part) -> Tensor | None:
    """What images are told to be, in turn (N, K): what is known of those learnt from, or what the text says of all.
    Raises ValueError for what the model was not told in its training."""
    known = conditions_of(learnt, train)
    if not text:
        return None if known is None else known[train.indices]
    names, classes = learnt.condition_names, train.split.schema.classes
    said = torch.full((1, len(names)), torch.nan)
    for each in text.split(","):
        name, _, value = (word.strip() for word in each.partition("="))
        require(name in names, f"conditions: the model was told {names or 'nothing'} of its images, not {name!r}.")
        number = class_number(value, classes) if name == CLASS else finite(name, value)
        said[0, names.index(name)] = number
    return said


def class_number(value: str, classes: tuple[str, ...]) -> float:
    """The number of a class. Raises ValueError where there is none of that name."""
    require(value in classes, f"conditions: there is no class {value!r}; there are {', '.join(classes)}.")
    return float(classes.index(value))


def finite(name: str, value: str) -> float:
    """A number. Raises ValueError where it is none."""
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    require(np.isfinite(number), f"conditions: {name}={value!r} must be a number.")
    return number


def schema_of(settings: Settings, generator: Generator) -> Schema:
    """What the split will hold, with every parameter that makes it."""
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
    """The images of a range, in blocks of one size and one thread on a CPU: so an image has the same bits whoever makes
    it, beside whatever others."""
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
    """The images of these numbers (b, C, H, W), in the unit of the data set."""
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
        f"{bad} of the images {rows.start} to {rows.stop - 1} that {settings.run} makes are not finite; use more "
        "--num_steps, a smaller --guidance, or --weights best.",
    )
    return images
