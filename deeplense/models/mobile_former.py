"""The Mobile-Former. Shapes: B batch, C bands or channels, S pixels per side of a map, N tokens, D
features of a token."""

from collections.abc import Sequence

import torch
from timm.layers import ConvNormAct, DropPath, LayerNorm, Mlp, trunc_normal_
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from deeplense.models.transformer import (
    SelfAttention,
    SoftmaxAttention,
    drop_path_rates,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)

NUM_HEADS = 2
"""Number of heads of the bridges."""
BLOCKS_96M = (
    (72, 16, 2),
    (96, 32, 2),
    (96, 32, 1),
    (192, 64, 2),
    (256, 64, 1),
    (384, 88, 1),
    (528, 128, 2),
    (768, 128, 1),
)
"""Inner channels, output channels and stride of each block."""


class MobileFormer(nn.Module):
    """A MobileNet and a transformer of a few trained tokens side by side, with a bridge in both directions in each
    block.

    Chen et al. 2022, arXiv:2108.05895; the defaults are Mobile-Former-96M. Images of any size can be used.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        num_tokens: int = 4,
        token_dim: int = 128,
        stem_channels: int = 12,
        blocks: Sequence[tuple[int, int, int]] = BLOCKS_96M,
        num_features: int = 1280,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.tokens = nn.Parameter(trunc_normal_(torch.empty(1, num_tokens, token_dim), std=0.02))
        self.stem = ConvNormAct(in_chans, stem_channels, 3, stride=2, act_layer=nn.Hardswish)
        self.lite = nn.Sequential(
            ConvNormAct(stem_channels, 2 * stem_channels, 3, groups=stem_channels, act_layer=nn.ReLU6),
            ConvNormAct(2 * stem_channels, stem_channels, 1, apply_act=False),
        )
        self.blocks, channels, side = nn.ModuleList(), stem_channels, (image_size + 1) // 2
        (rates,) = drop_path_rates(drop_path, [len(blocks)])
        for (hidden, after, stride), rate in zip(blocks, rates, strict=True):
            make_mobile = InvertedBottleneck if stride == 1 else Downsampling
            mobile = make_mobile(channels, hidden, after, token_dim=token_dim, drop_path=rate)
            to_former = ToFormer(channels, token_dim, has_choice=side > 1)
            self.blocks.append(MobileFormerBlock(mobile, to_former, ToMobile(after, token_dim), drop_path=rate))
            channels, side = after, (side + stride - 1) // stride
        self.expand = ConvNormAct(channels, 6 * channels, 1, act_layer=nn.Hardswish)
        self.combine = nn.Sequential(nn.Linear(6 * channels + token_dim, num_features), nn.Hardswish())
        self.apply(init_weights_vit_timm)

    def forward(self, images: Tensor) -> Tensor:
        """Return features of images (B, C, S, S): a layer on the mean of the last map and the first token."""
        maps, tokens = self.stem(images), self.tokens.expand(len(images), -1, -1)
        maps = maps + self.lite(maps)
        for block in self.blocks:
            maps, tokens = block(maps, tokens)
        return self.combine(torch.cat([self.expand(maps).mean(dim=(2, 3)), tokens[:, 0]], dim=1))


class MobileFormerBlock(nn.Module):
    """Bridge from map to tokens, attention between tokens, convolutions of the map, bridge from tokens to map (figure
    3)."""

    def __init__(self, mobile: nn.Module, to_former: "ToFormer", to_mobile: "ToMobile", *, drop_path: float) -> None:
        super().__init__()
        dim = to_former.project.out_features
        self.mobile, self.to_former, self.to_mobile = mobile, to_former, to_mobile
        self.attention, self.mlp = SelfAttention(dim, 4), Mlp(dim, 2 * dim)
        self.norm1, self.norm2, self.norm3 = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, maps: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return updated maps and tokens.

        Args:
            maps: (B, C, S, S).
            tokens: (B, N, D).
        """
        tokens = self.norm1(tokens + self.drop_path(self.to_former(maps, tokens)))
        tokens = self.norm2(tokens + self.drop_path(self.attention(tokens)))
        tokens = self.norm3(tokens + self.drop_path(self.mlp(tokens)))
        maps = self.mobile(maps, tokens[:, 0])
        return maps + self.drop_path(self.to_mobile(maps, tokens)), tokens


class InvertedBottleneck(nn.Module):
    """Pointwise, depthwise and pointwise convolution, with a residual connection if the number of channels stays the
    same."""

    def __init__(self, before: int, hidden: int, after: int, *, token_dim: int, drop_path: float) -> None:
        super().__init__()
        self.widen = ConvNormAct(before, hidden, 1, apply_act=False)
        self.relu1 = DynamicReLU(hidden, token_dim)
        self.spread = ConvNormAct(hidden, hidden, 3, groups=hidden, apply_act=False)
        self.relu2 = DynamicReLU(hidden, token_dim)
        self.narrow = ConvNormAct(hidden, after, 1, apply_act=False)
        self.has_skip, self.drop_path = before == after, DropPath(drop_path)

    def forward(self, maps: Tensor, token: Tensor) -> Tensor:
        """Return maps with `after` channels.

        Args:
            maps: (B, C, S, S).
            token: token that decides the slopes of the activations, (B, D).
        """
        wide = self.relu1(self.widen(maps), token)
        changed = self.narrow(self.relu2(self.spread(wide), token))
        return maps + self.drop_path(changed) if self.has_skip else changed


class Downsampling(nn.Module):
    """Depthwise convolution with stride 2 and pointwise convolution, and once more without stride beside a skip
    connection (Mobile-Former with an arrow down in table 1)."""

    def __init__(self, before: int, hidden: int, after: int, *, token_dim: int, drop_path: float) -> None:
        super().__init__()
        self.halve = DepthwiseExpansion(before, hidden, after, stride=2, token_dim=token_dim)
        self.refine = DepthwiseExpansion(after, 4 * after, after, stride=1, token_dim=token_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, maps: Tensor, token: Tensor) -> Tensor:
        """Return maps with `after` channels and half the pixels per side.

        Args:
            maps: (B, C, S, S).
            token: token that decides the slopes of the activations, (B, D).
        """
        halved = self.halve(maps, token)
        return halved + self.drop_path(self.refine(halved, token))


class DepthwiseExpansion(nn.Module):
    """Depthwise convolution to more channels, and pointwise convolution to fewer."""

    def __init__(self, before: int, hidden: int, after: int, *, stride: int, token_dim: int) -> None:
        super().__init__()
        self.spread = ConvNormAct(before, hidden, 3, stride=stride, groups=before, apply_act=False)
        self.relu = DynamicReLU(hidden, token_dim)
        self.narrow = ConvNormAct(hidden, after, 1, apply_act=False)

    def forward(self, maps: Tensor, token: Tensor) -> Tensor:
        """Return maps (B, after, S / stride, S / stride).

        Args:
            maps: (B, C, S, S).
            token: token that decides the slopes of the activations, (B, D).
        """
        return self.narrow(self.relu(self.spread(maps), token))


class DynamicReLU(nn.Module):
    """The maximum of two multiples of each channel, with slopes from a token; where these add nothing, ReLU.

    Chen et al. 2020, arXiv:2003.10027, without intercepts.
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.slopes = Mlp(token_dim, token_dim // 4, 2 * channels, act_layer=nn.ReLU)

    def forward(self, maps: Tensor, token: Tensor) -> Tensor:
        """Return the activated maps, (B, C, S, S).

        Args:
            maps: (B, C, S, S).
            token: token that decides the slopes, (B, D).
        """
        shifts = 2 * self.slopes(token).sigmoid() - 1
        first, second = shifts[..., None, None].chunk(2, dim=1)
        return torch.maximum((1 + first) * maps, second * maps)


class ToFormer(nn.Module):
    """Tokens attend to the map, whose pixels are keys and values without projection (equation 1).

    A map of one pixel leaves no choice, and queries would get no gradient: there are none.
    """

    def __init__(self, channels: int, token_dim: int, *, has_choice: bool) -> None:
        super().__init__()
        self.queries = nn.Linear(token_dim, channels) if has_choice else None
        self.attend = SoftmaxAttention()
        self.project = nn.Linear(channels, token_dim)

    def forward(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Return what the tokens gather from the map, (B, N, D).

        Args:
            maps: (B, C, S, S).
            tokens: (B, N, D).
        """
        pixels = split_heads(to_tokens(maps), NUM_HEADS)
        if self.queries is None:
            return self.project(merge_heads(pixels))
        queries = split_heads(self.queries(tokens), NUM_HEADS)
        return self.project(merge_heads(self.attend(queries, pixels, pixels)))


class ToMobile(nn.Module):
    """Pixels attend to the tokens, and are queries without projection (equation 2)."""

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.keys_values = nn.Linear(token_dim, 2 * channels)
        self.attend = SoftmaxAttention()

    def forward(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Return what the map gathers from the tokens, (B, C, S, S).

        Args:
            maps: (B, C, S, S).
            tokens: (B, N, D).
        """
        keys, values = self.keys_values(tokens).chunk(2, dim=-1)
        parts = (split_heads(part, NUM_HEADS) for part in (to_tokens(maps), keys, values))
        return to_map(merge_heads(self.attend(*parts)))
