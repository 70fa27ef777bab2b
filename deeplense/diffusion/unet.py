"""A U-Net for noisy images of any size. Shapes: B batch, C channels, H x W pixels, E embedding."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.choices import Choices


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The architecture of a U-Net."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """channels of each level; each level has half the pixels per side of the one before"""
    num_blocks: int = 2
    """residual blocks per level on the way down; there is one more on the way up"""
    num_groups: int = 32
    """groups of the group normalisation"""
    head_dim: int = 64
    """channels per head of the attention in the middle"""
    film: bool = True
    """scale and shift by the embedding (Dhariwal & Nichol 2021, arXiv:2105.05233, section 3: better than the sum that
    the earlier model had)"""
    dropout: float = 0.0


EARLIER = Shape(film=False)
"""The architecture of the earlier model, as far as it is known: 56.57 million parameters for one channel."""
LARGE = Shape()
SMALL = Shape(channels=(16, 32, 64, 64), num_blocks=1, num_groups=8)
"""About a million parameters: for a CPU."""
SHAPES = Choices("model_name", {"unet": LARGE, "unet_earlier": EARLIER, "unet_small": SMALL})


class UNet(nn.Module):
    """The network of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B), with one attention layer, in the middle. The
    last layer of each branch is initialised to zero.

    Args:
        in_chans: C.
        shape: levels and blocks.

    Example:
        >>> network = UNet(1, shape=SMALL)
        >>> network(torch.zeros(2, 1, 20, 20), torch.tensor([0, 500])).shape
        torch.Size([2, 1, 20, 20])
    """

    def __init__(self, in_chans: int, *, shape: Shape = LARGE) -> None:
        super().__init__()
        channels = shape.channels
        self.embedding_dim = 4 * channels[0]
        self.multiple = 2 ** (len(channels) - 1)
        self.stem = nn.Conv2d(in_chans, channels[0], 3, padding=1)
        self.embed = nn.Sequential(
            nn.Linear(channels[0], self.embedding_dim), nn.SiLU(), nn.Linear(self.embedding_dim, self.embedding_dim)
        )
        self.down, left = way_down(shape, self.embedding_dim)
        deepest = channels[-1], channels[-1], self.embedding_dim, shape
        self.middle = nn.ModuleList([Residual(*deepest), Attention(channels[-1], shape), Residual(*deepest)])
        self.up = way_up(shape, self.embedding_dim, left)
        self.norm = nn.GroupNorm(shape.num_groups, channels[0])
        self.last = nn.Conv2d(channels[0], in_chans, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, images: Tensor, times: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Predict the target (B, C, H, W) of noisy images.

        Images whose sides are not multiples of `multiple` are padded by reflection, and the result is cropped: nothing
        is resampled, so white noise stays white.

        Args:
            images: (B, C, H, W).
            times: (B,) in [0, T - 1].
            embedding: embedding of the conditions, (B, E); None for none.
        """
        emb = self.embed(waves(times, self.stem.out_channels).to(images.dtype))
        if embedding is not None:
            emb = emb + embedding
        padded, window = pad_to(images, self.multiple)
        hidden = self.stem(padded)
        left = [hidden]
        for level in self.down:
            hidden = level(hidden, emb, left)
        for layer in self.middle:
            hidden = layer(hidden, emb)
        for level in self.up:
            hidden = level(hidden, emb, left)
        return self.last(functional.silu(self.norm(hidden)))[window]


def waves(times: Tensor, num_channels: int) -> Tensor:
    """Return cosines and sines of times, (B, num_channels), with periods from 2 pi to 2 pi 10,000 (Vaswani et al.
    2017).

    Args:
        times: (B,).
        num_channels: even number of columns.
    """
    half = num_channels // 2
    rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=times.device, dtype=torch.float32))
    phases = times.float()[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], dim=1)


def pad_to(images: Tensor, multiple: int) -> tuple[Tensor, tuple[EllipsisType, slice, slice]]:
    """Return images padded by reflection, and the index that crops them again.

    Args:
        images: (B, C, H, W).
        multiple: both padded sides are multiples of it.

    Example:
        >>> padded, window = pad_to(torch.zeros(1, 1, 20, 20), 8)
        >>> padded.shape, padded[window].shape
        (torch.Size([1, 1, 24, 24]), torch.Size([1, 1, 20, 20]))
    """
    height, width = images.shape[-2:]
    top, left = -height % multiple // 2, -width % multiple // 2
    bottom, right = -height % multiple - top, -width % multiple - left
    if max(bottom, right):
        images = functional.pad(images, (left, right, top, bottom), mode="reflect")
    return images, (..., slice(top, top + height), slice(left, left + width))


class Residual(nn.Module):
    """A residual block: two convolutions with the embedding between them, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, embedding_dim: int, shape: Shape) -> None:
        super().__init__()
        self.film = shape.film
        self.norm1 = nn.GroupNorm(shape.num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.embed = nn.Linear(embedding_dim, channels * (1 + shape.film))
        self.norm2 = nn.GroupNorm(shape.num_groups, channels)
        self.dropout = nn.Dropout(shape.dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, hidden: Tensor, emb: Tensor) -> Tensor:
        """Return (B, C', H, W).

        Args:
            hidden: (B, C, H, W).
            emb: embedding of time and conditions, (B, E).
        """
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        emb = self.embed(functional.silu(emb))[:, :, None, None]
        if self.film:
            scale, shift = emb.chunk(2, dim=1)
            inner = self.norm2(inner) * (1 + scale) + shift
        else:
            inner = self.norm2(inner + emb)
        return self.shortcut(hidden) + self.conv2(self.dropout(functional.silu(inner)))


class Attention(nn.Module):
    """Self-attention between all pixels."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        if channels % shape.head_dim:
            raise ValueError(f"head_dim={shape.head_dim} must divide the {channels} channels in the middle.")
        self.num_heads = channels // shape.head_dim
        self.norm = nn.GroupNorm(shape.num_groups, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, emb: Tensor) -> Tensor:
        """Return (B, C, H, W).

        Args:
            hidden: (B, C, H, W).
            emb: not used.
        """
        tokens = self.norm(hidden).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return hidden + self.out(seen).transpose(1, 2).reshape(hidden.shape)


class Down(nn.Module):
    """A level on the way down; the output of each of its layers is kept for the way up."""

    def __init__(self, blocks: Sequence[Residual], resize: nn.Conv2d | None) -> None:
        super().__init__()
        self.blocks, self.resize = nn.ModuleList(blocks), resize

    def forward(self, hidden: Tensor, emb: Tensor, left: list[Tensor]) -> Tensor:
        """Return (B, C', H / 2, W / 2), or (B, C', H, W) at the deepest level.

        Args:
            hidden: (B, C, H, W).
            emb: embedding of time and conditions, (B, E).
            left: outputs kept for the way up; extended in place.
        """
        for block in self.blocks:
            hidden = block(hidden, emb)
            left.append(hidden)
        if self.resize is not None:
            hidden = self.resize(hidden)
            left.append(hidden)
        return hidden


class Up(nn.Module):
    """A level on the way up; each of its blocks takes one of the kept outputs, the last first."""

    def __init__(self, blocks: Sequence[Residual], resize: nn.Conv2d | None) -> None:
        super().__init__()
        self.blocks, self.resize = nn.ModuleList(blocks), resize

    def forward(self, hidden: Tensor, emb: Tensor, left: list[Tensor]) -> Tensor:
        """Return (B, C', 2 H, 2 W), or (B, C', H, W) at the top level.

        Args:
            hidden: (B, C, H, W).
            emb: embedding of time and conditions, (B, E).
            left: outputs kept on the way down; consumed from the end.
        """
        for block in self.blocks:
            hidden = block(torch.cat([hidden, left.pop()], dim=1), emb)
        if self.resize is not None:
            hidden = self.resize(functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return hidden


def way_down(shape: Shape, embedding_dim: int) -> tuple[nn.ModuleList, list[int]]:
    """Return the levels on the way down, and the channels of all outputs that they keep.

    Args:
        shape: architecture.
        embedding_dim: E.
    """
    levels, left = nn.ModuleList(), [shape.channels[0]]
    for depth, channels in enumerate(shape.channels):
        inputs = [left[-1], *[channels] * (shape.num_blocks - 1)]
        is_last = depth == len(shape.channels) - 1
        resize = None if is_last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        levels.append(Down([Residual(each, channels, embedding_dim, shape) for each in inputs], resize))
        left += [channels] * (shape.num_blocks + (not is_last))
    return levels, left


def way_up(shape: Shape, embedding_dim: int, left: list[int]) -> nn.ModuleList:
    """Return the levels on the way up.

    Args:
        shape: architecture.
        embedding_dim: E.
        left: channels of the kept outputs; consumed.
    """
    levels, current = nn.ModuleList(), shape.channels[-1]
    for depth, channels in reversed(list(enumerate(shape.channels))):
        blocks = []
        for _ in range(shape.num_blocks + 1):
            blocks.append(Residual(current + left.pop(), channels, embedding_dim, shape))
            current = channels
        levels.append(Up(blocks, nn.Conv2d(channels, channels, 3, padding=1) if depth else None))
    return levels


THEIR_NAMES = {
    r"^stem": "conv_in",
    r"^embed\.0": "time_embedding.linear_1",
    r"^embed\.2": "time_embedding.linear_2",
    r"^middle\.0": "mid_block.resnets.0",
    r"^middle\.1": "mid_block.attentions.0",
    r"^middle\.2": "mid_block.resnets.1",
    r"^down\.(\d+)\.blocks": r"down_blocks.\1.resnets",
    r"^up\.(\d+)\.blocks": r"up_blocks.\1.resnets",
    r"^down\.(\d+)\.resize": r"down_blocks.\1.downsamplers.0.conv",
    r"^up\.(\d+)\.resize": r"up_blocks.\1.upsamplers.0.conv",
    r"^norm\.": "conv_norm_out.",
    r"^last": "conv_out",
    r"\.embed\.": ".time_emb_proj.",
    r"\.shortcut\.": ".conv_shortcut.",
    r"attentions\.0\.norm": "attentions.0.group_norm",
    r"\.query\.": ".to_q.",
    r"\.key\.": ".to_k.",
    r"\.value\.": ".to_v.",
    r"\.out\.": ".to_out.0.",
}
"""Patterns of our parameter names and their counterparts in diffusers, in the order in which they are replaced."""


def their_name(name: str) -> str:
    """Return the name of a parameter in the UNet2DModel of diffusers."""
    for ours, theirs in THEIR_NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a UNet under the names of the UNet2DModel of diffusers (0.42), built with
    `diffusers_options`.

    Its images must have sides that are multiples of `multiple`, and it is unconditional.
    """
    return {their_name(name): tensor for name, tensor in state.items()}


def diffusers_options(shape: Shape, in_chans: int) -> dict[str, Any]:
    """Return the arguments that build the same network as a UNet2DModel of diffusers.

    Args:
        shape: architecture.
        in_chans: C.
    """
    levels = len(shape.channels)
    return {
        "in_channels": in_chans,
        "out_channels": in_chans,
        "block_out_channels": shape.channels,
        "layers_per_block": shape.num_blocks,
        "down_block_types": ("DownBlock2D",) * levels,
        "up_block_types": ("UpBlock2D",) * levels,
        "norm_num_groups": shape.num_groups,
        "attn_norm_num_groups": shape.num_groups,
        "attention_head_dim": shape.head_dim,
        "resnet_time_scale_shift": "scale_shift" if shape.film else "default",
    }
