"""The Convolutional vision Transformer. Shapes: B batch, C bands, S pixels or tokens per side, N tokens, D features."""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm, LayerNorm2d, trunc_normal_
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from deeplense.models.transformer import (
    SoftmaxAttention,
    drop_path_rates,
    merge_heads,
    split_heads,
    stack,
    to_map,
    to_tokens,
)


class CvT(nn.Module):
    """Three stages of overlapping patches and attention with convolved queries, keys and values. There are no position
    embeddings, so images of any size can be used.

    Wu et al. 2021, arXiv:2103.15808; the defaults are CvT-13.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        dims: Sequence[int] = (64, 192, 384),
        depths: Sequence[int] = (1, 2, 10),
        num_heads: Sequence[int] = (1, 3, 6),
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.class_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dims[-1]), std=0.02))
        self.embeds, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path, depths)):
            kernel_size, stride = (7, 4) if i == 0 else (3, 2)
            embed = nn.Conv2d(in_chans, dims[i], kernel_size, stride=stride, padding=kernel_size // 2)
            self.embeds.append(nn.Sequential(embed, LayerNorm2d(dims[i])))
            num_class_tokens = int(i == len(dims) - 1)
            attentions = [ConvolvedAttention(dims[i], num_heads[i], num_class_tokens=num_class_tokens) for _ in rates]
            if num_class_tokens:
                attentions[-1].convolve[0] = nn.Identity()  # of the last queries only the class token's is used
            self.stages.append(stack(dims[i], attentions, mlp_ratio=mlp_ratio, rates=rates))
            in_chans = dims[i]
        self.norm = LayerNorm(self.num_features)
        self.apply(init_weights_vit_timm)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S): the class token, which only the last stage has."""
        maps = images
        for embed, blocks in zip(list(self.embeds)[:-1], self.stages, strict=False):
            maps = to_map(blocks(to_tokens(embed(maps))))
        tokens = to_tokens(self.embeds[-1](maps))
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.stages[-1](tokens)[:, 0])


class ConvolvedAttention(nn.Module):
    """Attention after depthwise convolutions, which halve the map for keys and values (section 3.2)."""

    def __init__(self, dim: int, num_heads: int, *, num_class_tokens: int, stride: int = 2) -> None:
        super().__init__()
        self.num_heads, self.num_class_tokens = num_heads, num_class_tokens
        self.convolve = nn.ModuleList(depthwise(dim, part_stride) for part_stride in (1, stride, stride))
        self.linear = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.attend = SoftmaxAttention()
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, D), each a mixture of all; class tokens come first and are not convolved."""
        class_tokens, maps = tokens[:, : self.num_class_tokens], to_map(tokens[:, self.num_class_tokens :])
        parts = [torch.cat([class_tokens, to_tokens(convolve(maps))], dim=1) for convolve in self.convolve]
        projected = [linear(part) for linear, part in zip(self.linear, parts, strict=True)]
        return self.project(merge_heads(self.attend(*(split_heads(part, self.num_heads) for part in projected))))


def depthwise(dim: int, stride: int) -> nn.Sequential:
    """Return a depthwise 3 x 3 convolution and batch normalisation.

    Args:
        dim: D.
        stride: stride of the convolution.
    """
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False),
        nn.BatchNorm2d(dim),
    )
