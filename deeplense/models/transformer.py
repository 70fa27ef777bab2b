"""Shared parts of the transformers of this package. Shapes: B batch, N tokens, D features, S tokens per side of a
square map."""

from collections.abc import Sequence
from math import isqrt

import torch
from timm.layers import DropPath, LayerNorm, Mlp
from torch import Tensor, nn
from torch.nn import functional


class SoftmaxAttention(nn.Module):
    """softmax(Q K^T / sqrt(D) + bias) V.

    If `fused_attn` is False, the weights (..., heads, queries, keys) pass through `attn_drop`, where a hook can read
    them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused_attn: bool = True
        self.attn_drop = nn.Identity()

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Return mixed values (..., heads, queries, D).

        Args:
            queries: (..., heads, queries, D).
            keys: (..., heads, keys, D).
            values: (..., heads, keys, D).
            bias: added to the logits (..., heads, queries, keys), broadcast; None for none.

        Example:
            >>> import torch
            >>> SoftmaxAttention()(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4)).shape
            torch.Size([1, 2, 5, 4])
        """
        if self.fused_attn:
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        logits = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        return self.attn_drop(weights) @ values


class SelfAttention(nn.Module):
    """Self-attention of tokens.

    Args:
        dim: D.
        num_heads: number of heads; it divides D.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.attend = SoftmaxAttention()
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, D), each a mixture of all.

        Args:
            tokens: (B, N, D).
            bias: added to the logits (B, heads, N, N), broadcast; None for none.
        """
        parts = self.queries_keys_values(tokens).chunk(3, dim=-1)
        mixed = self.attend(*(split_heads(part, self.num_heads) for part in parts), bias=bias)
        return self.project(merge_heads(mixed))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and with a residual connection.

    Args:
        dim: D.
        attention: maps tokens to tokens.
        mlp_ratio: width of the MLP, relative to D.
        drop_path: rate of stochastic depth, 0 to 1.
    """

    def __init__(self, dim: int, attention: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.attention = attention
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, ..., D) plus what attention and MLP add."""
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def stack(dim: int, attentions: Sequence[nn.Module], *, mlp_ratio: float, rates: Sequence[float]) -> nn.Sequential:
    """Return blocks around some attentions.

    Args:
        dim: D.
        attentions: an attention per block.
        mlp_ratio: width of the MLPs, relative to D.
        rates: rate of stochastic depth of each block, 0 to 1.
    """
    return nn.Sequential(
        *(
            Block(dim, attention, mlp_ratio=mlp_ratio, drop_path=rate)
            for attention, rate in zip(attentions, rates, strict=True)
        )
    )


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Return tokens (..., N, D) as (..., heads, N, D / heads).

    Args:
        tokens: (..., N, D).
        num_heads: number of heads; it divides D.

    Example:
        >>> import torch
        >>> split_heads(torch.zeros(2, 5, 8), 4).shape
        torch.Size([2, 4, 5, 2])
    """
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Return tokens (..., heads, N, D / heads) as (..., N, D)."""
    return tokens.transpose(-3, -2).flatten(-2)


def to_map(tokens: Tensor) -> Tensor:
    """Return tokens (B, S * S, D) as maps (B, D, S, S)."""
    return tokens.transpose(1, 2).unflatten(2, (isqrt(tokens.shape[1]), -1))


def to_tokens(maps: Tensor) -> Tensor:
    """Return maps (B, D, S, S) as tokens (B, S * S, D)."""
    return maps.flatten(2).transpose(1, 2)


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the rates of stochastic depth for the blocks of each stage: from 0 in the first block to `last` in the
    last.

    Args:
        last: rate of the last block, 0 to 1.
        depths: number of blocks of each stage.

    Example:
        >>> drop_path_rates(0.5, [1, 2])
        [[0.0], [0.25, 0.5]]
    """
    return [rates.tolist() for rates in torch.linspace(0, last, sum(depths), device="cpu").split(list(depths))]
