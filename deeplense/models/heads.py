"""What stands between a backbone and the outputs. B batch, D features, H W pixels, K outputs."""

from itertools import pairwise

from timm.layers.attention import Attention
from torch import Tensor, nn

EXTRA_WIDTHS = (1024, 512, 128)
BLOCK_WIDTHS = (512, 256, 128)


def last_layers(num_features: int, num_outputs: int, *, dropout: float, extra_layers: bool) -> nn.Sequential:
    """From features (B, D) to outputs (B, K): one linear layer, or an MLP before it."""
    widths = (num_features, *EXTRA_WIDTHS) if extra_layers else (num_features,)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], num_outputs))


def attention_layers(num_features: int, num_outputs: int, *, dropout: float) -> nn.Sequential:
    """From a map of features (B, D, H, W) to outputs (B, K): self-attention between its places, their mean, three
    blocks of Linear, PReLU, BatchNorm and Dropout, and a linear layer."""
    layers: list[nn.Module] = [MapAttention(num_features)]
    for before, after in pairwise((num_features, *BLOCK_WIDTHS)):
        layers += [nn.Linear(before, after), nn.PReLU(), nn.BatchNorm1d(after), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(BLOCK_WIDTHS[-1], num_outputs))


class MapAttention(nn.Module):
    """Self-attention between the places of a map (B, D, H, W), added to it, and the mean over places (B, D)."""

    def __init__(self, num_features: int, *, num_heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features)
        self.attention = Attention(num_features, num_heads=num_heads, qkv_bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        """The mean features of all places."""
        tokens = maps.flatten(2).transpose(1, 2)
        return (tokens + self.attention(self.norm(tokens))).mean(dim=1)
