"""What a diffusion model of given settings is, and how it makes images. Training and sampling share it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeplense.data.scaling import Scaling
from deeplense.diffusion.conditions import Conditions
from deeplense.diffusion.denoiser import Denoise, Denoiser, clipped, guided
from deeplense.diffusion.noise import image_keys, normals
from deeplense.diffusion.samplers import Plan, sample
from deeplense.diffusion.schedules import SCHEDULES
from deeplense.diffusion.unet import SHAPES, UNet
from deeplense.evaluation import plots
from deeplense.files import replacing
from jobs.config import require
from jobs.diffuse import CLASS, Settings
from jobs.experiment import Part

SHEET = 36
"""Images on a sheet."""
MOST_FOR_BOUNDS = 4096


def make_denoiser(settings: Settings, train: Part) -> Denoiser:
    """The network of these settings, with its noise schedule and what it is asked for."""
    network = UNet(train.split.schema.shape[0], shape=SHAPES[settings.model_name])
    return Denoiser(
        network,
        SCHEDULES[settings.noise_schedule](settings.num_times),
        target=settings.predict,
        loss=settings.loss,
        min_snr_gamma=settings.min_snr_gamma,
        conditions=make_conditions(settings, train, network.embedding_dim),
        drop_share=settings.drop_share,
    )


def make_conditions(settings: Settings, train: Part, embedding_dim: int) -> Conditions | None:
    """The embedding of what is said of images; numbers in units of their spread among those learnt from."""
    said, names = conditions_of(settings, train), settings.condition_names
    if said is None:
        return None
    numbers = said[train.indices][:, int(CLASS in names) :].double().numpy()
    return Conditions(
        embedding_dim,
        num_classes=len(train.split.schema.classes) if CLASS in names else 0,
        mean=np.nanmean(numbers, axis=0).tolist(),
        std=[max(spread, 1e-12) for spread in np.nanstd(numbers, axis=0).tolist()],
    )


def conditions_of(settings: Settings, part: Part) -> Tensor | None:
    """What is said of each sample of a split (N, K), NaN where that is unknown; None where nothing is said. Raises
    ValueError for what the data set does not know."""
    names, split = settings.condition_names, part.split
    known = [*([CLASS] if split.schema.classes else []), *sorted(split.schema.targets)]
    for name in names:
        require(name in known, f"{split.name} knows no {name!r} of its images to condition on; it knows {known}.")
    if not names:
        return None
    columns = [
        np.where(split.labels >= 0, split.labels, np.nan) if name == CLASS else split.column(f"target/{name}")
        for name in names
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def compile_network(denoiser: Denoiser, device: torch.device) -> None:
    """Let PyTorch compile the network of a denoiser; on a GPU it is recorded as a graph, too, which takes the host out
    of each step."""
    if device.type != "cuda":
        denoiser.network.compile(fullgraph=True)
        return
    denoiser.network.compile(fullgraph=True, mode="reduce-overhead")
    # The next replay of a recorded graph writes over what it gave before.
    denoiser.network.register_forward_hook(lambda module, inputs, output: output.clone())


def bounds_of(settings: Settings, train: Part, scaling: Scaling) -> tuple[float, float] | None:
    """The darkest and brightest pixel of the images that are learnt from, in the unit of the network; None where it is
    asked for something else than the noise, which makes it so unsure at the start that it must be held within them."""
    if settings.predict != "eps":
        return None
    images = scaling.scaled(torch.from_numpy(train.split.images(train.indices[:MOST_FOR_BOUNDS])))
    return images.min().item(), images.max().item()


def make_images(
    denoiser: Denoiser,
    plan: Plan,
    numbers: Tensor,
    shape: Sequence[int],
    *,
    seed: int,
    said: Tensor | None,
    guidance: float = 1.0,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Images of these numbers (B,), (B, *shape), each a function of (seed, number), in the unit of the network."""
    keys = image_keys(seed, numbers)
    denoise: Denoise = denoiser.denoise if said is None else guided(denoiser.denoise, said, scale=guidance)
    denoise = clipped(denoise, *bounds) if bounds else denoise
    return sample(denoise, plan, partial(normals, keys, shape))


def show(path: Path, images: np.ndarray) -> None:
    """Draw the first images (N, C, H, W) on a sheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = images[:SHEET]
    with replacing(path) as temporary, temporary.open("wb") as file:
        plots.figure(file, lambda axes: plots.gallery(axes, first, [""] * len(first)), size=(7.0, 7.0))
