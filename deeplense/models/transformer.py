"""What the transformers of this package share. B batch, N tokens, D features, S tokens a side of a square map."""

from collections.abc import Sequence
from math import isqrt

import torch
from timm.layers import DropPath, LayerNorm, Mlp
from torch import Tensor, nn
from torch.nn import functional


class SoftmaxAttention(nn.Module):
    """softmax(Q K^T / sqrt(D) + bias) V.

    Where `fused_attn` is off, the weights (..., heads, queries, keys) pass through `attn_drop`, for a hook to see them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused_attn: bool = True
        self.attn_drop = nn.Identity()

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Values (..., heads, queries, D), mixed for each query; the bias is broadcast to the weights."""
        if self.fused_attn:
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        logits = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        return self.attn_drop(weights) @ values


class SelfAttention(nn.Module):
    """Attention of tokens to one another."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.attend = SoftmaxAttention()
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), each a mixture of all."""
        parts = self.queries_keys_values(tokens).chunk(3, dim=-1)
        mixed = self.attend(*(split_heads(part, self.num_heads) for part in parts), bias=bias)
        return self.project(merge_heads(mixed))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and beside a skip connection."""

    def __init__(self, dim: int, attention: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.attention = attention
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, ..., D) as they were, with what was learnt of them added."""
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def stack(dim: int, attentions: Sequence[nn.Module], *, mlp_ratio: float, rates: Sequence[float]) -> nn.Sequential:
    """Blocks around these attentions, with these rates of stochastic depth."""
    return nn.Sequential(
        *(
            Block(dim, attention, mlp_ratio=mlp_ratio, drop_path=rate)
            for attention, rate in zip(attentions, rates, strict=True)
        )
    )


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Tokens (..., N, D) as (..., heads, N, D / heads)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Tokens (..., heads, N, D / heads) as (..., N, D)."""
    return tokens.transpose(-3, -2).flatten(-2)


def to_map(tokens: Tensor) -> Tensor:
    """Tokens (B, S * S, D) as maps (B, D, S, S)."""
    return tokens.transpose(1, 2).unflatten(2, (isqrt(tokens.shape[1]), -1))


def to_tokens(maps: Tensor) -> Tensor:
    """Maps (B, D, S, S) as tokens (B, S * S, D)."""
    return maps.flatten(2).transpose(1, 2)


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth for the blocks of each stage: from 0 in the first block to `last` in the last."""
    return [rates.tolist() for rates in torch.linspace(0, last, sum(depths), device="cpu").split(list(depths))]
