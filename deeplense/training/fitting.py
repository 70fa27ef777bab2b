"""Whether saved weights fit a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def misfit(state: Any, expected: Mapping[str, Tensor]) -> str:
    """Return why weights do not fit a network, in words; empty if they do.

    Args:
        state: saved weights by name.
        expected: weights of the network by name; names, shapes and types matter.

    Example:
        >>> misfit(nn.Linear(2, 1).state_dict(), nn.Linear(2, 1).state_dict())
        ''
        >>> misfit(nn.Linear(3, 1).state_dict(), nn.Linear(2, 1).state_dict())
        'weight is (1, 3), torch.float32, not (1, 2), torch.float32'
    """
    if not isinstance(state, Mapping):
        return "it contains no weights"
    if different := sorted(map(str, state.keys() ^ expected.keys())):
        return f"only one of the two has {different[0]} and {len(different) - 1} other tensors"
    for name, value in expected.items():
        found = state[name]
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (value.shape, value.dtype):
            told = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else "no tensor"
            return f"{name} is {told}, not {tuple(value.shape)}, {value.dtype}"
    return ""


def put_into(network: nn.Module, state: Any, *, path: Path) -> None:
    """Load the weights of a checkpoint into a network.

    Args:
        network: network, changed in place.
        state: saved weights by name.
        path: path of the checkpoint, for messages.

    Raises:
        ValueError: the weights belong to another network.
    """
    if problem := misfit(state, network.state_dict()):
        raise ValueError(f"The weights in {path} do not match the network in the settings: {problem}.")
    network.load_state_dict(state)
