"""The CSWin transformer. Shapes: B batch, C bands, S pixels or tokens per side, D features."""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.swin_transformer import window_partition, window_reverse
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from deeplense.models.transformer import (
    SoftmaxAttention,
    drop_path_rates,
    merge_heads,
    split_heads,
    stack,
    to_tokens,
)


class CSWin(nn.Module):
    """Four stages in which half of the heads attend along columns and half along rows, both in stripes; the last stage
    attends to its whole map.

    Dong et al. 2022, arXiv:2107.00652; the defaults are CSWin-T. Stripes are 1, 2, S / 32 and S / 32 tokens wide, which
    is the paper's choice at 224 and at 384 pixels.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (1, 2, 21, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.embeds, self.stages = nn.ModuleList(), nn.ModuleList()
        widths = (1, 2, image_size // 32, image_size // 32)
        for i, rates in enumerate(drop_path_rates(drop_path, depths)):
            kernel_size, stride, padding = (7, 4, 2) if i == 0 else (3, 2, 1)
            embed = nn.Conv2d(in_chans, dims[i], kernel_size, stride=stride, padding=padding)
            self.embeds.append(nn.Sequential(embed, LayerNorm2d(dims[i])))
            side = image_size // 4 // 2**i
            stripes = ((side, widths[i]), (widths[i], side)) if i < len(dims) - 1 else ((side, side),)
            attentions = [CrossAttention(dims[i], num_heads[i], stripes=stripes) for _ in rates]
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


class CrossAttention(nn.Module):
    """Attention with the same number of heads in stripes of each shape (section 3.2)."""

    def __init__(self, dim: int, num_heads: int, *, stripes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        num_heads //= len(stripes)
        self.branches = nn.ModuleList(
            StripeAttention(dim, num_heads, width=dim // len(stripes), stripe=stripe) for stripe in stripes
        )
        self.project = nn.Linear(dim, dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, S, S, D), each token a mixture of those in its stripes."""
        return self.project(torch.cat([branch(maps) for branch in self.branches], dim=-1))


class StripeAttention(nn.Module):
    """Attention within stripes; positions are encoded by a depthwise convolution of the values (section 3.3)."""

    def __init__(self, dim: int, num_heads: int, *, width: int, stripe: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.stripe = num_heads, stripe
        self.queries_keys_values = nn.Linear(dim, 3 * width)
        self.positions = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.attend = SoftmaxAttention()

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, S, S, width) of maps (B, S, S, D)."""
        side = maps.shape[1]
        parts = window_partition(self.queries_keys_values(maps), self.stripe).chunk(3, dim=-1)
        positions = self.positions(parts[-1].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed = merge_heads(self.attend(*(split_heads(part.flatten(1, 2), self.num_heads) for part in parts)))
        return window_reverse(mixed.view_as(positions) + positions, self.stripe, side, side)
