"""Weights spread over processes: they learn what whole ones learn, and each process holds a part."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from group import on_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deeplense.training import fsdp

CPU = torch.device("cpu")


def make(*, seed: int) -> nn.Module:
    """A small transformer with a number that belongs to no block."""
    torch.manual_seed(seed)
    return timm.create_model("test_vit", img_size=16, patch_size=8, in_chans=1, num_classes=3)


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """One with states of the size of the parameters, and numbers; smooth in small gradients."""
    return torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3)


def update(network: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
    """One update with a clipped gradient; the network sees a part of the rows twice, as the views of an image."""
    optimizer.zero_grad()
    (network(rows).square().mean() + network(rows[:, :, :8, :8].repeat(1, 1, 2, 2)).square().mean()).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
    optimizer.step()


def images(step: int) -> Tensor:
    """Those of an update, on all processes together."""
    return torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(step))


def held(tensor: Tensor) -> int:
    """Numbers that this process holds of it."""
    return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()


def learn_spread(rank: int, num_ranks: int) -> None:
    """Three updates, spread and whole, and three more after the states were put together and spread again."""
    whole = make(seed=0)
    spread, unspread = copy.deepcopy(whole), copy.deepcopy(whole)
    fsdp.shard(spread, CPU)
    ours, theirs = make_optimizer(spread), make_optimizer(whole)
    for step in range(3):
        update(spread, ours, images(step).chunk(num_ranks)[rank])
        update(whole, theirs, images(step))
    share = sum(map(held, spread.parameters())) / sum(p.numel() for p in whole.parameters())
    assert abs(share - 1 / num_ranks) < 0.05
    moments = [value for state in ours.state.values() for value in state.values() if value.dim()]
    assert all(isinstance(value, DTensor) for value in moments)
    compare(fsdp.gathered(spread.state_dict()), whole.state_dict())
    compare(fsdp.whole_copy(spread, unspread, CPU).state_dict(), whole.state_dict())
    assert fsdp.gathered(spread.state_dict(), keep=False)["head.weight"] is None
    states = copy.deepcopy(fsdp.gathered(ours.state_dict()))
    again = make(seed=1)
    again.load_state_dict(fsdp.gathered(spread.state_dict()))
    fsdp.shard(again, CPU)
    taken = make_optimizer(again)
    taken.load_state_dict(states)
    fsdp.shard_states(taken)
    for step in range(3, 6):
        update(spread, ours, images(step).chunk(num_ranks)[rank])
        update(again, taken, images(step).chunk(num_ranks)[rank])
    compare(fsdp.gathered(again.state_dict()), fsdp.gathered(spread.state_dict()), tolerance=0)
    dist.barrier()


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], *, tolerance: float = 1e-5) -> None:
    """Raise unless the weights are equal, and are not what the network began with."""
    start = make(seed=0).state_dict()
    assert found.keys() == wanted.keys()
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) <= tolerance
    assert min((start[name] - wanted[name]).abs().max().item() for name in wanted) > 1e-3


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_spread_weights_learn_what_whole_ones_learn_and_go_on_from_their_states(num_ranks: int) -> None:
    on_ranks(num_ranks, learn_spread)


def test_what_is_not_spread_stays_what_it_is() -> None:
    network = make(seed=0)
    optimizer = make_optimizer(network)
    update(network, optimizer, images(0))
    states = optimizer.state_dict()
    fsdp.shard_states(optimizer)
    assert not any(isinstance(value, DTensor) for state in optimizer.state.values() for value in state.values())
    assert fsdp.gathered(states)["state"][0]["exp_avg"] is states["state"][0]["exp_avg"]
