"""`deeplense benchmark diffuse`: compare updates of a diffusion model with a training loop around diffusers."""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from deeplense.diffusion.denoiser import Denoiser
from deeplense.diffusion.unet import SHAPES, UNet
from deeplense.training.stopping import StopFlag
from jobs.benchmark.made import NEVER, begun_learning, make_noise, update
from jobs.benchmark.sample import INSTALL, make_peer, refuse_other_networks
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, Timing, compare, timed
from jobs.diffuse.learner import Diffusion
from jobs.diffuse.settings import Settings as DiffuseSettings
from jobs.frame.start import Training
from jobs.frame.updates import advance

SIDE = {"cuda": 8192, "mps": 4096, "cpu": 1024}
"""Side of the matrices whose product reaches the peak throughput of a device."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(settings: Settings) -> list[Row]:
    """Compare updates of `deeplense diffuse` on one-band images, and report their fraction of the matrix product
    throughput of the same device and precision. On a CPU, each side uses one core."""
    refuse_other_networks(settings)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        training = begun(settings, Path(folder))
        row = row_of(training, settings)
        training.attempt.close()
    return [row]


def begun(settings: Settings, folder: Path) -> Training:
    """Start a run of `deeplense diffuse` up to its first update."""
    size = settings.image_size
    asked: dict[str, Any] = {
        "run": folder / "run",
        "dataset": str(make_noise(folder / "data", 32 + 4 * settings.batch_size, (1, size, size))),
        "model_name": settings.model_name,
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "device": settings.device,
        "stage": "none",
        "num_sampled": 0,
    }
    diffused = DiffuseSettings(**(asked | NEVER))
    return begun_learning(diffused, lambda: Diffusion.of(diffused))


def row_of(training: Training, settings: Settings) -> Row:
    """Measure images per second of both sides, and the device utilisation of ours."""
    device = training.weights.accelerator.device
    network = cast(UNet, cast(Denoiser, training.weights.accelerator.unwrap_model(training.weights.model)).network)
    peer = make_peer(network, SHAPES[settings.model_name]).to(device) if find_spec("diffusers") else None
    operations = count_operations(network, settings)
    ours = update(advance(training, StopFlag()), device=device, num_images=settings.batch_size)
    what = f"diffusion, {settings.model_name}, {settings.image_size} pixels, {settings.precision} on {device.type}"
    if peer is None:
        ours()
        rates = sorted(timed(ours).rate for _ in range(settings.rounds))
        row = Row(what=what, unit="images/s", ours=rates[len(rates) // 2], note=INSTALL)
    else:
        theirs = update(updates_of_diffusers(peer, training, settings), device=device, num_images=settings.batch_size)
        row = compare(what, ours, theirs, other_name="a loop around diffusers", rounds=settings.rounds)
    peak = matrix_peak(device, DTYPES[settings.precision])
    reached = (row.ours or 0.0) * operations
    return replace(row, extra={"TFLOP/s": reached / 1e12, "of matrix products": reached / peak})


def count_operations(network: UNet, settings: Settings) -> float:
    """Count the floating point operations per image of an update, forward and backward (a multiply-add counts as 2)."""
    counted = copy.deepcopy(network).cpu().train()
    image = torch.zeros(1, 1, settings.image_size, settings.image_size)
    with FlopCounterMode(display=False) as counter:
        counted(image, torch.zeros(1)).sum().backward()
    return float(counter.get_total_flops())


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a product of large square matrices, the best of 5 timings."""
    side = SIDE[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> float:
        product = matrix @ matrix
        product.sum().item()
        return 2.0 * side**3

    multiply()
    timings: list[Timing] = [timed(multiply) for _ in range(5)]
    return max(timing.rate for timing in timings)


def updates_of_diffusers(peer: Any, training: Training, settings: Settings) -> Iterator[None]:
    """Make updates as in the training example of diffusers: random noise and times, squared error of the noise, clipped
    gradients, and an EMA of the weights by its own class."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    device = training.weights.accelerator.device
    images = images_of(training).to(device)
    scheduler: Any = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    peer.train()
    optimizer, running = torch.optim.AdamW(peer.parameters(), lr=1e-4), EMAModel(peer.parameters())
    while True:
        chosen = images[torch.randint(len(images), (settings.batch_size,), device=device)]
        noise, times = torch.randn_like(chosen), torch.randint(1000, (len(chosen),), device=device)
        with training.weights.accelerator.autocast():
            said = peer(scheduler.add_noise(chosen, noise, times), times).sample
        functional.mse_loss(said.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running.step(peer.parameters())
        yield


def images_of(training: Training) -> Tensor:
    """Return all training images."""
    train = training.learner.train
    return torch.from_numpy(train.split.images(train.indices))
