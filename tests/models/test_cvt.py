"""The Convolutional vision Transformer."""

from typing import Any

import pytest
import torch
from torch import nn

from deeplense.models.cvt import ConvolvedAttention, CvT
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seen_attention


def small(*, image_size: int, in_chans: int, drop_path: float = 0.0) -> nn.Module:
    """A narrow CvT with few blocks."""
    dims, depths, num_heads = (8, 16, 24), (1, 1, 2), (1, 2, 3)
    return CvT(
        image_size=image_size, in_chans=in_chans, drop_path=drop_path, dims=dims, depths=depths, num_heads=num_heads
    )


@pytest.mark.parametrize(("image_size", "in_chans"), [*SHAPES, (86, 1), (61, 1)])
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_the_class_token_is_the_feature() -> None:
    backbone: Any = small(image_size=64, in_chans=1)
    backbone_laws.check_the_first_token_is_the_feature(backbone, backbone.stages[-1], noise(2, 1, 64, 64))


def test_it_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        backbone = CvT(in_chans=3, image_size=224)
    assert backbone_laws.count_parameters(backbone) == pytest.approx(20e6, rel=0.01)


@pytest.mark.parametrize(("image_size", "sides"), [(64, [16, 8, 4, 2]), (150, [38, 19, 10, 5])])
def test_keys_come_from_the_halved_map_and_the_last_stage_has_a_class_token(image_size: int, sides: list[int]) -> None:
    weights = seen_attention(small(image_size=image_size, in_chans=1), noise(2, 1, image_size, image_size))
    one, two, three, four = (side**2 for side in sides)
    assert [tuple(layer.shape[1:]) for layer in weights] == [
        (1, one, two),
        (2, two, three),
        (3, three + 1, four + 1),
        (3, three + 1, four + 1),
    ]


def test_with_convolutions_that_keep_the_map_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = ConvolvedAttention(12, 3, num_class_tokens=1, stride=1).eval()
    oracle = nn.MultiheadAttention(12, 3, batch_first=True)
    oracle.out_proj.load_state_dict(attention.project.state_dict())
    states = [linear.state_dict() for linear in attention.linear]
    for key, wanted in (("weight", oracle.in_proj_weight), ("bias", oracle.in_proj_bias)):
        wanted.data = torch.cat([state[key] for state in states])
    tokens = noise(2, 17, 12)
    assert (attention(tokens) - oracle(tokens, tokens, tokens)[0]).abs().max() > 1e-2
    for module in attention.convolve.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight, groups=12)
    torch.testing.assert_close(attention(tokens), oracle(tokens, tokens, tokens)[0], rtol=1e-4, atol=1e-5)


def test_the_weights_do_not_know_the_size_of_images() -> None:
    small(image_size=96, in_chans=1).load_state_dict(small(image_size=64, in_chans=1).state_dict())
