"""What a model costs, against numbers that were counted by others, and by hand."""

import pytest
import timm
import torch
from torch import nn

from deeplense.models.flops import flops_of


@pytest.mark.parametrize(("name", "billions"), [("resnet18", 1.814), ("vit_tiny_patch16_224", 1.26)])
def test_operations_are_twice_the_published_products_with_sums(name: str, billions: float) -> None:
    """Products with sums at 224 pixels: He et al. 2016 (1.8), Touvron et al. 2021 (1.3), as fvcore counts them."""
    network = timm.create_model(name).eval()
    assert flops_of(network, torch.zeros(1, 3, 224, 224)) == pytest.approx(2e9 * billions, rel=0.03)


def test_operations_of_a_convolution_are_those_counted_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 64, 7))
    assert flops_of(network, torch.zeros(1, 2, 8, 8)) == 2 * (2 * 5 * 9 * 64 + 5 * 64 * 7)
    assert network.training


def test_fused_attention_counts_as_much_as_attention_written_out() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1)
    fused = flops_of(network, torch.zeros(1, 1, 32, 32))
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    assert flops_of(network, torch.zeros(1, 1, 32, 32)) == fused
