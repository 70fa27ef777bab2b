"""What holds for every method."""

import copy
import io
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import CONTEXT, rank_variables, start_fork_server
from tiny import (
    SETTINGS,
    TOKENS,
    WITH_TEACHER,
    Batch,
    Total,
    adamw,
    apart,
    hide_by_number,
    make,
    make_batch,
    sgd,
    split,
    train,
    update,
)
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

ALIKE = ("dino", "ibot", "ibot, two heads, masked centre", "simmim")
"""Methods without batch norm, and without statistics that need a gradient: ranks and pieces do not matter."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_training_goes_on_to_the_bit(name: str) -> None:
    unbroken, first = (make(name, dropout=0.1) for _ in range(2))
    wanted = train(unbroken, adamw(unbroken), range(6))
    optimizer = adamw(first)
    train(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    second = make(name, seed=1, dropout=0.1)
    assert apart(first, second) > 0.01
    state, optimizer_state = torch.load(io.BytesIO(file.getvalue()))
    second.load_state_dict(state)
    optimizer = adamw(second)
    optimizer.load_state_dict(optimizer_state)
    assert train(second, optimizer, range(3, 6)) == wanted[3:]
    assert apart(unbroken, second) == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_every_parameter_that_can_learn_does(name: str) -> None:
    method = make(name)
    metrics = method(*make_batch(method, 0), 10)
    metrics["loss"].backward()
    gradients = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [key for key, gradient in gradients.items() if not gradient.any()] == []
    assert [key for key in gradients if key.startswith("teacher")] == []
    assert all(value.shape == () and value.dtype == torch.float32 for value in metrics.values())
    assert [key for key, value in metrics.items() if value.requires_grad] == ["loss"]


@pytest.mark.parametrize("name", SETTINGS)
def test_forward_draws_nothing(name: str) -> None:
    method = make(name)
    before = torch.get_rng_state()
    method(*make_batch(method, 0), 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "simmim"])
def test_the_order_of_small_views_does_not_matter(name: str) -> None:
    method = make(name)
    (large, small), random = make_batch(method, 0)
    loss = method([large, small], random, 3)["loss"]
    other = method([large, small.flip(0)], random, 3)["loss"]
    assert other.item() == pytest.approx(loss.item(), abs=1e-6)
    assert method([large, small.flip(1)], random, 3)["loss"].item() != pytest.approx(loss.item(), abs=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_bfloat16_is_near_float32(name: str) -> None:
    method = make(name)
    batch = make_batch(method, 0)
    exact = method(*batch, 3)
    with torch.autocast("cpu", torch.bfloat16):
        near = method(*batch, 3)
    assert near["loss"].dtype == torch.float32
    assert near["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.02, abs=0.01)
    assert near["loss"].item() != exact["loss"].item()


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_teacher_starts_as_the_student_and_shares_nothing_with_it(name: str) -> None:
    method = make(name)
    assert apart(method.teacher, method.student) == 0
    places = [{p.data_ptr() for p in network.parameters()} for network in (method.teacher, method.student)]
    assert not places[0] & places[1]
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert any(method.encoder is module for module in method.teacher.modules())
    train(method, sgd(method), range(1))
    assert apart(method.teacher, method.student) > 0


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_teacher_says_the_same_in_training_and_in_evaluation(name: str) -> None:
    method = make(name, dropout=0.5)
    images = make_batch(method, 0)[0][0][0]

    def says() -> list[Tensor]:
        return [method.prototypes(images, 3), method.encoder(images)]

    assert method.student.training
    in_training = says()
    assert all(map(torch.equal, in_training, says()))
    assert not torch.equal(method.student.backbone(images), method.student.backbone(images))
    method.eval()
    assert not method.student.training
    assert all(map(torch.equal, in_training, says()))
    method.train()
    assert not any(module.training for module in method.teacher.modules())
    assert method.training
    assert method.student.backbone.training


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_what_is_seen_in_evaluation_does_not_move_the_centre(name: str) -> None:
    method, other = (make(name) for _ in range(2))
    train(method, sgd(method), range(1))
    other.eval()
    other(*make_batch(other, 7), 0)
    other.train()
    other.prototypes(make_batch(other, 7)[0][0][0], 0)
    train(other, sgd(other), range(1))
    assert apart(method, other) == 0


@pytest.mark.parametrize("name", ALIKE)
def test_a_batch_in_pieces_makes_the_same_update(name: str) -> None:
    whole, pieces = make(name), make(name)
    expected, found = (
        train(whole, sgd(whole), range(3)),
        train(pieces, sgd(pieces), range(3), parts=3),
    )
    assert [m["loss"].item() for m in found] == pytest.approx([m["loss"].item() for m in expected], abs=1e-5)
    assert apart(whole, pieces) < 1e-5
    if name != "simmim":
        assert whole.targets.center.abs().max() > 1e-3


def uneven_batch(method: Any, step: int) -> Batch:
    """A batch whose first half has few patches hidden, in step 1 none; in step 2 nothing is hidden anywhere."""
    views, random = make_batch(method, step, batch=4)
    random = 1 + random
    random[2:, :5] = 0
    random[3:, 8:30] = 0
    random[1:2, 3:4] = 0
    random[:2] += step == 1
    return views, random + (step == 2)


class Ranks:
    """Copies of a method, each with its own part of a batch, that exchange gradients and sums."""

    def __init__(self, method: Any, number: int) -> None:
        self.methods = [copy.deepcopy(method) for _ in range(number)]
        self.optimizers = [sgd(copied) for copied in self.methods]

    def update(self, step: int, batch: Batch) -> float:
        """Make an update, as DDP would. Returns the mean loss."""
        parts = split(batch, len(self.methods))
        losses = [method(*part, step)["loss"] for method, part in zip(self.methods, parts, strict=True)]
        for loss, optimizer in zip(losses, self.optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for parameters in zip(*(method.parameters() for method in self.methods), strict=True):
            gradients = [p.grad for p in parameters if p.grad is not None]
            for p in parameters:
                p.grad = torch.stack(gradients).mean(dim=0) if gradients else None
        for optimizer in self.optimizers:
            optimizer.step()
        sums = [torch.stack(same).sum(dim=0) for same in zip(*map(self.asked(step), self.methods), strict=True)]
        for method in self.methods:
            answers = iter(sums)
            method.after_update(step + 1, lambda _, answers=answers: next(answers))
        return torch.stack(losses).mean().item()

    def asked(self, step: int) -> Callable[[Any], list[Tensor]]:
        """What a method wants the sums of."""

        def ask(method: Any) -> list[Tensor]:
            wanted: list[Tensor] = []
            copy.deepcopy(method).after_update(step + 1, lambda tensor: wanted.append(tensor) or tensor)
            return wanted

        return ask


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_do_what_one_does(name: str) -> None:
    settings: dict[str, Any] = {"make_masks": hide_by_number} if name != "dino" else {}
    one = make(name, **settings)
    two = Ranks(one, 2)
    optimizer = sgd(one)
    for step in range(3):
        batch = uneven_batch(one, step)
        expected = update(one, optimizer, step, [batch])["loss"].item()
        assert two.update(step, batch) == pytest.approx(expected, abs=1e-6)
        assert apart(two.methods[0], two.methods[1]) == 0
        assert apart(one, two.methods[0]) < 1e-6


def test_ranks_that_keep_their_sums_to_themselves_would_differ() -> None:
    one = make("ibot", make_masks=hide_by_number)
    other = copy.deepcopy(one)
    update(one, sgd(one), 0, [uneven_batch(one, 0)])
    update(other, sgd(other), 0, split(uneven_batch(other, 0), 2)[:1])
    assert (one.patch_targets.center - other.patch_targets.center).abs().max() > 1e-4


def as_rank(work: Callable[[], None], variables: dict[str, str]) -> None:
    """Do something as a rank."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work()
    dist.barrier()
    os._exit(0)


def train_as_rank(path: str) -> None:
    """Make three updates with DDP, as a job does; the first rank writes the state."""

    def total(tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    method = make("ibot", make_masks=hide_by_number, freeze_share=0.05)
    parallel = DistributedDataParallel(method, find_unused_parameters=True)
    optimizer = sgd(method)
    for step in range(3):
        batch = split(uneven_batch(method, step), 2)[dist.get_rank()]
        ddp_update(parallel, optimizer, step, batch, total=total)
        frozen = method.student.head.last.get_parameter("parametrizations.weight.original1").grad is None
        assert frozen == (step == 0)
    if dist.get_rank() == 0:
        torch.save(method.state_dict(), path)


def ddp_update(parallel: Any, optimizer: torch.optim.Optimizer, step: int, batch: Batch, *, total: Total) -> None:
    """An update through DDP."""
    optimizer.zero_grad()
    parallel(*batch, step)["loss"].backward()
    optimizer.step()
    parallel.module.after_update(step + 1, total)


def test_two_processes_do_what_one_does(tmp_path: Any) -> None:
    path = str(tmp_path / "state")
    work = partial(train_as_rank, path)
    start_fork_server()
    ranks = [CONTEXT.Process(target=as_rank, args=(work, variables)) for variables in rank_variables(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, other = (make("ibot", make_masks=hide_by_number, freeze_share=0.05) for _ in range(2))
    optimizer = sgd(one)
    for step in range(3):
        update(one, optimizer, step, [uneven_batch(one, step)])
    other.load_state_dict(torch.load(path))
    assert apart(one, other) < 1e-6
    assert one.num_uniforms == TOKENS * 2
