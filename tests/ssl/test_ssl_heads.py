"""Heads against those of lightly."""

import copy
from typing import Any

import pytest
import torch
from lightly.models.modules.heads import (
    DINOProjectionHead,
    LeJEPAProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from torch import nn

from deeplense.ssl.heads import DINOHead, lejepa_projector, simsiam_predictor, simsiam_projector

FEATURES = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))


def test_the_head_of_dino_is_that_of_lightly() -> None:
    torch.manual_seed(0)
    oracle: Any = DINOProjectionHead(12, 24, 8, 32)
    head = copy.deepcopy(DINOHead(12, out_dim=32, hidden_dim=24, bottleneck_dim=8))
    head.mlp.load_state_dict(oracle.layers.state_dict())
    with torch.no_grad():
        head.last.get_parameter("parametrizations.weight.original1").copy_(oracle.last_layer.weight_v)
    assert torch.allclose(head(FEATURES), oracle(FEATURES), atol=1e-6)
    assert [p.requires_grad for p in head.parameters()] == [True] * 6 + [False, True]
    assert torch.equal(head(FEATURES, frozen=True), head(FEATURES))


def test_cosines_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    head = DINOHead(12, out_dim=32, hidden_dim=24, bottleneck_dim=8)
    head.mlp = nn.Sequential(nn.Identity())
    features = FEATURES[:, :8].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        cosines = head(features)
    assert torch.allclose(cosines, head(features.float()), atol=1e-6)
    assert (cosines - cosines.bfloat16()).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("found", "oracle"),
    [
        (simsiam_projector(12, hidden_dim=24, out_dim=20), SimSiamProjectionHead(12, 24, 20)),
        (simsiam_predictor(12, hidden_dim=6), SimSiamPredictionHead(12, 6, 12)),
        (lejepa_projector(12, hidden_dim=24, out_dim=20), LeJEPAProjectionHead(12, 24, 20)),
    ],
)
def test_other_heads_are_those_of_lightly(found: nn.Sequential, oracle: nn.Module) -> None:
    found.load_state_dict(oracle.get_submodule("layers").state_dict())
    assert torch.equal(found(FEATURES), oracle(FEATURES))
