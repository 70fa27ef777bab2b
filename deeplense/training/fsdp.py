"""Weights, gradients and optimizer states distributed over the processes (fully sharded data parallel, Zhao et al.
2023, arXiv:2304.11277), by PyTorch's `fully_shard`."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(network: nn.Module, device: torch.device) -> None:
    """Keep only this process's part of each parameter, in place.

    Blocks of vision transformers are gathered one at a time when they are computed, everything else at once. All
    processes must call this with equal parameters, and make the optimizer afterwards.

    Args:
        network: network, changed in place.
        device: device of this process.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in list(network.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)


def shard_states(optimizer: Optimizer) -> None:
    """Keep only this process's part of the states that an optimizer has loaded, as for the parameters."""
    for parameter, states in optimizer.state.items():
        for name, value in states.items():
            if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
                states[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def gathered(state: Any, *, keep: bool = True) -> Any:
    """Return a state with all sharded tensors gathered, one at a time. Other tensors are not copied. All processes must
    call this.

    Args:
        state: nested dictionaries and lists.
        keep: whether this process needs the result; if not, None takes the place of sharded tensors.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: gathered(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [gathered(value, keep=keep) for value in state]
    return state


def whole_copy(network: nn.Module, like: nn.Module, device: torch.device) -> nn.Module:
    """Return an unsharded network with the weights of a sharded one. All processes must call this.

    Args:
        network: the sharded network.
        like: a copy of it from before it was sharded.
        device: device of the result.
    """
    whole = copy.deepcopy(like).to(device)
    whole.load_state_dict(gathered(network.state_dict()))
    return whole
