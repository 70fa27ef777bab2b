"""T2T-ViT: neighbouring tokens are repeatedly joined, before a narrow transformer. Shapes: B batch, C bands, S pixels
per side, N tokens, D features."""

import math

import torch
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from deeplense.models.patches import patches_along

FLOOR = 1e-6


class T2TViT(nn.Module):
    """Tokens-to-token transformer (Yuan et al. 2021, arXiv:2101.11986).

    The defaults are T2T-ViT-7, with a token for each 8 pixels in the end where the paper has 16: the first step then
    halves the image, rather than taking a quarter. Maps images (B, C, S, S) to features (B, D).
    """

    num_features: int
    positions: Tensor

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        patch_size: int = 8,
        token_dim: int = 64,
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_features = embed_dim
        num_tokens = patches_along(image_size, patch_size) ** 2
        self.splits = nn.ModuleList([soft_split(7, patch_size // 4), soft_split(3, 2), soft_split(3, 2)])
        self.steps = nn.ModuleList(
            [
                TokenPerformer(in_chans * 7**2, token_dim),
                TokenPerformer(token_dim * 3**2, token_dim),
                nn.Linear(token_dim * 3**2, embed_dim),
            ]
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("positions", sinusoids(num_tokens + 1, embed_dim), persistent=False)
        rates = torch.linspace(0, drop_path, depth).tolist()
        blocks = (Block(embed_dim, num_heads, mlp_ratio, drop_path=rate) for rate in rates)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(embed_dim)
        trunc_normal_(self.class_token, std=0.02)
        self.apply(start)

    def forward(self, images: Tensor) -> Tensor:
        grid = images
        for split, step in zip(self.splits, self.steps, strict=True):
            tokens = step(split(grid).mT)
            side = math.isqrt(tokens.shape[1])
            grid = tokens.mT.unflatten(2, (side, side))
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), grid.flatten(2).mT], dim=1)
        return self.norm(self.blocks(tokens + self.positions))[:, 0]


class TokenPerformer(nn.Module):
    """A transformer layer whose cost grows as the number of tokens: attention of the Performer (Choromanski et al.
    2021, arXiv:2009.14794), and an MLP. Maps tokens (B, N, dim) to (B, N, width)."""

    directions: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(dim, 3 * width), nn.Linear(width, width)
        self.mlp = Mlp(width)
        self.register_buffer("directions", orthogonal_directions(width // 2, width))

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.qkv(self.norm1(tokens)).chunk(3, dim=-1)
        # Its sums over tokens are too large for float16.
        with torch.autocast(tokens.device.type, enabled=False):
            means = linear_attention(queries.float(), keys.float(), values.float(), self.directions)
        # The tokens are wider than the result, so the values are what is passed on.
        tokens = values + self.proj(means)
        return tokens + self.mlp(self.norm2(tokens))


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor, directions: Tensor) -> Tensor:
    """Return softmax(queries keys^T / sqrt(dim)) values, estimated with random directions.

    exp(q k) is the mean of exp(w q - q^2 / 2) exp(w k - k^2 / 2) over normal w. Factors common to all keys of a query
    cancel, so the largest exponent is subtracted first. FLOOR keeps the sums away from zero.

    Args:
        queries: (B, N, dim).
        keys: (B, N, dim).
        values: (B, N, dim).
        directions: random directions, (M, dim).
    """
    scale = queries.shape[-1] ** -0.25
    keys = keys * scale
    of_queries = (queries * scale) @ directions.T
    of_keys = keys @ directions.T - keys.square().sum(dim=-1, keepdim=True) / 2
    of_queries = (of_queries - of_queries.amax(dim=-1, keepdim=True)).exp() + FLOOR
    of_keys = (of_keys - of_keys.amax(dim=(1, 2), keepdim=True)).exp() + FLOOR
    total = of_queries @ of_keys.sum(dim=1).unsqueeze(-1)
    return of_queries @ (of_keys.mT @ values) / total


def orthogonal_directions(number: int, dim: int) -> Tensor:
    """Return normally distributed vectors that are orthogonal to one another, (number, dim).

    Args:
        number: number of vectors, at most `dim`.
        dim: their dimension.
    """
    lengths = torch.randn(number, dim).norm(dim=1, keepdim=True)
    return lengths * nn.init.orthogonal_(torch.empty(number, dim))


def soft_split(kernel_size: int, stride: int) -> nn.Unfold:
    """Return a module that makes overlapping patches.

    Args:
        kernel_size: pixels per side of a patch.
        stride: pixels from one patch to the next.
    """
    return nn.Unfold(kernel_size, stride=stride, padding=math.ceil((kernel_size - stride) / 2))


def sinusoids(number: int, dim: int) -> Tensor:
    """Return position embeddings (1, number, dim) of sines and cosines with wavelengths from 2 pi to 20000 pi.

    Args:
        number: number of positions.
        dim: D, even.

    Example:
        >>> sinusoids(5, 8).shape
        torch.Size([1, 5, 8])
    """
    angles = torch.arange(number)[:, None] / 10000 ** (torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


def start(module: nn.Module) -> None:
    """Initialise the weights of a layer."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
