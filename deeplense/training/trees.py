"""Nested states, as a tree for JSON and the tensors in it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

TENSOR, ITEMS = "__tensor__", "__items__"


def flatten(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return the nested state with each tensor replaced by a reference.

    Args:
        state: nested dictionaries, lists and tuples of tensors and JSON values.
        tensors: the tensors by path, extended in place.
        path: path of the state.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> flatten([torch.zeros(1)], tensors, "a")
        [{'__tensor__': 'a/0'}]
        >>> tensors
        {'a/0': tensor([0.])}
    """
    if isinstance(state, Tensor):
        while path in tensors:
            path += "'"
        tensors[path] = state.detach()
        return {TENSOR: path}
    if isinstance(state, Mapping):
        # Optimizers number their states: keys that are integers must come back as such.
        return {
            ITEMS: [
                [name, flatten(value, tensors, f"{path}/{name}" if path else str(name))]
                for name, value in state.items()
            ]
        }
    if isinstance(state, list | tuple):
        return [flatten(value, tensors, f"{path}/{k}" if path else str(k)) for k, value in enumerate(state)]
    return state


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the nested state: the inverse of `flatten` (tuples come back as lists).

    Args:
        tree: result of `flatten`, or read from JSON.
        tensors: the tensors by path.

    Raises:
        ValueError: the tree is not a result of `flatten`.
    """
    if isinstance(tree, Mapping):
        if set(tree) == {TENSOR} and isinstance(tree[TENSOR], str) and tree[TENSOR] in tensors:
            return tensors[tree[TENSOR]]
        items = tree.get(ITEMS)
        if set(tree) != {ITEMS} or not isinstance(items, list) or not all(map(is_item, items)):
            raise ValueError(f"it holds {str(tree)!r:.60}, which is not part of a state")
        return {name: unflatten(value, tensors) for name, value in items}
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    return tree


def is_item(item: Any) -> bool:
    """Whether a value is a pair of a key and a value."""
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str | int | float | bool | None)
