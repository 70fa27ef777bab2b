"""LeJEPA against lightly's loss, and its test against the closed form."""

import math
from typing import Any

import pytest
import torch
from lightly.loss.lejepa_loss import LeJEPALoss
from tiny import make, make_batch, sgd, update
from torch import Tensor

from deeplense.ssl.lejepa import sigreg


def draw(*shape: int) -> Tensor:
    """Normal numbers, the same in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_that_of_lightly() -> None:
    method = make("lejepa", sigreg_weight=0.3)
    optimizer = sgd(method)
    oracle: Any = LeJEPALoss(lambda_param=0.3, sigreg_num_vectors=16)
    for step in range(4):
        views, random = make_batch(method, step)
        oracle.sigreg._generate_unit_vectors = lambda *_, step=step: method.directions(step)
        features = torch.cat([method.backbone(group.flatten(0, 1)) for group in views])
        embeddings = method.projector(features).unflatten(0, (5, 6))
        expected = oracle(global_proj=embeddings[:2], local_proj=embeddings[2:])
        found = update(method, optimizer, step, [(views, random)])
        assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def closed_form(values: list[float]) -> float:
    """The statistic of Epps and Pulley with the weight exp(-t^2 / 2), integrated over all t."""
    pairs = sum(math.exp(-((a - b) ** 2) / 2) for a in values for b in values) / len(values)
    singles = sum(math.exp(-(a**2) / 4) for a in values)
    return math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * singles + len(values) / math.sqrt(3))


def test_the_statistic_is_the_closed_form_where_the_integral_has_an_end() -> None:
    values = draw(50, 1)
    for shift in (0.0, 2.0):
        expected = closed_form((values + shift).flatten().tolist())
        found = sigreg((values + shift)[None], torch.ones(1, 1), highest=8.0, num_points=400)
        assert found.item() == pytest.approx(expected, abs=1e-3)


def test_normal_embeddings_are_told_from_others_at_any_number() -> None:
    directions = make("lejepa", out_dim=8, num_directions=64).directions(0)
    for count in (64, 1024):
        normal = draw(4, count, 8)
        collapsed, flat = torch.zeros(4, count, 8), normal * torch.tensor([1.0] * 4 + [0.1] * 4)
        assert sigreg(normal, directions) < 1.5
        assert sigreg(collapsed, directions) > 0.1 * count
        assert sigreg(flat, directions) > 2 * sigreg(normal, directions)


def test_directions_are_unit_vectors_that_change_with_the_step_alone() -> None:
    one, other = make("lejepa"), make("lejepa", seed=1)
    assert torch.allclose(one.directions(3).norm(dim=0), torch.ones(16), atol=1e-6)
    assert torch.equal(one.directions(3), other.directions(3))
    assert not torch.equal(one.directions(3), one.directions(4))


def test_it_spreads_its_embeddings() -> None:
    method = make("lejepa", sigreg_weight=0.5)
    with torch.no_grad():
        method.projector[-1].weight *= 1e-3
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = [update(method, optimizer, step, [make_batch(method, step, batch=32)]) for step in range(60)]
    assert losses[-1]["sigreg"] < 0.5 * losses[0]["sigreg"]
    assert losses[-1]["loss"] < losses[0]["loss"]
