"""Ranks sum gradients in the same order in every step of every attempt, whether a parameter has a gradient or not."""

from collections.abc import Iterator, Mapping
from functools import partial

import pytest
import torch
import torch.distributed as dist
from group import on_ranks
from test_loop import Rows
from torch import Tensor, nn

from deeplense.training import loop
from deeplense.training.loop import fit, make_accelerator

WIDTH = 300
Gradients = Mapping[str, Tensor | None]


class Net(nn.Module):
    """Layers that are used in another order than they are listed in, one that never is, and one that is from step 2 on.
    They fill several buckets of DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.never = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 7)
        self.first, self.late = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.middle = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(5)))
        self.step = 0

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.middle(self.first(values).tanh())
        return self.last(hidden) + (self.late(hidden) if self.step >= 2 else 0)


def batches(rank: int, first: int, last: int) -> Iterator[Rows]:
    """A rank's rows of each step."""
    for step in range(first, last):
        yield Rows(torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * step + rank)))


def gradients_of(rank: int, first: int, last: int, *, accumulate: int = 1) -> list[Gradients]:
    """The gradients of steps of an attempt that begins at one of them; nothing is learnt, so they depend on the step
    alone."""
    accelerator = make_accelerator(device="cpu", precision="fp32")
    torch.manual_seed(0)
    net = Net()
    model, optimizer = loop.prepare(accelerator, net, torch.optim.SGD(net.parameters()))
    seen: list[Gradients] = []
    note = {name: parameter for name, parameter in net.named_parameters()}
    step_of = optimizer.step

    def noted() -> None:
        seen.append({name: None if p.grad is None else p.grad.clone() for name, p in note.items()})
        step_of()

    optimizer.step = noted  # type: ignore[method-assign]

    def loss(batch: Rows) -> dict[str, Tensor]:
        net.step = first + len(seen)
        return {"loss": model(batch.values).square().mean()}

    updates = fit(
        loss,
        batches(rank, first, last),
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        learning_rate=lambda step: 0.0,
        first_step=first,
        num_steps=last,
        step_seed=lambda step: step,
        accumulate=accumulate,
    )
    assert len(list(updates)) == last - first
    return seen


def same_bits(one: Gradients, other: Gradients) -> bool:
    """Whether two sets of gradients are the same to the bit, those that are none too."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in ((one[name], other[name]) for name in one)
    )


def resume_everywhere(rank: int, size: int, *, fixed: bool) -> None:
    """The gradients of each step of an unbroken attempt, and of one that begins there."""
    if not fixed:
        loop.fix_buckets = lambda model: None
    unbroken = gradients_of(rank, 0, 4)
    alike = [same_bits(gradients_of(rank, first, first + 1)[0], unbroken[first]) for first in range(4)]
    assert alike == ([True] * 4 if fixed else [True, False, False, False]), alike


@pytest.mark.parametrize("fixed", [True, False])
def test_three_ranks_sum_in_the_same_order_wherever_an_attempt_begins(fixed: bool) -> None:
    """Where buckets are laid out by the first gradients, as DDP does, they do not: the negative control."""
    on_ranks(3, partial(resume_everywhere, fixed=fixed))


def compare_with_one(rank: int, size: int, *, accumulate: int) -> None:
    """The gradients are the means of what each rank would have had alone."""
    seen = gradients_of(rank, 0, 4, accumulate=accumulate)
    for step, found in enumerate(seen):
        torch.manual_seed(0)
        net = Net()
        net.step = step
        rows = torch.cat([next(batches(other, step, step + 1)).values for other in range(size)])
        net(rows).square().mean().backward()
        for name, parameter in net.named_parameters():
            value = found[name]
            assert (value is None) == (parameter.grad is None), (step, name)
            assert value is None or parameter.grad is None or torch.allclose(value, parameter.grad, atol=1e-6)
        assert found["never.weight"] is None
        assert (found["late.weight"] is None) == (step < 2)
    assert all(not getattr(model, "find_unused_parameters", False) for model in loop.KEPT)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parameters_without_a_gradient_keep_none_and_the_others_get_the_mean(accumulate: int) -> None:
    on_ranks(2, partial(compare_with_one, accumulate=accumulate))


def break_off(rank: int, size: int) -> None:
    """Without the rest of the exchange DDP gives up at the second step."""
    loop.exchange_rest = lambda learning: None
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        gradients_of(rank, 0, 2)
    dist.barrier()


def test_without_the_rest_of_the_exchange_ddp_gives_up() -> None:
    on_ranks(2, break_off)


def autocast_step(rank: int, size: int) -> None:
    """The forward that Accelerate puts into a network is there after its buckets are laid out."""
    accelerator = make_accelerator(device="cpu", precision="bf16")
    net = nn.Linear(4, 4)
    model, _ = loop.prepare(accelerator, net, torch.optim.SGD(net.parameters()))
    with accelerator.autocast():
        assert net(torch.ones(1, 4)).dtype == model(torch.ones(1, 4)).dtype == torch.float32
    assert "forward" in vars(net)
    assert net.weight.grad is None


def test_a_network_keeps_the_forward_that_accelerate_gave_it() -> None:
    on_ranks(2, autocast_step)
