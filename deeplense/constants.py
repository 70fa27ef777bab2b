"""Numbers that a step needs on its device, brought there so that no step waits for them."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Words = ParamSpec("Words")
Made = TypeVar("Made")


def kept(make: Callable[Words, Made]) -> Callable[Words, Made]:
    """Return a function that caches the tensors it made for the same arguments; nobody may change them in place.

    While a network is traced, tensors are only symbolic, and are not cached.
    """
    keep = lru_cache(make)

    @wraps(make)
    def get(*words: Words.args, **named: Words.kwargs) -> Made:
        traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
        if traced:
            return make(*words, **named)
        # Made while a network is evaluated, they are used in its training, too.
        with torch.inference_mode(False):
            return keep(*words, **named)  # type: ignore[arg-type]

    return get


@kept
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return these numbers as a tensor (N,) on a device, copied there once.

    Args:
        values: the N numbers.
        dtype: type of the tensor.
        device: device of the tensor.

    Example:
        >>> constant((1.0, 2.0), torch.float32, torch.device("cpu"))
        tensor([1., 2.])
    """
    return torch.tensor(values, dtype=dtype, device=device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy numbers from the host to a device. The host waits for a GPU only if their memory is not pinned.

    Args:
        values: tensor on the host, any shape.
        device: target device.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
