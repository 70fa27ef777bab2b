"""The panel: what is known to have collapsed is seen, and nothing else."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplense.ssl.collapse import collapse_panel, embedding_std, rankme, verdict


def draw(*shape: int) -> Tensor:
    """Normal numbers, the same in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


RANDOM, POINT = draw(2048, 384), draw(1, 384) + 0.01 * draw(2048, 384)
LINE = draw(2048, 1) * draw(1, 384) + 1e-3 * draw(2048, 384)
PROTOTYPES = (draw(2048, 64) / 0.3).softmax(dim=1)
UNIFORM = (0.05 * draw(2048, 64)).softmax(dim=1)
ONE = (20 * torch.eye(64)[:1] + draw(2048, 64)).softmax(dim=1)
HARD = torch.eye(64).repeat(32, 1)


def test_the_std_is_that_of_normalised_embeddings_in_units_of_random_ones() -> None:
    for features in (RANDOM, POINT, LINE, 3 * RANDOM + 1):
        directions = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
        expected = directions.std(axis=0, ddof=1).mean() * math.sqrt(384)
        assert embedding_std(features).item() == pytest.approx(expected, abs=1e-6)
    assert embedding_std(RANDOM).item() == pytest.approx(1, abs=1e-3)
    assert embedding_std(torch.ones(20, 8)).item() == pytest.approx(0, abs=1e-6)


def test_rankme_is_the_papers_and_counts_dimensions() -> None:
    for features in (RANDOM[:300, :40], POINT[:300, :40]):
        values = torch.linalg.svd(features.double()).S
        shares = [value / values.sum() + 1e-7 for value in values]
        expected = math.exp(-sum(share * math.log(share) for share in shares))
        assert rankme(features).item() == pytest.approx(expected, rel=1e-4)
    orthogonal, _ = torch.linalg.qr(draw(100, 5))
    assert rankme(orthogonal @ torch.linalg.qr(draw(384, 5))[0].T).item() == pytest.approx(5, abs=0.01)
    assert rankme(RANDOM).item() == pytest.approx(374, abs=1)
    for constant in (torch.ones(20, 8), torch.zeros(20, 8)):
        assert rankme(constant).item() == pytest.approx(1, abs=1e-3)


def test_prototypes_are_counted() -> None:
    hard = collapse_panel(RANDOM, probabilities=HARD)
    assert (hard["teacher_entropy"], hard["kl_uniform"]) == pytest.approx((0, 0), abs=1e-5)
    assert (hard["prototypes_used"], hard["prototypes_effective"]) == pytest.approx((1, 64))
    one = collapse_panel(RANDOM, probabilities=HARD[:1].expand(10, -1))
    assert (one["teacher_entropy"], one["kl_uniform"]) == pytest.approx((0, math.log(64)))
    assert (one["prototypes_used"], one["prototypes_effective"]) == pytest.approx((0.1, 1))
    two = collapse_panel(RANDOM, probabilities=torch.eye(64)[[0, 0, 1, 1]])
    assert (two["prototypes_used"], two["prototypes_effective"]) == pytest.approx((0.5, 2))
    uniform = collapse_panel(RANDOM, probabilities=torch.full((10, 64), 1 / 64))
    assert (uniform["teacher_entropy"], uniform["teacher_entropy_share"]) == pytest.approx((math.log(64), 1))
    assert "center_norm" not in uniform
    assert collapse_panel(RANDOM, center=torch.tensor([3.0, 4.0]))["center_norm"] == 5


def test_the_entropy_and_the_divergence_are_their_definitions() -> None:
    panel = collapse_panel(RANDOM, probabilities=PROTOTYPES)
    entropies = torch.distributions.Categorical(probs=PROTOTYPES).entropy()
    assert panel["teacher_entropy"] == pytest.approx(entropies.mean().item(), rel=1e-5)
    mean = PROTOTYPES.mean(dim=0)
    expected = sum(p * math.log(p * 64) for p in mean.tolist())
    assert panel["kl_uniform"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("features", "probabilities", "words"),
    [
        (RANDOM, PROTOTYPES, ""),
        (RANDOM, HARD, ""),
        (RANDOM, None, ""),
        (0.3 * RANDOM + draw(1, 384), PROTOTYPES, ""),
        (POINT, PROTOTYPES, r"The embeddings have collapsed to a point: their std is 0\.01\d* of"),
        (torch.zeros(20, 8), None, r"to a point: their std is 0 of"),
        (LINE, PROTOTYPES, r"collapsed to few dimensions: RankMe is 1\.\d+"),
        (RANDOM, ONE, r"^The teacher has collapsed to few prototypes: the effective number is 1(\.0\d*)?\."),
        (RANDOM, UNIFORM, r"^The teacher has collapsed to a uniform distribution: its entropy is (100\.0|99\.\d)%"),
        (POINT, ONE, r"a point.*few prototypes"),
        (RANDOM * math.nan, PROTOTYPES, r"^Not all metrics are finite: embedding_std, rankme\.$"),
    ],
)
def test_a_verdict_says_how_it_has_collapsed(features: Tensor, probabilities: Tensor | None, words: str) -> None:
    found = verdict(collapse_panel(features, probabilities=probabilities))
    if words:
        assert re.search(words, found), found
    else:
        assert found == ""
