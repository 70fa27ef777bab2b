"""A step on tensors that have a shape, a type and a device, but no numbers: whoever reads one, or waits, fails."""

import copy
import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from deeplense import constants
from deeplense.data.dataset import Batch

ROOT = Path(__file__).parents[1]
OURS = ("deeplense", "jobs")
KEEPERS = {Path(constants.__file__)}
"""Where copies are made once, and kept."""
aten = torch.ops.aten


class Waiting(AssertionError):
    """The host waits for the device, or two devices are mixed."""


class NoCopies(TorchDispatchMode):
    """Raises Waiting where numbers go from the device to the host, or to the device from memory that is not pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._pin_memory.default:
            self.pinned.append(args[0])
            return args[0]
        if func is aten._to_copy.default and kwargs.get("device") is not None:
            self.check(args[0], torch.device(kwargs["device"]), bool(kwargs.get("non_blocking")), args[0])
        if func is aten.copy_.default:
            self.check(args[1], args[0].device, bool((*args, False)[2] or kwargs.get("non_blocking")), args[1])
        return func(*args, **kwargs)

    def check(self, source: Tensor, target: torch.device, non_blocking: bool, memory: Tensor) -> None:
        """Refuse a copy that is waited for."""
        here, there = source.device.type, target.type
        if here == there:
            return
        is_pinned = any(memory is each for each in self.pinned)
        if here == "cpu" and ((non_blocking and is_pinned) or is_kept()):
            return
        raise Waiting(f"a copy from {here} to {there}" + (" of memory that is not pinned" if non_blocking else ""))


def is_kept() -> bool:
    """Whether a copy is made once and kept."""
    return any(Path(frame.filename) in KEEPERS and frame.name == "get" for frame in traceback.extract_stack())


@contextmanager
def nobody_waits() -> Iterator[None]:
    """In it a read by the host, a copy that is waited for, or a mix of devices raises Waiting, with its place in our
    code."""
    with told_where_it_reads(), NoCopies():
        yield


@contextmanager
def told_where_it_reads() -> Iterator[None]:
    """In it a read by the host raises Waiting, with its place in our code."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise Waiting(f"{place_of(error)}: the host reads what {error.func} gives") from error
    except Waiting as error:
        raise Waiting(f"{place_of(error)}: {error}") from error
    except RuntimeError as error:
        if "meta" in str(error).lower():
            raise Waiting(f"{place_of(error)}: the host reads what has no numbers ({error})") from error
        if "two different devices" not in str(error):
            raise
        raise Waiting(f"{place_of(error)}: {error}") from error


def place_of(error: BaseException) -> str:
    """The innermost line of our code."""
    frames = [
        f"{path.relative_to(ROOT)}:{frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OURS
    ]
    return frames[-1] if frames else "not in our code"


def faked(mode: FakeTensorMode, given: nn.Module, device: str) -> nn.Module:
    """A copy of a network with fake parameters and buffers on a device."""
    with unset_fake_temporarily(), FakeCopyMode(mode):
        return copied(given, lambda tensor: made(mode, tensor, device))


def copied(given: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a network with other parameters and buffers."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(given.parameters(), given.buffers()):
        other = make(tensor)
        memo[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    return copy.deepcopy(given, memo)


def made(mode: FakeTensorMode, tensor: Tensor, device: str) -> Tensor:
    """A fake tensor of the same shape and type on a device."""
    with mode:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)


@contextmanager
def no_numbers(accelerator: Accelerator) -> Iterator[None]:
    """In it the device of a training is that of tensors without numbers, where layers compute as they do on the
    host."""
    with pytest.MonkeyPatch.context() as patch:
        autocast = torch.autocast
        patch.setattr(accelerator.state, "device", torch.device("meta"))
        patch.setattr(torch, "autocast", lambda device_type, **named: autocast("cpu", **named))
        yield


def faked_batch(mode: FakeTensorMode, batch: Batch) -> Batch:
    """A batch of fake tensors on the host."""
    names = [each.name for each in fields(batch) if isinstance(getattr(batch, each.name), Tensor)]
    return replace(batch, **{name: mode.from_tensor(getattr(batch, name)) for name in names})


def really(mode: FakeTensorMode, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that works with numbers, of which the fake world gets fake ones."""

    @wraps(function)
    def call(*words: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            found = function(*words, **named)
        return tree_map_only(Tensor, mode.from_tensor, found)

    return call
