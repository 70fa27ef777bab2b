"""Heads between features and a loss. Shapes: D features, K prototypes."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class DINOHead(nn.Module):
    """Cosines of features with K prototypes (Caron et al. 2021, arXiv:2104.14294): an MLP of three layers, L2
    normalisation, and a linear layer whose rows keep the norm 1.

    Args:
        num_features: D.
        out_dim: K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: dimension of the normalised vectors.

    Example:
        >>> head = DINOHead(16, out_dim=32, hidden_dim=8, bottleneck_dim=4)
        >>> cosines = head(torch.ones(2, 16))
        >>> cosines.shape, bool((cosines.abs() <= 1.001).all())
        (torch.Size([2, 32]), True)
    """

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
        """Return cosines (..., K), in float32: in bfloat16 they would be as coarse as the teacher's temperature.

        Args:
            features: (..., D).
            frozen: whether the weight of the last layer gets no gradient.
        """
        hidden = self.mlp(features)
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(hidden.float(), dim=-1)
            weight = cast(Tensor, self.last.weight)
            return functional.linear(directions, weight.detach() if frozen else weight)


def simsiam_projector(num_features: int, *, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return three linear layers with batch norm after each, the last without weights (Chen and He 2021,
    arXiv:2011.10566).

    Args:
        num_features: D, the inputs.
        hidden_dim: width of the hidden layers.
        out_dim: number of outputs.
    """
    return nn.Sequential(
        *hidden_layer(num_features, hidden_dim),
        *hidden_layer(hidden_dim, hidden_dim),
        nn.Linear(hidden_dim, out_dim, bias=False),
        nn.BatchNorm1d(out_dim, affine=False),
    )


def simsiam_predictor(dim: int, *, hidden_dim: int) -> nn.Sequential:
    """Return two linear layers with a bottleneck between them and batch norm after the first.

    Args:
        dim: number of inputs and outputs.
        hidden_dim: width of the bottleneck.
    """
    return nn.Sequential(*hidden_layer(dim, hidden_dim), nn.Linear(hidden_dim, dim))


def lejepa_projector(num_features: int, *, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return three linear layers with batch norm after the first two (Balestriero and LeCun 2025, arXiv:2511.08544).

    Args:
        num_features: D, the inputs.
        hidden_dim: width of the hidden layers.
        out_dim: number of outputs.
    """
    return nn.Sequential(
        *hidden_layer(num_features, hidden_dim),
        *hidden_layer(hidden_dim, hidden_dim),
        nn.Linear(hidden_dim, out_dim),
    )


def hidden_layer(num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
    """Return a linear layer, batch norm and ReLU.

    Args:
        num_inputs: number of inputs.
        num_outputs: number of outputs.
    """
    return nn.Linear(num_inputs, num_outputs, bias=False), nn.BatchNorm1d(num_outputs), nn.ReLU()
