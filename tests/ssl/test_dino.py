"""DINO against lightly's loss, and against the paper's pseudo-code, written out."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.models.utils import update_momentum
from tiny import NUM_STEPS, WITH_TEACHER, adamw, make, make_batch, sgd, train, update
from torch import Tensor, nn
from torch.nn import functional

from deeplense.ssl.pairs import mean_product
from deeplense.ssl.teacher import Targets, follow, make_teacher

WARM: dict[str, Any] = {"warmup_teacher_temp": 0.03, "teacher_temp": 0.07, "warmup_share": 0.2}


def temperature(step: int) -> float:
    """The teacher's with these settings: a line over 4 of 20 steps."""
    return 0.03 + 0.04 * min(step / 4, 1)


def test_the_loss_and_the_centre_are_those_of_lightly() -> None:
    method = make("dino", **WARM)
    optimizer = sgd(method)
    oracle = DINOLoss(output_dim=32, center_momentum=0.9)
    for step in range(6):
        views, random = make_batch(method, step)
        with torch.no_grad():
            teacher, student = method.teacher(views[:1]), method.student(views)
        expected = oracle(list(teacher), list(student), teacher_temp=temperature(step))
        found = update(method, optimizer, step, [(views, random)])["loss"]
        assert found.item() == pytest.approx(expected.item(), abs=1e-5), step
        assert (method.targets.center - oracle.center.flatten()).abs().max() < 1e-7
    assert method.targets.center.norm() > 0.1


class ByHand:
    """Algorithm 1 of the paper with multi-crop, as loops over views and samples; weights are plain lists."""

    def __init__(self, method: Any) -> None:
        self.student, self.teacher = make_teacher(method.student).requires_grad_(True), make_teacher(method.student)
        for network in (self.student, self.teacher):
            network.head.last.get_parameter("parametrizations.weight.original0").requires_grad_(False)
        self.optimizer = adamw(self.student)
        self.center = torch.zeros(32)

    def output(self, network: nn.Module, view: Tensor) -> Tensor:
        """The head by its definition, on one image."""
        features = network.get_submodule("backbone")(view[None])[0]
        hidden = network.get_submodule("head.mlp")(features)
        rows = network.get_parameter("head.last.parametrizations.weight.original1")
        return torch.stack([hidden @ row / hidden.norm() / row.norm() for row in rows])

    def update(self, step: int, views: list[Tensor]) -> float:
        """One update, of the student, of the teacher, of the centre."""
        crops, num_samples = [view for group in views for view in group], views[0].shape[1]
        targets = [[self.output(self.teacher, image).detach() for image in view] for view in views[0]]
        terms = []
        for b in range(num_samples):
            for t, target in enumerate(targets):
                p = torch.softmax((target[b] - self.center) / temperature(step), dim=0)
                for s, crop in enumerate(crops):
                    if s != t:
                        q = torch.softmax(self.output(self.student, crop[b]) / 0.1, dim=0)
                        terms.append(-(p * q.log()).sum())
        loss = torch.stack(terms).sum() / len(terms)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        momentum = 1 - (1 - 0.9) * (math.cos(math.pi * step / NUM_STEPS) + 1) / 2
        with torch.no_grad():
            for own, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                own.copy_(momentum * own + (1 - momentum) * new)
        self.center = 0.9 * self.center + 0.1 * torch.stack([t for target in targets for t in target]).mean(dim=0)
        return loss.item()


def test_some_updates_are_those_of_the_paper() -> None:
    method = make("dino", momentum=0.9, freeze_share=0, **WARM)
    by_hand = ByHand(method)
    optimizer = adamw(method)
    for step in range(4):
        views, random = make_batch(method, step, batch=3)
        expected = by_hand.update(step, views)
        assert update(method, optimizer, step, [(views, random)])["loss"].item() == pytest.approx(expected, abs=1e-5)
    for found, wanted in ((method.student, by_hand.student), (method.teacher, by_hand.teacher)):
        for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
            assert torch.allclose(one, other, atol=2e-5), name
    assert torch.allclose(method.targets.center, by_hand.center, atol=1e-6)


def test_the_loss_is_the_entropy_of_the_teacher_and_the_divergence_of_the_student() -> None:
    method = make("dino", **WARM)
    views, random = make_batch(method, 0)
    metrics = method(views, random, 10)
    targets = method.targets(method.teacher(views[:1]), 10)
    student = (method.student(views) / 0.1).log_softmax(dim=-1)
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    divergences = [functional.kl_div(student[s], targets[t], reduction="batchmean") for t, s in pairs]
    assert metrics["kl"].item() == pytest.approx(torch.stack(divergences).mean().item(), abs=1e-5)
    assert metrics["teacher_entropy"].item() == pytest.approx(
        torch.distributions.Categorical(probs=targets).entropy().mean().item(), abs=1e-5
    )
    assert torch.allclose(method.prototypes(views[0][1], 10), targets[1], atol=1e-6)


def test_one_view_is_refused() -> None:
    method = make("dino")
    views, random = make_batch(method, 0)
    with pytest.raises(ValueError, match="at least two views"):
        method([views[0][:1]], random, 0)
    with pytest.raises(ValueError, match="at least two views"):
        mean_product(torch.ones(1, 4, 3), torch.ones(1, 4, 3))


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_teacher_is_the_running_mean_of_the_student(name: str) -> None:
    method = make(name, momentum=0.8)
    start = [p.clone() for p in method.teacher.parameters()]
    optimizer, seen = sgd(method), []
    for step in range(4):
        train(method, optimizer, range(step, step + 1))
        seen.append([p.detach().clone() for p in method.student.parameters()])
    momenta = [1 - 0.2 * (1 + math.cos(math.pi * step / NUM_STEPS)) / 2 for step in range(4)]
    for k, (found, first) in enumerate(zip(method.teacher.parameters(), start, strict=True)):
        expected = math.prod(momenta) * first.double()
        for step, weights in enumerate(seen):
            expected = expected + math.prod(momenta[step + 1 :]) * (1 - momenta[step]) * weights[k].double()
        assert torch.allclose(found.double(), expected, atol=1e-6)


def test_statistics_of_batch_norm_follow_and_counts_are_copied() -> None:
    student: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher, oracle = make_teacher(student), make_teacher(student)
    for k in range(3):
        student(torch.randn(8, 3) + k)
        with torch.no_grad():
            student[0].weight += 0.1
        before = teacher[1].running_mean.clone()
        follow(teacher, student, momentum=0.7)
        update_momentum(student, oracle, m=0.7)
        assert torch.allclose(teacher[1].running_mean, 0.7 * before + 0.3 * student[1].running_mean)
        assert torch.allclose(teacher[0].weight, oracle[0].weight, atol=1e-7)
    assert teacher[1].num_batches_tracked == student[1].num_batches_tracked == 3


def test_a_centre_that_sees_nothing_stays() -> None:
    targets = Targets(3, momentum=0.9, temperature=lambda step: 1.0)
    targets.center += torch.tensor([1.0, 2.0, 3.0])
    targets.gather(torch.zeros(0, 3))
    targets.update(lambda tensor: tensor)
    assert torch.equal(targets.center, torch.tensor([1.0, 2.0, 3.0]))
    targets.gather(torch.zeros(1, 3))
    targets.gather(torch.full((3, 3), 4.0))
    targets.update(lambda tensor: tensor)
    assert torch.allclose(targets.center, torch.tensor([1.2, 2.1, 3.0]))


def test_the_last_layer_is_free_after_the_first_steps() -> None:
    method = make("dino", freeze_share=0.1)
    optimizer = adamw(method)
    weight = method.student.head.last.get_parameter("parametrizations.weight.original1")
    start = weight.detach().clone()
    train(method, optimizer, range(2))
    assert weight.grad is None
    assert weight not in optimizer.state
    assert torch.equal(weight, start)
    train(method, optimizer, range(2, 12))
    assert not torch.equal(weight, start)
    assert optimizer.state[weight]["step"] == 10
    assert torch.allclose(method.student.head.last.weight.norm(dim=1), torch.ones(32), atol=1e-6)
