"""The RegionViT."""

import pytest
import torch
from torch import Tensor, nn

from deeplense.models.regionvit import RegionalBlock, RegionViT, Stage
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seen_attention


def small(*, image_size: int, in_chans: int, drop_path: float = 0.0) -> nn.Module:
    """A narrow RegionViT with few blocks."""
    dims, depths, num_heads = (12, 24, 48, 96), (1, 1, 2, 2), (1, 2, 3, 4)
    return RegionViT(
        image_size=image_size, in_chans=in_chans, drop_path=drop_path, dims=dims, depths=depths, num_heads=num_heads
    )


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_it_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        tiny = RegionViT(in_chans=3, image_size=224)
    assert backbone_laws.count_parameters(tiny) == pytest.approx(13.8e6, rel=0.01)


@pytest.mark.parametrize(("image_size", "window"), [(224, 7), (160, 5), (64, 2), (32, 1)])
def test_regions_attend_to_one_another_and_then_to_their_own(image_size: int, window: int) -> None:
    weights = seen_attention(small(image_size=image_size, in_chans=1), noise(2, 1, image_size, image_size))
    among, within = weights[0::2], weights[1::2]
    assert [tuple(layer.shape[::3]) for layer in among] == [(2, 64), (2, 16), (2, 4), (2, 4), (2, 1), (2, 1)]
    assert {layer.shape[-1] for layer in within} == {1 + window**2}
    assert [len(layer) for layer in within] == [2 * layer.shape[-1] for layer in among]


def test_local_tokens_see_their_region_and_of_other_regions_the_regional_tokens_alone() -> None:
    torch.manual_seed(0)
    stage = Stage([RegionalBlock(8, 2, mlp_ratio=2, drop_path=0.0)], window=3, num_heads=2)
    regions, maps = noise(1, 8, 2, 2).requires_grad_(), noise(1, 8, 6, 6).requires_grad_()
    stage(regions, maps)[1][0, :, 4, 1].square().sum().backward()
    assert maps.grad is not None
    assert regions.grad is not None
    own = torch.zeros(6, 6, dtype=torch.bool)
    own[3:, :3] = True
    assert torch.equal(maps.grad[0].abs().sum(dim=0) > 0, own)
    assert (regions.grad[0].abs().sum(dim=0) > 0).all()


def test_the_bias_is_between_local_tokens_alone() -> None:
    torch.manual_seed(0)
    stage = Stage([RegionalBlock(8, 2, mlp_ratio=2, drop_path=0.0)], window=2, num_heads=2)

    def after(bias: float) -> tuple[Tensor, Tensor]:
        nn.init.constant_(stage.bias.relative_position_bias_table, bias)
        return stage(noise(1, 8, 2, 2), noise(1, 8, 4, 4))

    (regions, local), (same_regions, other_local) = after(0.0), after(3.0)
    assert torch.equal(regions, same_regions)
    assert (local - other_local).abs().max() > 1e-4


def test_a_stage_leaves_tokens_where_they_are() -> None:
    stage = Stage([], window=3, num_heads=2)
    regions, maps = noise(2, 8, 2, 2), noise(2, 8, 6, 6)
    for after, before in zip(stage(regions, maps), (regions, maps), strict=True):
        assert torch.equal(after, before)
