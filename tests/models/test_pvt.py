"""The Pyramid Vision Transformer."""

from typing import Any

import pytest
from torch import nn

from deeplense.models.pvt import PVT
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seen_attention


def small(*, image_size: int, in_chans: int, drop_path: float = 0.0) -> nn.Module:
    """A narrow PVT with one block a stage."""
    sizes = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    return PVT(image_size=image_size, in_chans=in_chans, drop_path=drop_path, **sizes)


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_the_class_token_is_the_feature() -> None:
    backbone: Any = small(image_size=64, in_chans=1)
    backbone_laws.check_the_first_token_is_the_feature(backbone, backbone.stages[-1], noise(2, 1, 64, 64))


def test_it_has_the_parameters_of_the_paper() -> None:
    assert backbone_laws.count_parameters(PVT(in_chans=3, image_size=224)) == pytest.approx(13.2e6, rel=0.01)


@pytest.mark.parametrize(
    ("image_size", "num_keys"),
    [(224, [49, 49, 49, 50]), (160, [25, 25, 25, 26]), (64, [4, 4, 4, 5]), (32, [4, 4, 4, 2])],
)
def test_all_stages_attend_to_equally_many_keys(image_size: int, num_keys: list[int]) -> None:
    weights = seen_attention(small(image_size=image_size, in_chans=1), noise(2, 1, image_size, image_size))
    assert [layer.shape[-1] for layer in weights] == num_keys
    assert [layer.shape[-2] for layer in weights[:-1]] == [(image_size // side) ** 2 for side in (4, 8, 16)]
    assert [layer.shape[1] for layer in weights] == [1, 2, 3, 4]
