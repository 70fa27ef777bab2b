"""What the settings of a pretraining mean: its images, its views, its backbone, its method."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from deeplense.data.dataset import Split
from deeplense.data.order import num_steps
from deeplense.models.registry import Network, build
from deeplense.models.tokens import TokenEncoder, encoder_of
from deeplense.ssl.dino import DINO
from deeplense.ssl.ibot import IBOT
from deeplense.ssl.lejepa import LeJEPA
from deeplense.ssl.masks import NUM_COUNT_UNIFORMS, NUM_UNIFORMS, block_masks, draw_counts
from deeplense.ssl.simmim import SimMIM
from deeplense.ssl.simsiam import SimSiam
from deeplense.ssl.views import PRESETS, ViewSettings
from jobs.config import require
from jobs.experiment import Part
from jobs.pretrain import MASKED, Settings

PAIRS = ("simsiam", "simmim")
"""Methods whose views are all of one size."""
MASK_UNIFORMS = NUM_UNIFORMS + NUM_COUNT_UNIFORMS
MASK_SPREAD = 0.2
"""How far the share of hidden patches of iBOT is drawn from its middle, at most."""


class Method(Protocol):
    """What a module of deeplense.ssl has beside its forward."""

    num_uniforms: int

    @property
    def encoder(self) -> nn.Module: ...

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None: ...

    def train(self, mode: bool = True) -> nn.Module: ...


def size_of_views(settings: Settings, split: Split) -> int:
    """Pixels a side of the large views. Raises ValueError where images are smaller."""
    _, height, width = split.schema.shape
    smaller = min(height, width)
    require(
        settings.image_size <= smaller,
        f"image_size={settings.image_size} is more than the {smaller} pixels of {split.name}; use less.",
    )
    return settings.image_size or smaller


def view_settings(settings: Settings, split: Split) -> ViewSettings:
    """The preset, for these images."""
    preset, size = PRESETS[settings.views], size_of_views(settings, split)
    num_local = preset.num_local if settings.num_local is None else settings.num_local
    if settings.method in PAIRS:
        require(not settings.num_local, f"{settings.method} takes views of one size; leave out --num_local.")
        num_local = 0
    require(
        settings.local_size <= size,
        f"local_size={settings.local_size} is more than the {size} pixels of the large views; use less.",
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
    """The last word of the name of each band: g of `Pan-STARRS1 g`."""
    return tuple(band.split()[-1] if band.split() else band for band in split.schema.bands)


def make_backbone(settings: Settings, split: Split) -> Network:
    """The network whose backbone is pretrained; its last layers are not used. Raises ValueError where it has a loss of
    its own, or takes large views only padded or resized."""
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
        f"{settings.model_name} takes views of {size} pixels only {fitted.verb} to {fitted.size}; give another "
        "--image_size, a multiple of 8 for vit_small.",
    )
    require(
        not getattr(network.backbone, "has_penalty", False),
        f"{settings.model_name} adds a term of its own to a loss, which a pretraining has not; give another.",
    )
    return network


def make_method(settings: Settings, train: Part, views: ViewSettings) -> nn.Module:
    """The method, with a new backbone."""
    network = make_backbone(settings, train.split)
    encoder = encoder_of(network)
    if settings.checkpoint_blocks:
        require(
            isinstance(encoder, TokenEncoder), f"{settings.model_name} has no blocks; leave out --checkpoint_blocks."
        )
        cast(TokenEncoder, encoder).vit.set_grad_checkpointing()
    sizes = {views.global_size, *([views.local_size] if views.num_local else [])}
    num_features = features_at(encoder, settings, sizes, in_chans=train.split.schema.shape[0])
    common = {
        "num_features": num_features,
        "num_steps": updates_of(settings, train),
    }
    return make(settings, encoder, common | given(settings), train.split.schema.shape[0])


def updates_of(settings: Settings, train: Part) -> int:
    """How many the whole pretraining makes."""
    return num_steps(settings.epochs, num_samples=len(train), batch_size=settings.batch_size)


def make(settings: Settings, encoder: nn.Module, options: Mapping[str, Any], in_chans: int) -> nn.Module:
    """The method of these settings."""
    if settings.method not in MASKED:
        return {"dino": DINO, "simsiam": SimSiam, "lejepa": LeJEPA}[settings.method](encoder, **options)
    require(
        isinstance(encoder, TokenEncoder),
        f"{settings.method} hides patches, which {settings.model_name} has not as timm's vision transformers have "
        "them; give --model_name vit_small, or --method dino.",
    )
    masks = {"make_masks": partial(draw_masks, settings), "mask_uniforms": MASK_UNIFORMS}
    if settings.method == "ibot":
        return IBOT(encoder, **options, **masks)
    patch_size = cast(TokenEncoder, encoder).patch_size
    return SimMIM(encoder, **options, **masks, in_chans=in_chans, patch_size=patch_size)


def draw_masks(settings: Settings, uniforms: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches that are hidden, (B, T): a block; in half of the views for iBOT, in all for SimMIM."""
    share, is_ibot = settings.mask_share, settings.method == "ibot"
    spread = min(MASK_SPREAD, share, 1 - share) if is_ibot else 0.0
    counts = draw_counts(
        uniforms[:, NUM_UNIFORMS:],
        grid[0] * grid[1],
        share=share,
        spread=spread,
        probability=0.5 if is_ibot else 1.0,
    )
    return block_masks(uniforms[:, :NUM_UNIFORMS], grid=grid, count=counts)


def given(settings: Settings) -> dict[str, Any]:
    """The options of the method that are given."""
    names = {
        "out_dim": settings.out_dim,
        "hidden_dim": settings.hidden_dim,
        "momentum": settings.teacher_momentum,
        "teacher_temp": settings.teacher_temp,
    }
    return {name: value for name, value in names.items() if value is not None}


@torch.no_grad()
def features_at(encoder: nn.Module, settings: Settings, sizes: set[int], *, in_chans: int) -> int:
    """The number of features. Raises ValueError where the backbone cannot take views of one of the sizes."""
    encoder.eval()
    shapes = set()
    for size in sorted(sizes):
        try:
            shapes.add(encoder(torch.zeros(1, in_chans, size, size)).shape[1:])
        except (ValueError, RuntimeError, AssertionError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{settings.model_name} cannot take views of {size} pixels ({why}); give another --image_size or "
                "--local_size, --num_local 0, or a vision transformer such as vit_small."
            ) from error
    encoder.train()
    numbers = {shape[0] for shape in shapes if len(shape) == 1}
    require(
        len(shapes) == len(numbers) == 1,
        f"{settings.model_name} has a map as features, or another number of them at each size of view; it cannot be "
        "pretrained.",
    )
    return numbers.pop()


def share_batch_statistics(method: Method, *, device: str, num_processes: int) -> None:
    """Let batch norms see the batch of all processes. PyTorch can do that on GPUs alone: on a CPU each process knows
    its own part of the batch, and what is learnt depends a little on how many there are."""
    if device == "cuda" and num_processes > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(cast(nn.Module, method))
