"""Number of floating-point operations of a network."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def flops_of(network: nn.Module, image: Tensor) -> int:
    """Return the floating-point operations of convolutions, matrix products and attention for one image; a
    multiplication and an addition count as two.

    Args:
        network: network, which is not changed.
        image: one image, (1, C, S, S).

    Example:
        >>> flops_of(nn.Linear(4, 3), torch.zeros(1, 4))
        24
    """
    # The counter stumbles over parameters that are given to a module, as tokens are, and learn.
    counted = copy.deepcopy(network).eval().requires_grad_(False)
    # It does not know the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted(image)
    return counter.get_total_flops()
