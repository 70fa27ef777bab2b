"""`deeplense benchmark sample`: compare sampling from a diffusion model with diffusers, with the same weights."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from deeplense.diffusion.denoiser import Denoiser
from deeplense.diffusion.schedules import cosine
from deeplense.diffusion.unet import SHAPES, Shape, UNet, diffusers_options, to_diffusers
from deeplense.diffusion.zoo import SAMPLERS
from deeplense.training.loop import make_accelerator
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, compare, timed
from jobs.diffuse.images import compile_network, make_images
from jobs.settings import require

INSTALL = "diffusers is not installed; run: pip install --no-deps diffusers==0.42.1"
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm_solver": ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
}
"""The samplers of diffusers that correspond to ours, with their options."""


def measure(settings: Settings) -> list[Row]:
    """Sample batches of one-band images from a network with random weights, on which the speed does not depend. On a
    CPU, each side uses one core."""
    refuse_other_networks(settings)
    device = make_accelerator(device=settings.device, precision="fp32").device
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SHAPES[settings.model_name]
    network = UNet(1, shape=shape).to(device).eval()
    peer = make_peer(network, shape).to(device) if find_spec("diffusers") else None
    denoiser = Denoiser(network, cosine(), target="eps").to(device).eval()
    if settings.compile:
        compile_network(denoiser, device)
    return [row(name, settings, denoiser, peer) for name in OTHERS]


def refuse_other_networks(settings: Settings) -> None:
    """Raise ValueError for an unknown diffusion network."""
    require(
        settings.model_name in SHAPES,
        f"model_name={settings.model_name} is not a diffusion network; choose from {', '.join(SHAPES)}.",
    )


def make_peer(network: UNet, shape: Shape) -> Any:
    """Return the same network with the same weights in diffusers."""
    from diffusers import UNet2DModel

    peer = UNet2DModel(**diffusers_options(shape, network.stem.in_channels))
    peer.load_state_dict(to_diffusers(network.state_dict()))
    return peer.eval()


def row(name: str, settings: Settings, denoiser: Denoiser, peer: Any) -> Row:
    """Measure one sampler; the seconds per batch are reported as an extra."""
    device = denoiser.schedule.device
    precise = partial(torch.autocast, device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext
    ours = partial(make_ours, name, settings, denoiser, precise)
    title = f"{settings.model_name}, {name}, {settings.num_steps} steps, {settings.precision} on {device.type}"
    if peer is None:
        ours()
        rate = statistics.median(timed(ours).rate for _ in range(settings.rounds))
        return Row(
            what=title, unit="images/s", ours=rate, note=INSTALL, extra={"s a batch": settings.batch_size / rate}
        )
    theirs = partial(make_theirs, name, settings, peer, device, precise)
    found = compare(title, ours, theirs, other_name="diffusers", rounds=settings.rounds)
    assert found.ours is not None
    return replace(found, extra={"s a batch": settings.batch_size / found.ours})


Precise = Callable[[], AbstractContextManager[Any]]


def make_ours(name: str, settings: Settings, denoiser: Denoiser, precise: Precise) -> float:
    """Sample a batch with this package."""
    device, size = denoiser.schedule.device, settings.image_size
    plan = SAMPLERS[name](denoiser.schedule.cpu(), settings.num_steps)
    numbers = torch.arange(settings.batch_size, device=device)
    with precise():
        return finished(make_images(denoiser, plan, numbers, (1, size, size), seed=0, said=None))


@torch.no_grad()
def make_theirs(name: str, settings: Settings, peer: Any, device: torch.device, precise: Precise) -> float:
    """Sample a batch with diffusers."""
    import diffusers

    kind, options = OTHERS[name]
    scheduler = getattr(diffusers, kind)(1000, beta_schedule="squaredcos_cap_v2", **options)
    scheduler.set_timesteps(settings.num_steps)
    image = torch.randn(settings.batch_size, 1, settings.image_size, settings.image_size, device=device)
    for time in scheduler.timesteps:
        with precise():
            said = peer(image, time.to(device)).sample
        image = scheduler.step(said.float(), time, image).prev_sample
    return finished(image)


def finished(images: Tensor) -> float:
    """Wait until the device has finished, and return the number of images."""
    images.sum().item()
    return float(len(images))
