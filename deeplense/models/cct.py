"""CCT: patches from convolutions, and a mean of the tokens with attention weights. Shapes: B batch, C bands, S pixels
per side, N tokens, D features."""

import math
from itertools import pairwise

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

MOST_TOKENS_ALONG = 20
"""With more tokens along a side, another convolution halves the image."""


class CCT(nn.Module):
    """Compact convolutional transformer (Hassani et al. 2021, arXiv:2104.05704).

    The defaults are CCT-7/3x1 for images of 32 pixels; larger ones get more convolutions, as CCT-7/3x2 at 64. Maps
    images (B, C, S, S) to features (B, D).
    """

    num_features: int

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        num_convs: int | None = None,
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_features = embed_dim
        num_convs = num_convs or max(1, math.ceil(math.log2(image_size / MOST_TOKENS_ALONG)))
        self.tokenizer = tokenizer(in_chans, embed_dim, num_convs=num_convs)
        num_tokens = math.ceil(image_size / 2**num_convs) ** 2
        self.positions = nn.Parameter(torch.empty(1, num_tokens, embed_dim))
        rates = torch.linspace(0, drop_path, depth).tolist()
        blocks = (Block(embed_dim, num_heads, mlp_ratio, drop_path=rate) for rate in rates)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(embed_dim)
        # A bias would move all tokens alike, which softmax does not see.
        self.importance = nn.Linear(embed_dim, 1, bias=False)
        trunc_normal_(self.positions, std=0.02)
        self.apply(start)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokenizer(images).flatten(2).mT + self.positions
        tokens = self.norm(self.blocks(tokens))
        weights = self.importance(tokens).softmax(dim=1)
        return (weights.mT @ tokens).squeeze(1)


def tokenizer(in_chans: int, embed_dim: int, *, num_convs: int) -> nn.Sequential:
    """Return 3 x 3 convolutions with ReLU, each followed by a max pooling that halves the image.

    Args:
        in_chans: C.
        embed_dim: D.
        num_convs: number of convolutions, at least 1.
    """
    widths = (in_chans, *(64,) * (num_convs - 1), embed_dim)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(*layers)


def start(module: nn.Module) -> None:
    """Initialise the weights of a layer."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
