"""The CSWin transformer."""

from typing import Any

import pytest
import torch
from torch import nn

from deeplense.models.cswin import CrossAttention, CSWin
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seen_attention


def small(*, image_size: int, in_chans: int, drop_path: float = 0.0) -> nn.Module:
    """A narrow CSWin with few blocks."""
    dims, depths, num_heads = (8, 16, 24, 32), (1, 1, 2, 1), (2, 2, 4, 4)
    return CSWin(
        image_size=image_size, in_chans=in_chans, drop_path=drop_path, dims=dims, depths=depths, num_heads=num_heads
    )


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_it_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        tiny = CSWin(in_chans=3, image_size=224)
        small_one = CSWin(in_chans=3, image_size=224, depths=(2, 4, 32, 2))
    # The layers of the authors' own code make 22.3 million, too, where the paper says 23.
    assert backbone_laws.count_parameters(tiny) == pytest.approx(23e6, rel=0.031)
    assert backbone_laws.count_parameters(small_one) == pytest.approx(35e6, rel=0.02)


@pytest.mark.parametrize(
    ("image_size", "widths"), [(224, (1, 2, 7, 7)), (384, (1, 2, 12, 12)), (160, (1, 2, 5, 5)), (64, (1, 2, 2, 2))]
)
def test_stripes_are_as_wide_as_in_the_paper_or_in_proportion(image_size: int, widths: tuple[int, ...]) -> None:
    weights = seen_attention(small(image_size=image_size, in_chans=1), noise(1, 1, image_size, image_size))
    keys = [width * image_size // side for width, side in zip(widths, (4, 8, 16, 32), strict=True)]
    assert [layer.shape[-1] for layer in weights] == [keys[0]] * 2 + [keys[1]] * 2 + [keys[2]] * 4 + [keys[3]]


def test_stripes_are_columns_and_rows_until_the_map_is_one() -> None:
    backbone: Any = small(image_size=64, in_chans=1)
    stripes = [[branch.stripe for branch in blocks[-1].attention.branches] for blocks in backbone.stages]
    assert stripes == [[(16, 1), (1, 16)], [(8, 2), (2, 8)], [(4, 2), (2, 4)], [(2, 2)]]


def test_a_token_attends_to_a_cross_of_stripes() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2, stripes=((6, 2), (2, 6)))
    maps = noise(1, 6, 6, 8).requires_grad_()
    attention(maps)[0, 1, 4].square().sum().backward()
    assert maps.grad is not None
    cross = torch.zeros(6, 6, dtype=torch.bool)
    cross[0:2, :] = cross[:, 4:6] = True
    assert torch.equal(maps.grad[0].abs().sum(dim=-1) > 0, cross)


def test_where_the_stripe_is_the_map_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(12, 3, stripes=((4, 4),))
    branch: Any = attention.branches[0]
    oracle = nn.MultiheadAttention(12, 3, batch_first=True)
    oracle.out_proj.load_state_dict(attention.project.state_dict())
    with torch.no_grad():
        oracle.in_proj_weight.copy_(branch.queries_keys_values.weight)
        oracle.in_proj_bias.copy_(branch.queries_keys_values.bias)
        branch.positions.weight.zero_()
        branch.positions.bias.zero_()
    maps = noise(2, 4, 4, 12)
    tokens = maps.flatten(1, 2)
    torch.testing.assert_close(attention(maps).flatten(1, 2), oracle(tokens, tokens, tokens)[0], rtol=1e-4, atol=1e-5)
