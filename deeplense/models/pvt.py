"""The Pyramid Vision Transformer, version 1. Shapes: B batch, C bands, S pixels or tokens per side, N tokens, D
features."""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm, PatchEmbed, trunc_normal_
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from deeplense.models.transformer import (
    SoftmaxAttention,
    drop_path_rates,
    merge_heads,
    split_heads,
    stack,
    to_map,
)


class PVT(nn.Module):
    """Four stages of attention in which keys and values come from a smaller map.

    Wang et al. 2021, arXiv:2102.12122; the defaults are PVT-Tiny. Maps of small images are reduced less than in the
    paper, to no less than 2 x 2 tokens, as attention to a single key gets no gradient.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.stages = nn.ModuleList()
        patch_size = 4
        for i, rates in enumerate(drop_path_rates(drop_path, depths)):
            embed = PatchEmbed(image_size, patch_size, in_chans, dims[i], norm_layer=LayerNorm)
            image_size //= patch_size
            reduction = max(1, min(reductions[i], image_size // 2))
            attentions = [ReducedAttention(dims[i], num_heads[i], reduction=reduction) for _ in rates]
            blocks = stack(dims[i], attentions, mlp_ratio=mlp_ratios[i], rates=rates)
            self.stages.append(Stage(embed, blocks, has_class_token=i == len(depths) - 1))
            in_chans, patch_size = dims[i], 2
        self.norm = LayerNorm(self.num_features)
        self.apply(init_weights_vit_timm)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S): the class token of the last stage."""
        *early, last = self.stages
        maps = images
        for stage in early:
            maps = to_map(stage(maps))
        return self.norm(last(maps)[:, 0])


class Stage(nn.Module):
    """Patches with position embeddings, optionally with a class token before them, then blocks."""

    def __init__(self, embed: PatchEmbed, blocks: nn.Sequential, *, has_class_token: bool) -> None:
        super().__init__()
        self.embed, self.blocks = embed, blocks
        dim, num_tokens = embed.proj.out_channels, has_class_token + (embed.num_patches or 0)
        self.class_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim), std=0.02)) if has_class_token else None
        self.positions = nn.Parameter(trunc_normal_(torch.empty(1, num_tokens, dim), std=0.02))

    def forward(self, maps: Tensor) -> Tensor:
        """Return tokens (B, N, D) of maps (B, C, S, S)."""
        tokens = self.embed(maps)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.blocks(tokens + self.positions)


class ReducedAttention(nn.Module):
    """Attention to patches of `reduction` x `reduction` tokens (section 3.3), or to the tokens themselves."""

    def __init__(self, dim: int, num_heads: int, *, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries, self.keys_values = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.reduce = PatchEmbed(None, reduction, dim, dim, norm_layer=LayerNorm) if reduction > 1 else None
        self.attend = SoftmaxAttention()
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, D), each a mixture of all."""
        reduced = tokens if self.reduce is None else self.reduce(to_map(tokens))
        keys, values = self.keys_values(reduced).chunk(2, dim=-1)
        mixed = self.attend(*(split_heads(part, self.num_heads) for part in (self.queries(tokens), keys, values)))
        return self.project(merge_heads(mixed))
