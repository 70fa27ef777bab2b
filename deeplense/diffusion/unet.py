"""A U-Net that takes noisy images at any size. B batch, C channels, H W pixels, E numbers of the embedding."""

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
    """How a U-Net is built."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """of each level, each of half the pixels a side of the one before"""
    num_blocks: int = 2
    """residual blocks of a level on the way down; there is one more on the way up"""
    num_groups: int = 32
    """of channels that are normalised together"""
    head_dim: int = 64
    """channels of a head of the attention in the middle"""
    film: bool = True
    """scale and shift by the embedding (Dhariwal & Nichol 2021, arXiv:2105.05233, section 3: better than the sum that
    the earlier model had)"""
    dropout: float = 0.0


EARLIER = Shape(film=False)
"""The shape of the earlier model, as far as it is known: 56.57 million numbers for one channel."""
LARGE = Shape()
SMALL = Shape(channels=(16, 32, 64, 64), num_blocks=1, num_groups=8)
"""About a million numbers: for a CPU."""
SHAPES = Choices("model_name", {"unet": LARGE, "unet_earlier": EARLIER, "unet_small": SMALL})


class UNet(nn.Module):
    """The network of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B), with attention once, in the middle. The last
    layer of each branch begins at zero.

    Args:
        in_chans: C.
        shape: levels and blocks.
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
        """Of images (B, C, H, W) at times (B,), and an embedding of conditions (B, E), to the target (B, C, H, W).

        Images whose sides are no multiple of `multiple` are mirrored at their borders, and the result is cut: nothing
        is resampled, so white noise stays white.
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
    """Cosines and sines of times (B,), (B, num_channels), of periods from 2 pi to 2 pi 10,000 (Vaswani et al. 2017)."""
    half = num_channels // 2
    rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=times.device, dtype=torch.float32))
    phases = times.float()[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], dim=1)


def pad_to(images: Tensor, multiple: int) -> tuple[Tensor, tuple[EllipsisType, slice, slice]]:
    """Images (B, C, H, W) with mirrored borders, and where in them they are themselves."""
    height, width = images.shape[-2:]
    top, left = -height % multiple // 2, -width % multiple // 2
    bottom, right = -height % multiple - top, -width % multiple - left
    if max(bottom, right):
        images = functional.pad(images, (left, right, top, bottom), mode="reflect")
    return images, (..., slice(top, top + height), slice(left, left + width))


class Residual(nn.Module):
    """Two convolutions beside a way past them, with the embedding between them."""

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
        """Of (B, C, H, W) and an embedding (B, E)."""
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        emb = self.embed(functional.silu(emb))[:, :, None, None]
        if self.film:
            scale, shift = emb.chunk(2, dim=1)
            inner = self.norm2(inner) * (1 + scale) + shift
        else:
            inner = self.norm2(inner + emb)
        return self.shortcut(hidden) + self.conv2(self.dropout(functional.silu(inner)))


class Attention(nn.Module):
    """Each pixel looks at all."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        if channels % shape.head_dim:
            raise ValueError(f"head_dim={shape.head_dim} must divide the {channels} channels in the middle.")
        self.num_heads = channels // shape.head_dim
        self.norm = nn.GroupNorm(shape.num_groups, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, emb: Tensor) -> Tensor:
        """Of (B, C, H, W); the embedding is not looked at."""
        tokens = self.norm(hidden).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return hidden + self.out(seen).transpose(1, 2).reshape(hidden.shape)


class Down(nn.Module):
    """A level on the way down: what each of its layers makes is left for the way up."""

    def __init__(self, blocks: Sequence[Residual], resize: nn.Conv2d | None) -> None:
        super().__init__()
        self.blocks, self.resize = nn.ModuleList(blocks), resize

    def forward(self, hidden: Tensor, emb: Tensor, left: list[Tensor]) -> Tensor:
        """To (B, C', H / 2, W / 2)."""
        for block in self.blocks:
            hidden = block(hidden, emb)
            left.append(hidden)
        if self.resize is not None:
            hidden = self.resize(hidden)
            left.append(hidden)
        return hidden


class Up(nn.Module):
    """A level on the way up: each of its blocks takes what was left, the last first."""

    def __init__(self, blocks: Sequence[Residual], resize: nn.Conv2d | None) -> None:
        super().__init__()
        self.blocks, self.resize = nn.ModuleList(blocks), resize

    def forward(self, hidden: Tensor, emb: Tensor, left: list[Tensor]) -> Tensor:
        """To (B, C', 2 H, 2 W)."""
        for block in self.blocks:
            hidden = block(torch.cat([hidden, left.pop()], dim=1), emb)
        if self.resize is not None:
            hidden = self.resize(functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return hidden


def way_down(shape: Shape, embedding_dim: int) -> tuple[nn.ModuleList, list[int]]:
    """The levels, and the channels of all that they leave."""
    levels, left = nn.ModuleList(), [shape.channels[0]]
    for depth, channels in enumerate(shape.channels):
        inputs = [left[-1], *[channels] * (shape.num_blocks - 1)]
        is_last = depth == len(shape.channels) - 1
        resize = None if is_last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        levels.append(Down([Residual(each, channels, embedding_dim, shape) for each in inputs], resize))
        left += [channels] * (shape.num_blocks + (not is_last))
    return levels, left


def way_up(shape: Shape, embedding_dim: int, left: list[int]) -> nn.ModuleList:
    """The levels that take what was left of these channels."""
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
"""What parts of our names are called in diffusers, in the order in which they are replaced."""


def their_name(name: str) -> str:
    """What a weight is called in the UNet2DModel of diffusers."""
    for ours, theirs in THEIR_NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a UNet under the names of the UNet2DModel of diffusers (0.42), made with `diffusers_options`. Its
    images must be of a size that is a multiple of `multiple`, and it knows of no conditions."""
    return {their_name(name): tensor for name, tensor in state.items()}


def diffusers_options(shape: Shape, in_chans: int) -> dict[str, Any]:
    """What makes a UNet2DModel of diffusers that is the same network."""
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
