"""The RegionViT. Shapes: B batch, C bands, S pixels or local tokens per side, R regions per side, W local tokens per
side of a region, D features."""

from collections.abc import Sequence

import torch
from timm.layers import DropPath, LayerNorm, LayerNorm2d, Mlp, RelPosBias
from timm.models.swin_transformer import window_partition, window_reverse
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional

from deeplense.models.crossformer import nearest_divisor
from deeplense.models.transformer import SelfAttention, drop_path_rates, to_map, to_tokens


class RegionViT(nn.Module):
    """Four stages in which tokens of regions attend to one another, and then each with the local tokens of its region.

    Chen et al. 2021, arXiv:2106.02689; the defaults are RegionViT-Ti. Regions have 7 x 7 local tokens at 224 pixels; at
    other sizes the divisor of S / 32 that is nearest to 7.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        window = nearest_divisor(image_size // 32, 7)
        self.embed_regions = nn.Conv2d(in_chans, dims[0], 4 * window, stride=4 * window)
        self.embed = embed_local(in_chans, dims[0])
        self.stages, self.shrink = nn.ModuleList(), nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path, depths)):
            blocks = [RegionalBlock(dims[i], num_heads[i], mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates]
            self.stages.append(Stage(blocks, window=window, num_heads=num_heads[i]))
            self.shrink.append(halve(dims[i], dims[i + 1]) if i + 1 < len(dims) else nn.Identity())
        self.norm = LayerNorm(self.num_features)
        self.apply(init_weights_vit_timm)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S): the mean over the regions."""
        regions, maps = self.embed_regions(images), self.embed(images)
        for stage, shrink in zip(self.stages, self.shrink, strict=True):
            regions, maps = (shrink(part) for part in stage(regions, maps))
        return self.norm(to_tokens(regions)).mean(dim=1)


def embed_local(in_chans: int, dim: int) -> nn.Sequential:
    """Return three convolutions that make a token of 4 x 4 pixels.

    Args:
        in_chans: C.
        dim: D, a multiple of 4.
    """
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 4, 3, stride=2, padding=1),
        LayerNorm2d(dim // 4),
        nn.GELU(),
        nn.Conv2d(dim // 4, dim // 2, 3, stride=2, padding=1),
        LayerNorm2d(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, padding=1),
    )


def halve(before: int, after: int) -> nn.Sequential:
    """Return a depthwise convolution that halves rows and columns.

    Args:
        before: number of input channels.
        after: number of output channels, a multiple of `before`.
    """
    return nn.Sequential(
        LayerNorm2d(before), nn.GELU(), nn.Conv2d(before, after, 3, stride=2, padding=1, groups=before)
    )


class Stage(nn.Module):
    """Blocks, and the relative position bias of two local tokens of a region."""

    def __init__(self, blocks: Sequence[nn.Module], *, window: int, num_heads: int) -> None:
        super().__init__()
        self.blocks, self.window = nn.ModuleList(blocks), (window, window)
        self.bias = RelPosBias(self.window, num_heads)

    def forward(self, regions: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return regions (B, D, R, R) and local tokens (B, D, S, S), both mixed.

        Args:
            regions: (B, D, R, R).
            maps: local tokens, (B, D, S, S).
        """
        local = window_partition(maps.permute(0, 2, 3, 1).contiguous(), self.window)
        local = local.flatten(1, 2).unflatten(0, (len(maps), -1))
        tokens = torch.cat([to_tokens(regions)[:, :, None], local], dim=2)
        bias = functional.pad(self.bias.get_bias(), (1, 0, 1, 0))
        for block in self.blocks:
            tokens = block(tokens, bias)
        windows = tokens[:, :, 1:].flatten(0, 1).unflatten(1, self.window).contiguous()
        return to_map(tokens[:, :, 0]), window_reverse(windows, self.window, *maps.shape[2:]).permute(0, 3, 1, 2)


class RegionalBlock(nn.Module):
    """Attention between regions, then, with the same weights, within each (section 3.2); then an MLP."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm_regions, self.norm_tokens, self.norm_mlp = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Return the mixed tokens.

        Args:
            tokens: (B, R * R, 1 + W * W, D): of each region its own token, then the local ones.
            bias: added to the logits within a region, (1, heads, 1 + W * W, 1 + W * W).
        """
        regions, local = tokens[:, :, 0], tokens[:, :, 1:]
        regions = regions + self.drop_path(self.attention(self.norm_regions(regions)))
        tokens = torch.cat([regions[:, :, None], local], dim=2)
        within = self.attention(self.norm_tokens(tokens).flatten(0, 1), bias=bias).view_as(tokens)
        tokens = tokens + self.drop_path(within)
        return tokens + self.drop_path(self.mlp(self.norm_mlp(tokens)))
