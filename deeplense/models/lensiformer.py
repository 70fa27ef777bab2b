"""Lensiformer: a transformer for small data sets that sees the lensed image and its own estimate of the source.

B batch, C bands, S pixels per side, P pixels per side of a patch, T tokens (patches, row by row), D features.
"""

import math

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from deeplense.models.source_plane import pixel_grid, sis_deflection, source_image, trace_back

UNIT = 0.31
"""Published Einstein radii are 0.8 to 1.2 arcsec on images whose half is 32 pixels of 0.101 arcsec, or 3.232 arcsec."""


class ShiftedPatches(nn.Module):
    """Patches of an image and of four copies of it that are shifted by half a patch along the diagonals, as tokens
    (Lee, Lee and Song 2021, arXiv 2112.13492, section 3.1), with trained position embeddings."""

    def __init__(self, *, in_chans: int, image_size: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = nn.LayerNorm(5 * in_chans * patch_size**2)
        self.proj = nn.Linear(5 * in_chans * patch_size**2, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2, dim))
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens (B, T, D) of images (B, C, S, S)."""
        half = self.patch_size // 2
        shifts = [(x, -x, y, -y) for x in (half, -half) for y in (half, -half)]
        shifted = torch.cat([images, *(functional.pad(images, shift) for shift in shifts)], dim=1)
        patches = functional.unfold(shifted, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return self.proj(self.norm(patches)) + self.pos_embed


class LocalityAttention(nn.Module):
    """Attention with a trained temperature in which no token attends to itself (Lee, Lee and Song
    2021, section 3.2)."""

    fused_attn: bool = True

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(dim // num_heads)))
        self.query_key = nn.Linear(dim, 2 * dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Return values (B, T, D), mixed by the similarity of the tokens.

        Args:
            tokens: tokens for queries and keys, (B, T, D).
            values: (B, T, D).
        """
        query, key = (self.split_heads(part) for part in self.query_key(tokens).chunk(2, dim=-1))
        query, value = query * self.log_scale.exp(), self.split_heads(self.value(values))
        others = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        if self.fused_attn:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=others, scale=1.0)
        else:
            scores = (query @ key.transpose(-2, -1)).masked_fill(~others, -math.inf)
            mixed = self.attn_drop(scores.softmax(dim=-1)) @ value
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def split_heads(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, T, D) as (B, heads, T, D / heads)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention between `tokens` that changes `values`, and an MLP, each with a residual connection."""

    def __init__(self, *, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm_tokens, self.norm_values, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.attn = LocalityAttention(dim=dim, num_heads=num_heads)
        self.mlp = Mlp(dim, 2 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Return the changed values, (B, T, D).

        Args:
            tokens: tokens for queries and keys, (B, T, D).
            values: (B, T, D).
        """
        values = values + self.drop_path(self.attn(self.norm_tokens(tokens), self.norm_values(values)))
        return values + self.drop_path(self.mlp(self.norm_mlp(values)))


class Lensiformer(nn.Module):
    """Lensiformer (Veloso, Toomey and Gleyzer 2023, ML4PS workshop at NeurIPS, paper 214); a source plane that learns.

    An encoder gives an Einstein radius k for each pixel, within a fifth of 0.31 times half the image: these are the
    published 0.8 to 1.2 arcsec, and hold the true 0.25 to 0.34 of Models I to III. The image is traced back by
    k theta / |theta|. In the decoder, queries and keys come from the image and values from the source; the features
    are the mean over its tokens.

    Published were patches of 32 pixels, a source plane of rounded indices by which the encoder, 64 % of all
    parameters, learnt nothing, a division by its maximum, and a softmax before the loss.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        patch_size: int = 8,
        dim: int = 384,
        depth: int = 1,
        num_heads: int = 16,
    ) -> None:
        """Build `depth` encoder and `depth` decoder blocks. Raises ValueError if the image is a single patch."""
        super().__init__()
        if image_size < 2 * patch_size:
            raise ValueError(
                f"Lensiformer needs two patches per side, but {image_size} pixels have fewer with "
                f"patch_size={patch_size}; "
                f"use images of {2 * patch_size} pixels or more."
            )
        self.num_features, self.patch_size, self.radius = dim, patch_size, UNIT * image_size / 2
        sizes = {"in_chans": in_chans, "image_size": image_size, "patch_size": patch_size, "dim": dim}
        self.lensed, self.image, self.source = (ShiftedPatches(**sizes) for _ in range(3))
        self.encoder, self.decoder = (
            nn.ModuleList(Block(dim=dim, num_heads=num_heads, drop_path=drop_path) for _ in range(depth))
            for _ in range(2)
        )
        self.norm_radius, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_radius = Mlp(dim, out_features=patch_size**2)
        self.apply(init_weights)

    def einstein_radius(self, images: Tensor) -> Tensor:
        """Return k (B, S, S) in pixels of images (B, C, S, S)."""
        tokens = self.lensed(images)
        for block in self.encoder:
            tokens = block(tokens, tokens)
        patches = self.to_radius(self.norm_radius(tokens)).transpose(1, 2)
        pixels = functional.fold(patches, images.shape[2:], self.patch_size, stride=self.patch_size)
        return self.radius * (0.8 + 0.4 * torch.sigmoid(pixels[:, 0].float()))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S)."""
        deflection = sis_deflection(*pixel_grid(images), theta_E=self.einstein_radius(images))
        tokens, values = self.image(images), self.source(source_image(images, trace_back(deflection)))
        for block in self.decoder:
            values = block(tokens, values)
        return self.norm(values).mean(dim=1)


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers as in vision transformers: truncated normal of 0.02, no bias."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
