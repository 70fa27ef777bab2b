"""Measure the cost of training a model: parameters, operations, speed and memory.

`python -m jobs.benchmark_models.costs FILE --setting value ...` takes the settings of `deeplense train`. Each model is
measured in its own process, so that the memory is that of the model.
"""

import itertools
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deeplense.data.loading import StepBatches
from deeplense.files import write_json
from deeplense.models.flops import flops_of
from deeplense.training.loop import Update, fit, make_accelerator, prepare
from jobs import command_line
from jobs.data.order import make_order
from jobs.data.part import Part
from jobs.data.statistics import find_statistics
from jobs.frame.weights import make_optimizer
from jobs.run_job import allow_own_model
from jobs.train.network import make_network
from jobs.train.objective import make_objective
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings

NUM_WARM, MOST_UPDATES, MOST_SECONDS = 2, 20, 20.0


def main(words: list[str]) -> None:
    """Measure one model and write the results to a JSON file."""
    settings = command_line.parse("train", words[1:])
    allow_own_model(settings)
    write_json(Path(words[0]), measure(settings))


def measure(settings: Settings) -> dict[str, Any]:
    """Measure the cost of training with these settings on this machine, on the batch of the first step."""
    load, accelerator = os.getloadavg()[0], make_accelerator(device=settings.device, precision=settings.precision)
    train, _ = learning_parts(settings)
    order = make_order(settings, train)
    network = make_network(settings, train.split, load_pretrained=False).to(accelerator.device)
    model, optimizer = prepare(
        accelerator, network, make_optimizer(settings, network, layer_decay=settings.layer_decay)
    )
    first = Part(train.split, order.batch(0)[0], None)
    objective = make_objective(settings, train, find_statistics(first, settings.stretch, accelerator))
    batches = StepBatches(train.split, order, rank=0, world_size=1, target=train.target)
    updates = fit(
        lambda batch: objective.step(model, batch),
        itertools.repeat(batches[0]),
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        learning_rate=lambda step: settings.lr,
        first_step=0,
        num_steps=NUM_WARM + MOST_UPDATES,
        step_seed=lambda step: step,
        accumulate=settings.gradient_accumulation,
        clip_grad=settings.clip_grad,
    )
    seconds, where = seconds_of(updates, accelerator.device), accelerator.device
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": flops_of(network, torch.zeros(1, *train.split.schema.shape, device=where)),
        "images_per_s": settings.batch_size / statistics.median(seconds),
        "peak_memory_mb": peak_memory(where) / 1e6,
        "memory": "allocated on the GPU" if where.type == "cuda" else "resident set, libraries included",
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name(),
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "num_updates": len(seconds),
        "load_average": load,
    }


def seconds_of(updates: Iterator[Update], device: torch.device) -> list[float]:
    """Measure the seconds of each update, after some warm-up updates."""
    seconds: list[float] = []
    begun = time.perf_counter()
    for number, _ in enumerate(updates):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds += [now - begun] if number >= NUM_WARM else []
        begun = now
        if sum(seconds) > MOST_SECONDS:
            break
    return seconds


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: on the GPU, or of this process (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_name() -> str:
    """Describe the CPU and the number of threads."""
    return f"{platform.machine()} CPU of {platform.node()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main(sys.argv[1:])
