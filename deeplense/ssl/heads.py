"""What stands between features and a loss. D features, K prototypes."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class DINOHead(nn.Module):
    """The cosines of features to K prototypes (Caron et al. 2021, arXiv:2104.14294): an MLP of three layers, the L2
    norm, and a linear layer whose rows keep the norm 1."""

    def __init__(self, num_features: int, *, out_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(num_features, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        self.last.get_parameter("parametrizations.weight.original0").requires_grad_(False).fill_(1)

    def forward(self, features: Tensor, *, frozen: bool = False) -> Tensor:
        """Cosines (..., K) of features (..., D), in float32: in bfloat16 they would be as coarse as the teacher's
        temperature. Where `frozen`, the last layer learns nothing: its weight gets no gradient at all."""
        hidden = self.mlp(features)
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(hidden.float(), dim=-1)
            weight = cast(Tensor, self.last.weight)
            return functional.linear(directions, weight.detach() if frozen else weight)


def simsiam_projector(num_features: int, *, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Three linear layers, batch norm after each, the last without weights (Chen and He 2021, arXiv:2011.10566)."""
    return nn.Sequential(
        *hidden_layer(num_features, hidden_dim),
        *hidden_layer(hidden_dim, hidden_dim),
        nn.Linear(hidden_dim, out_dim, bias=False),
        nn.BatchNorm1d(out_dim, affine=False),
    )


def simsiam_predictor(dim: int, *, hidden_dim: int) -> nn.Sequential:
    """Two linear layers, narrow between them, batch norm after the first."""
    return nn.Sequential(*hidden_layer(dim, hidden_dim), nn.Linear(hidden_dim, dim))


def lejepa_projector(num_features: int, *, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Three linear layers, batch norm after the first two (Balestriero and LeCun 2025, arXiv:2511.08544)."""
    return nn.Sequential(
        *hidden_layer(num_features, hidden_dim),
        *hidden_layer(hidden_dim, hidden_dim),
        nn.Linear(hidden_dim, out_dim),
    )


def hidden_layer(num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
    """A linear layer, batch norm, ReLU."""
    return nn.Linear(num_inputs, num_outputs, bias=False), nn.BatchNorm1d(num_outputs), nn.ReLU()
