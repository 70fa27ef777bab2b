"""Whether saved weights are those of a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def misfit(state: Any, expected: Mapping[str, Tensor]) -> str:
    """Why tensors cannot take the place of others, in words; empty where they can."""
    if not isinstance(state, Mapping):
        return "it holds no weights"
    if different := sorted(map(str, state.keys() ^ expected.keys())):
        return f"{different[0]} is in only one of the two, as are {len(different) - 1} others"
    for name, value in expected.items():
        found = state[name]
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (value.shape, value.dtype):
            told = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else "no tensor"
            return f"{name} is {told}, not {tuple(value.shape)}, {value.dtype}"
    return ""


def put_into(network: nn.Module, state: Any, *, path: Path) -> None:
    """Give a network the weights of a checkpoint. Raises ValueError, naming it, where they are another network's."""
    if problem := misfit(state, network.state_dict()):
        raise ValueError(f"The weights in {path} do not fit the network of the settings: {problem}.")
    network.load_state_dict(state)
