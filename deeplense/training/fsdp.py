"""Weights, gradients and optimizer states spread over the processes (fully sharded data parallel, Zhao et al. 2023,
arXiv:2304.11277), by PyTorch's `fully_shard`."""

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
    """Leave each process its part of each parameter, in place. The blocks of vision transformers are put together one
    at a time when they are computed, all else at once. All processes must call it with equal parameters, and make the
    optimizer afterwards."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in list(network.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)


def shard_states(optimizer: Optimizer) -> None:
    """Leave each process its part of the states that an optimizer has read, as it has of the parameters."""
    for parameter, states in optimizer.state.items():
        for name, value in states.items():
            if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
                states[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def gathered(state: Any, *, keep: bool = True) -> Any:
    """A state with all that is spread put together, one tensor at a time; None in place of these unless `keep`. What is
    not spread, or whole on this process, is not copied. All
    processes must call it."""
    if isinstance(state, DTensor):
        whole = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: gathered(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [gathered(value, keep=keep) for value in state]
    return state


def whole_copy(network: nn.Module, like: nn.Module, device: torch.device) -> nn.Module:
    """A network that is not spread, with the weights of one that is; `like` is a copy of it from before. All processes
    must call it."""
    whole = copy.deepcopy(like).to(device)
    whole.load_state_dict(gathered(network.state_dict()))
    return whole
