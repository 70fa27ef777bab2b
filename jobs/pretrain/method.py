"""The objects that the settings of a pretraining define: images, views, backbone and method."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from deeplense.data.dataset import Split
from deeplense.data.order import num_steps
from deeplense.models.registry import Network, build
from deeplense.models.tokens import TokenEncoder, encoder_of
from deeplense.random.columns import Columns
from deeplense.ssl.masks import NUM_COUNT_UNIFORMS, NUM_UNIFORMS, block_masks, draw_counts
from deeplense.ssl.views import PRESETS, ViewSettings
from deeplense.ssl.zoo import CLASSES, METHODS
from jobs.data.part import Part
from jobs.pretrain.settings import Settings
from jobs.settings import require

MASK_COLUMNS = Columns({"block": NUM_UNIFORMS, "count": NUM_COUNT_UNIFORMS})
"""Random numbers for the mask of a view."""


class Method(Protocol):
    """Interface of a class of deeplense.ssl in addition to its forward.

    It is created from its backbone and the arguments that its `__init__` names among: num_features, num_steps,
    in_chans, out_dim, hidden_dim, momentum, teacher_temp, and, if it masks patches, make_masks, mask_uniforms,
    most_hidden, patch_size. `forward(views, random, step)` returns the metrics of a batch, including `loss`. Everything
    to be saved is in its state.
    """

    num_uniforms: int
    """number of random numbers per sample"""

    @property
    def encoder(self) -> nn.Module: ...

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None: ...

    def train(self, mode: bool = True) -> nn.Module: ...


def size_of_views(settings: Settings, split: Split) -> int:
    """Return the side of the global views in pixels. Raises ValueError if images are smaller."""
    _, height, width = split.schema.shape
    smaller = min(height, width)
    require(
        settings.image_size <= smaller,
        f"image_size={settings.image_size} exceeds the {smaller} pixels of {split.name}; use a smaller one.",
    )
    return settings.image_size or smaller


def view_settings(settings: Settings, split: Split) -> ViewSettings:
    """Return the view preset, adapted to these images."""
    preset, size = PRESETS[settings.views], size_of_views(settings, split)
    num_local = preset.num_local if settings.num_local is None else settings.num_local
    if not METHODS[settings.method].local_views:
        require(not settings.num_local, f"{settings.method} uses views of one size only; leave out --num_local.")
        num_local = 0
    require(
        settings.local_size <= size,
        f"local_size={settings.local_size} exceeds the {size} pixels of the global views; use a smaller one.",
    )
    return replace(
        preset,
        global_size=size,
        local_size=settings.local_size or size // 2,
        num_local=num_local,
        stamp_size=size,
        bands=band_letters(split),
    )


def band_letters(split: Split) -> tuple[str, ...]:
    """Return the last word of each band name: g for `Pan-STARRS1 g`."""
    return tuple(band.split()[-1] if band.split() else band for band in split.schema.bands)


def make_backbone(settings: Settings, split: Split) -> Network:
    """Return the network whose backbone is pretrained; its head is not used. Raises ValueError if it has a loss of its
    own, or must pad or resize global views."""
    size = size_of_views(settings, split)
    network = build(
        settings.model_name,
        image_size=size,
        in_chans=split.schema.shape[0],
        num_outputs=1,
        drop_path=settings.drop_path,
    )
    fitted = network.input_size
    require(
        fitted.way == "native",
        f"{settings.model_name} cannot use views of {size} pixels unless they are {fitted.verb} to {fitted.size}; give "
        "another --image_size, a multiple of 8 for vit_small.",
    )
    require(
        not getattr(network.backbone, "has_penalty", False),
        f"{settings.model_name} adds a penalty term to the loss, which pretraining does not support; give another "
        "--model_name.",
    )
    return network


def make_method(settings: Settings, train: Part, views: ViewSettings) -> nn.Module:
    """Return the method with a new backbone."""
    network = make_backbone(settings, train.split)
    encoder = encoder_of(network)
    if settings.checkpoint_blocks:
        require(
            isinstance(encoder, TokenEncoder),
            f"{settings.model_name} has no transformer blocks; leave out --checkpoint_blocks.",
        )
        cast(TokenEncoder, encoder).vit.set_grad_checkpointing()
    sizes = {views.global_size, *([views.local_size] if views.num_local else [])}
    kind, make = METHODS[settings.method], CLASSES[settings.method]
    offered = {
        "num_features": features_at(encoder, settings, sizes, in_chans=train.split.schema.shape[0]),
        "num_steps": updates_of(settings, train),
        "in_chans": train.split.schema.shape[0],
        **given(settings),
        **(mask_options(settings, encoder) if kind.hidden_views else {}),
    }
    wanted = inspect.signature(make).parameters
    return make(encoder, **{name: value for name, value in offered.items() if name in wanted})


def updates_of(settings: Settings, train: Part) -> int:
    """Return the number of updates of the whole pretraining."""
    return num_steps(settings.epochs, num_samples=len(train), batch_size=settings.batch_size)


def mask_options(settings: Settings, encoder: nn.Module) -> dict[str, Any]:
    """Return the arguments of a method that masks patches. Raises ValueError if the patches of the backbone cannot be
    masked."""
    require(
        isinstance(encoder, TokenEncoder),
        f"{settings.method} masks patches, which needs a vision transformer of timm; {settings.model_name} is none. "
        "Give --model_name vit_small, or --method dino.",
    )
    return {
        "make_masks": partial(draw_masks, settings),
        "mask_uniforms": MASK_COLUMNS.total,
        "most_hidden": settings.mask_share + mask_spread(settings),
        "patch_size": cast(TokenEncoder, encoder).patch_size,
    }


def draw_masks(settings: Settings, uniforms: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return random block masks of the patches, (B, T): for half of the views with iBOT, for all with SimMIM."""
    counts = draw_counts(
        MASK_COLUMNS.of(uniforms, "count"),
        grid[0] * grid[1],
        share=settings.mask_share,
        spread=mask_spread(settings),
        probability=METHODS[settings.method].hidden_views,
    )
    return block_masks(MASK_COLUMNS.of(uniforms, "block"), grid=grid, count=counts)


def mask_spread(settings: Settings) -> float:
    """Return the half-width of the random range of the masked fraction."""
    share = settings.mask_share
    return min(METHODS[settings.method].hidden_spread, share, 1 - share)


def given(settings: Settings) -> dict[str, Any]:
    """Return the arguments of the method that are given in the settings."""
    names = {
        "out_dim": settings.out_dim,
        "hidden_dim": settings.hidden_dim,
        "momentum": settings.teacher_momentum,
        "teacher_temp": settings.teacher_temp,
    }
    return {name: value for name, value in names.items() if value is not None}


@torch.no_grad()
def features_at(encoder: nn.Module, settings: Settings, sizes: set[int], *, in_chans: int) -> int:
    """Return the number of features. Raises ValueError if the backbone cannot process views of one of the sizes."""
    encoder.eval()
    shapes = set()
    for size in sorted(sizes):
        try:
            shapes.add(encoder(torch.zeros(1, in_chans, size, size)).shape[1:])
        except (ValueError, RuntimeError, AssertionError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{settings.model_name} cannot process views of {size} pixels ({why}); give another --image_size or "
                "--local_size, --num_local 0, or a vision transformer such as vit_small."
            ) from error
    encoder.train()
    numbers = {shape[0] for shape in shapes if len(shape) == 1}
    require(
        len(shapes) == len(numbers) == 1,
        f"{settings.model_name} returns a feature map, or a number of features that depends on the view size; it "
        "cannot be pretrained. Give another --model_name.",
    )
    return numbers.pop()


def share_batch_statistics(method: Method, *, device: str, num_processes: int) -> None:
    """Let batch norms use the batch of all processes. PyTorch supports this on GPUs only. On a CPU each process uses
    its own part of the batch, and results depend slightly on the number of processes."""
    if device == "cuda" and num_processes > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(cast(nn.Module, method))
