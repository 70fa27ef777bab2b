"""RVT, the robust vision transformer: patches from a convolution, position-aware attention, and MLPs with a
convolution. Shapes: B batch, C bands, S pixels per side, N tokens, D features."""

import math

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from deeplense.models.patches import patches_along


class RVT(nn.Module):
    """Robust vision transformer (Mao et al. 2022, arXiv:2105.07926).

    The defaults are RVT-Ti*, with patches of 8 pixels for small images where the paper has 16, so that 64 pixels give
    64 tokens to the first stage and 16 to the last. What attention knows of positions grows as the fourth power of the
    image's side: 0.25 million parameters at 64 pixels, 8 million at 152. Maps images (B, C, S, S) to features (B, D).
    """

    num_features: int

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        patch_size: int = 8,
        embed_dims: tuple[int, ...] = (192, 384),
        depths: tuple[int, ...] = (10, 2),
        num_heads: tuple[int, ...] = (6, 12),
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.num_features = embed_dims[-1]
        side = patches_along(image_size, patch_size)
        rates = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
        layers: list[nn.Module] = [stem(in_chans, embed_dims[0], patch_size=patch_size)]
        for stage, (dim, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True)):
            if stage > 0:
                layers.append(nn.Conv2d(embed_dims[stage - 1], dim, 3, 2, padding=1, groups=embed_dims[stage - 1]))
                side = math.ceil(side / 2)
            layers += [
                Block(dim, heads, side=side, hidden=mlp_ratio * dim, drop_path=next(rates)) for _ in range(depth)
            ]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(self.num_features)
        self.apply(start)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.layers(images).mean(dim=(2, 3)))


class Block(nn.Module):
    """Attention and feed-forward convolutions on a grid of tokens (B, D, side, side)."""

    def __init__(self, dim: int, num_heads: int, *, side: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PositionAwareAttention(dim, num_heads, num_tokens=side**2)
        self.feed_forward = conv_feed_forward(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, grid: Tensor) -> Tensor:
        tokens = grid.flatten(2).mT
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        normalised = self.norm2(tokens).mT.reshape(grid.shape)
        return tokens.mT.reshape(grid.shape) + self.drop_path(self.feed_forward(normalised))


class PositionAwareAttention(nn.Module):
    """Attention in which each head scales the product of a query and a key by a trained number, one per pair of
    positions. No fused kernel supports this, so the weights always pass through `attn_drop`."""

    def __init__(self, dim: int, num_heads: int, *, num_tokens: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.scales = nn.Parameter(torch.ones(num_heads, num_tokens, num_tokens))
        self.attn_drop = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        products = queries @ keys.mT * queries.shape[-1] ** -0.5
        weights = self.attn_drop((products * self.scales).softmax(dim=-1))
        return self.proj((weights @ values).transpose(1, 2).flatten(2))


def stem(in_chans: int, embed_dim: int, *, patch_size: int) -> nn.Sequential:
    """Return the layers that make the patches: a convolution and a max pooling, each of which halves the image, and a
    convolution for the rest of the patch.

    Args:
        in_chans: C.
        embed_dim: D.
        patch_size: pixels per side of a patch, a multiple of 4.
    """
    rest = patch_size // 4
    return nn.Sequential(
        nn.Conv2d(in_chans, 32, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(32),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(32, embed_dim, rest, stride=rest),
    )


def conv_feed_forward(dim: int, hidden: int) -> nn.Sequential:
    """Return an MLP per token, with a depthwise convolution of the hidden layer over the neighbours.

    Args:
        dim: D.
        hidden: width of the hidden layer.
    """
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
        nn.Conv2d(hidden, dim, 1, bias=False),
        nn.BatchNorm2d(dim),
    )


def start(module: nn.Module) -> None:
    """Initialise the weights of a layer."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
