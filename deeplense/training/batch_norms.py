"""Whether batch norms have enough values for their statistics."""

from collections.abc import Callable

import torch
from torch import nn

TOO_FEW = "Expected more than 1 value per channel"
"""What PyTorch says of a batch norm in training with one value per channel."""


def lacks_values(network: nn.Module, forward: Callable[[], object]) -> bool:
    """Return whether a forward pass in training fails because a batch norm sees one value per channel: one sample of
    features, or of a map of one pixel. The weights and the running statistics of the network stay as they are.

    Args:
        network: the network, which is set to training mode.
        forward: runs the forward pass.

    Example:
        >>> norm = nn.BatchNorm1d(3)
        >>> [lacks_values(norm, lambda: norm(torch.ones(count, 3))) for count in (1, 2)]
        [True, False]
    """
    kept = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        with torch.no_grad():
            forward()
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        return True
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), kept, strict=True):
                buffer.copy_(before)
    return False
