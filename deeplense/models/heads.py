"""Heads between a backbone and the outputs. Shapes: B batch, D features, H x W pixels, K outputs."""

from itertools import pairwise

from timm.layers.attention import Attention
from torch import Tensor, nn

EXTRA_WIDTHS = (1024, 512, 128)
BLOCK_WIDTHS = (512, 256, 128)


def last_layers(num_features: int, num_outputs: int, *, dropout: float, extra_layers: bool) -> nn.Sequential:
    """Return the head from features (B, D) to outputs (B, K): one linear layer, or an MLP before it.

    Args:
        num_features: D.
        num_outputs: K.
        dropout: probability of dropout before each linear layer, 0 to 1.
        extra_layers: whether to add an MLP of 1024, 512 and 128 units.

    Example:
        >>> [type(layer).__name__ for layer in last_layers(8, 3, dropout=0.1, extra_layers=False)]
        ['Dropout', 'Linear']
    """
    widths = (num_features, *EXTRA_WIDTHS) if extra_layers else (num_features,)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], num_outputs))


def attention_layers(num_features: int, num_outputs: int, *, dropout: float) -> nn.Sequential:
    """Return the head from a map of features (B, D, H, W) to outputs (B, K).

    It consists of self-attention between the places, their mean, three blocks of Linear, PReLU, BatchNorm and Dropout,
    and a linear layer.

    Args:
        num_features: D, a multiple of 8.
        num_outputs: K.
        dropout: probability of dropout in each block, 0 to 1.
    """
    layers: list[nn.Module] = [MapAttention(num_features)]
    for before, after in pairwise((num_features, *BLOCK_WIDTHS)):
        layers += [nn.Linear(before, after), nn.PReLU(), nn.BatchNorm1d(after), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(BLOCK_WIDTHS[-1], num_outputs))


class MapAttention(nn.Module):
    """Self-attention between the places of a map (B, D, H, W) with a residual connection, then the mean over places (B,
    D).

    Args:
        num_features: D, a multiple of `num_heads`.
        num_heads: number of attention heads.
    """

    def __init__(self, num_features: int, *, num_heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features)
        self.attention = Attention(num_features, num_heads=num_heads, qkv_bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mean features of all places, (B, D)."""
        tokens = maps.flatten(2).transpose(1, 2)
        return (tokens + self.attention(self.norm(tokens))).mean(dim=1)
