"""The CrossFormer. Shapes: B batch, C bands, S pixels or tokens per side, D features, G tokens per side of a group."""

from collections.abc import Sequence
from math import log

import torch
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.swin_transformer import get_relative_position_index, window_partition, window_reverse
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from deeplense.models.transformer import SelfAttention, drop_path_rates, stack, to_tokens


class CrossFormer(nn.Module):
    """Four stages whose tokens are made of patches of several sizes, and attend alternately to their neighbours and to
    distant tokens.

    Wang et al. 2021, arXiv:2108.00154; the defaults are CrossFormer-T. Groups have 7 x 7 tokens at 224 pixels; at other
    sizes the divisor of S that is nearest to 7.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (1, 1, 8, 6),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.embeds, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path, depths)):
            kernel_sizes, stride = ((4, 8, 16, 32), 4) if i == 0 else ((2, 4), 2)
            self.embeds.append(CrossScaleEmbedding(in_chans, dims[i], kernel_sizes=kernel_sizes, stride=stride))
            side = image_size // 4 // 2**i
            attentions = [
                GroupAttention(dims[i], num_heads[i], side=side, is_long=block % 2 == 1) for block in range(depths[i])
            ]
            self.stages.append(stack(dims[i], attentions, mlp_ratio=mlp_ratio, rates=rates))
            in_chans = dims[i]
        self.norm = LayerNorm(self.num_features)
        self.apply(init_weights_vit_timm)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S): the mean over the last map."""
        maps = images
        for embed, blocks in zip(self.embeds, self.stages, strict=True):
            maps = blocks(embed(maps).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(to_tokens(maps)).mean(dim=1)


class CrossScaleEmbedding(nn.Module):
    """Patches of several sizes around the same centres; half of the features are for the smallest, a quarter for the
    next, and so on (section 3.1)."""

    def __init__(self, in_chans: int, dim: int, *, kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        widths = [dim // 2 ** (i + 1) for i in range(len(kernel_sizes) - 1)]
        self.patches = nn.ModuleList(
            nn.Conv2d(in_chans, width, size, stride=stride, padding=(size - stride) // 2)
            for width, size in zip([*widths, dim - sum(widths)], kernel_sizes, strict=True)
        )
        self.norm = LayerNorm2d(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, D, S / stride, S / stride) of maps (B, C, S, S)."""
        return self.norm(torch.cat([patches(maps) for patches in self.patches], dim=1))


class GroupAttention(nn.Module):
    """Attention within groups of G x G tokens, either neighbours or S / G tokens apart (section 3.2)."""

    def __init__(self, dim: int, num_heads: int, *, side: int, is_long: bool) -> None:
        super().__init__()
        self.group = nearest_divisor(side, 7)
        self.interval = side // self.group if is_long else 1
        self.bias = PositionBias(dim // 4, num_heads, group=self.group) if self.group > 1 else None
        self.attention = SelfAttention(dim, num_heads)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, S, S, D), each token a mixture of those in its group."""
        side, window = maps.shape[1], (self.group, self.group)
        grouped = window_partition(bring_together(maps, self.interval), window)
        mixed = self.attention(grouped.flatten(1, 2), bias=None if self.bias is None else self.bias())
        together = window_reverse(mixed.view_as(grouped), window, side, side)
        return bring_together(together, side // self.interval)


class PositionBias(nn.Module):
    """The relative position bias of two tokens of a group, from a small MLP (section 3.3)."""

    offsets: Tensor
    index: Tensor

    def __init__(self, dim: int, num_heads: int, *, group: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (2, dim, dim):
            layers += [nn.Linear(width, dim), LayerNorm(dim), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, num_heads, bias=False))
        distances = torch.arange(1.0 - group, group)
        self.register_buffer("offsets", torch.cartesian_prod(distances, distances), persistent=False)
        self.register_buffer("index", get_relative_position_index(group, group), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias (1, heads, G * G, G * G)."""
        return self.mlp(self.offsets)[self.index].permute(2, 0, 1)[None]


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of a number that is closest to another one, in ratio.

    Args:
        number: number to divide, at least 1.
        wanted: desired divisor.

    Example:
        >>> nearest_divisor(16, 7)
        8
    """
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    return min(divisors, key=lambda divisor: abs(log(divisor / wanted)))


def bring_together(maps: Tensor, interval: int) -> Tensor:
    """Return maps in which tokens that were `interval` apart are neighbours; S / interval undoes it.

    Args:
        maps: (B, S, S, D).
        interval: a divisor of S.
    """
    rows = maps.unflatten(1, (-1, interval)).transpose(1, 2).flatten(1, 2)
    return rows.unflatten(2, (-1, interval)).transpose(2, 3).flatten(2, 3)
