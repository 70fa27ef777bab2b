"""The CrossFormer."""

from typing import Any

import pytest
import torch
from torch import nn

from deeplense.models.crossformer import (
    CrossFormer,
    CrossScaleEmbedding,
    GroupAttention,
    PositionBias,
    bring_together,
    nearest_divisor,
)
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seen_attention


def small(*, image_size: int, in_chans: int, drop_path: float = 0.0) -> nn.Module:
    """A narrow CrossFormer with few blocks."""
    dims, depths, num_heads = (8, 16, 24, 32), (2, 1, 2, 1), (1, 2, 3, 4)
    return CrossFormer(
        image_size=image_size, in_chans=in_chans, drop_path=drop_path, dims=dims, depths=depths, num_heads=num_heads
    )


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_it_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        tiny = CrossFormer(in_chans=3, image_size=224)
    assert backbone_laws.count_parameters(tiny) == pytest.approx(27.8e6, rel=0.01)


@pytest.mark.parametrize(
    ("image_size", "groups"), [(224, (7, 7, 7, 7)), (160, (8, 5, 5, 5)), (64, (8, 8, 4, 2)), (32, (8, 4, 2, 1))]
)
def test_groups_have_49_tokens_where_they_can_and_else_about_as_many(image_size: int, groups: tuple[int, ...]) -> None:
    weights = seen_attention(small(image_size=image_size, in_chans=1), noise(1, 1, image_size, image_size))
    one, two, three, four = (group**2 for group in groups)
    assert [layer.shape[-1] for layer in weights] == [one, one, two, three, three, four]


@pytest.mark.parametrize(
    ("number", "divisor"), [(1, 1), (8, 8), (11, 11), (22, 11), (20, 5), (13, 13), (3, 3), (56, 7)]
)
def test_the_nearest_divisor_is_so_in_ratio(number: int, divisor: int) -> None:
    assert nearest_divisor(number, 7) == divisor


def test_tokens_that_lie_apart_become_neighbours_and_go_back() -> None:
    columns = torch.arange(12.0).expand(1, 12, 12)[..., None]
    assert bring_together(columns, 4)[0, 0, :, 0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    maps = noise(2, 12, 12, 3)
    assert torch.equal(bring_together(maps.transpose(1, 2), 4), bring_together(maps, 4).transpose(1, 2))
    assert torch.equal(bring_together(bring_together(maps, 4), 3), maps)
    assert torch.equal(bring_together(maps, 1), maps)


def test_attention_to_neighbours_and_to_distant_tokens_take_turns() -> None:
    backbone: Any = small(image_size=224, in_chans=1)
    intervals = [[block.attention.interval for block in blocks] for blocks in backbone.stages]
    assert intervals == [[1, 8], [1], [1, 2], [1]]


@pytest.mark.parametrize(("row", "column"), [(5, 16), (0, 20), (11, 3)])
@pytest.mark.parametrize("is_long", [False, True])
def test_a_token_attends_to_its_window_or_to_a_lattice(is_long: bool, row: int, column: int) -> None:
    torch.manual_seed(0)
    attention = GroupAttention(8, 2, side=21, is_long=is_long)
    maps = noise(1, 21, 21, 8).requires_grad_()
    attention(maps)[0, row, column].square().sum().backward()
    assert maps.grad is not None
    expected = torch.zeros(21, 21, dtype=torch.bool)
    windows = (slice(row // 7 * 7, row // 7 * 7 + 7), slice(column // 7 * 7, column // 7 * 7 + 7))
    expected[(slice(row % 3, None, 3), slice(column % 3, None, 3)) if is_long else windows] = True
    assert torch.equal(maps.grad[0].abs().sum(dim=-1) > 0, expected)


def test_the_bias_is_the_mlp_of_the_offset_of_two_tokens() -> None:
    torch.manual_seed(0)
    bias = PositionBias(4, 3, group=3)
    rows_and_columns = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    wanted = bias.mlp(rows_and_columns[:, None] - rows_and_columns).permute(2, 0, 1)
    torch.testing.assert_close(bias()[0], wanted)
    assert wanted.std() > 0.01


def test_smaller_patches_have_more_features() -> None:
    embedding: Any = CrossScaleEmbedding(1, 64, kernel_sizes=(4, 8, 16, 32), stride=4)
    assert [patches.out_channels for patches in embedding.patches] == [32, 16, 8, 8]
    assert embedding(noise(1, 1, 32, 32)).shape == (1, 64, 8, 8)
