"""The diffusion model that settings define, and the generation of images. Shared by training and sampling."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeplense.data.scaling import Scaling
from deeplense.diffusion.conditions import Conditions
from deeplense.diffusion.denoiser import Denoise, Denoiser, clipped, guided
from deeplense.diffusion.samplers import Plan, sample
from deeplense.diffusion.unet import SHAPES, UNet
from deeplense.diffusion.zoo import SCHEDULES
from deeplense.evaluation import plots
from deeplense.files import replacing
from deeplense.random.noise import image_keys, normals
from jobs.data.part import Part
from jobs.diffuse.settings import CLASS, Settings
from jobs.settings import require

SHEET = 36
"""Number of images on a contact sheet."""
MOST_FOR_BOUNDS = 4096


def make_denoiser(settings: Settings, train: Part) -> Denoiser:
    """Return the network for these settings, with its noise schedule and prediction target."""
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
    """Return the embedding of the conditions. Continuous conditions are standardised over the training images."""
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
    """Return the conditions of each sample of a split (N, K), NaN if unknown; None without conditions. Raises
    ValueError for conditions that the data set does not have."""
    names, split = settings.condition_names, part.split
    known = [*([CLASS] if split.schema.classes else []), *split.schema.quantities]
    for name in names:
        require(name in known, f"{split.name} has no condition {name!r}; choose from {known}.")
    if not names:
        return None
    columns = [
        np.where(split.labels >= 0, split.labels, np.nan) if name == CLASS else split.column(f"target/{name}")
        for name in names
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def compile_network(denoiser: Denoiser, device: torch.device) -> None:
    """Compile the network of a denoiser with PyTorch. On a GPU, CUDA graphs are used too, which removes the host
    overhead of each step."""
    if device.type != "cuda":
        denoiser.network.compile(fullgraph=True)
        return
    denoiser.network.compile(fullgraph=True, mode="reduce-overhead")
    # The next replay of a CUDA graph overwrites its previous output.
    denoiser.network.register_forward_hook(lambda module, inputs, output: output.clone())


def bounds_of(settings: Settings, train: Part, scaling: Scaling) -> tuple[float, float] | None:
    """Return the minimum and maximum pixel of the training images, in the unit of the network. Return None unless the
    network predicts the noise: only then is the image so uncertain at the start of sampling that it must be clipped."""
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
    """Return images for these numbers (B,), (B, *shape), in the unit of the network. Each depends only on (seed,
    number)."""
    keys = image_keys(seed, numbers)
    denoise: Denoise = denoiser.denoise if said is None else guided(denoiser.denoise, said, scale=guidance)
    denoise = clipped(denoise, *bounds) if bounds else denoise
    return sample(denoise, plan, partial(normals, keys, shape))


def show(path: Path, images: np.ndarray) -> None:
    """Draw the first images (N, C, H, W) on a contact sheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = images[:SHEET]
    with replacing(path) as temporary, temporary.open("wb") as file:
        plots.figure(file, lambda axes: plots.gallery(axes, first, [""] * len(first)), size=(7.0, 7.0))
