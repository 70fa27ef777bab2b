"""What a model costs: parameters, operations, speed and memory of a training. A process of its own for each model, so
that the memory is its own: `python -m jobs.measuring.models FILE --setting value ...`, the settings being those of
`deeplense train`."""

import copy
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
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deeplense.data.loading import StepBatches
from deeplense.files import write_json
from deeplense.training.loop import Update, fit, make_accelerator, prepare
from jobs import config
from jobs.experiment import Part, learning_parts, make_network, make_objective, make_order
from jobs.statistics import find_statistics
from jobs.train import Settings
from jobs.training_start import make_optimizer

NUM_WARM, MOST_UPDATES, MOST_SECONDS = 2, 20, 20.0


def main(words: list[str]) -> None:
    """Measure one model, and write what was found."""
    write_json(Path(words[0]), measure(config.parse("train", words[1:])))


def measure(settings: Settings) -> dict[str, Any]:
    """What training with these settings costs on this machine, on the batch of its first step."""
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
    """How long each update takes, after some to warm up."""
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
    """The most bytes that were in use: on the GPU, or by this process (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_name() -> str:
    """The processor, and how much of it is used."""
    return f"{platform.machine()} CPU of {platform.node()}, {torch.get_num_threads()} threads"


@torch.no_grad()
def flops_of(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of convolutions, matrix products and attention for one image (1, C, S, S); a product
    and its sum are two."""
    # The counter stumbles over parameters that are given to a module, as tokens are, and learn.
    counted = copy.deepcopy(network).eval().requires_grad_(False)
    # It does not know the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted(image)
    return counter.get_total_flops()


if __name__ == "__main__":
    main(sys.argv[1:])
