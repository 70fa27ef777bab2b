"""T2T-ViT: tokens are joined step by step, with an attention that estimates the exact one."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from deeplense.models.t2t import T2TViT, TokenPerformer, linear_attention, orthogonal_directions, sinusoids
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0, patch_size: int = 8) -> T2TViT:
    """Two blocks."""
    return T2TViT(
        in_chans=in_chans,
        image_size=image_size,
        drop_path=drop_path,
        patch_size=patch_size,
        token_dim=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
    )


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


@pytest.mark.parametrize(("patch_size", "num_tokens"), [(4, 256), (8, 64), (16, 16)])
def test_there_is_a_token_for_each_patch_and_one_for_the_class(patch_size: int, num_tokens: int) -> None:
    weights = seen_attention(seeded(partial(small, image_size=64, patch_size=patch_size)), noise(2, 1, 64, 64))
    assert [tuple(weight.shape) for weight in weights] == [(2, 3, num_tokens + 1, num_tokens + 1)] * 2


def test_it_has_the_parameters_of_the_paper() -> None:
    backbone = T2TViT(in_chans=3, image_size=224, patch_size=16)
    assert backbone_laws.count_parameters(backbone) == pytest.approx(4.3e6, rel=0.03)


def test_more_directions_come_closer_to_exact_attention() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 30, 4) * torch.tensor([0.5, 0.5, 1])[:, None, None, None]
    expected = functional.scaled_dot_product_attention(queries, keys, values)
    errors = []
    for number in (1, 64, 4096):
        directions = torch.cat([orthogonal_directions(4, 4) for _ in range(number)])
        errors.append((linear_attention(queries, keys, values, directions) - expected).std())
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    of_a_plain_mean = (values.mean(dim=1, keepdim=True) - expected).std()
    assert errors[2] < of_a_plain_mean / 5


def test_directions_are_normal_and_at_right_angles() -> None:
    torch.manual_seed(0)
    directions = torch.stack([orthogonal_directions(8, 16) for _ in range(2000)])
    angles = directions @ directions.mT
    torch.testing.assert_close(angles, torch.diag_embed(angles.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-4)
    torch.testing.assert_close(directions.flatten(0, 1).T.cov(), torch.eye(16), rtol=0, atol=0.05)


def test_attention_of_one_key_is_its_value_however_large_the_numbers() -> None:
    torch.manual_seed(0)
    queries, keys, values = 1e3 * torch.randn(3, 2, 5, 16)
    directions = orthogonal_directions(16, 16)
    alone = linear_attention(queries, keys[:, :1], values[:, :1], directions)
    torch.testing.assert_close(alone, values[:, :1].expand(-1, 5, -1))
    assert linear_attention(queries, keys, values, directions).isfinite().all()


def test_positions_are_those_of_the_transformer() -> None:
    positions = sinusoids(50, 24)[0]
    for place, wave in ((0, 0), (7, 3), (49, 11)):
        angle = torch.tensor(place / 10000 ** (2 * wave / 24))
        torch.testing.assert_close(positions[place, 2 * wave], angle.sin())
        torch.testing.assert_close(positions[place, 2 * wave + 1], angle.cos())


def test_the_directions_are_saved_but_do_not_learn() -> None:
    backbone = seeded(small)
    assert "steps.0.directions" in backbone.state_dict()
    assert "steps.0.directions" not in dict(backbone.named_parameters())


@torch.no_grad()
def test_a_pixel_reaches_all_tokens_that_overlap_it_before_attention() -> None:
    backbone = seeded(small)
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16, 16] = 1
    assert isinstance(backbone.splits[0], nn.Unfold)
    assert (backbone.splits[0](image) != 0).any(dim=1).sum() == 9, "patches of 7 pixels, one for each 2"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_sums_over_many_tokens_stay_finite(dtype: torch.dtype) -> None:
    performer = seeded(lambda: TokenPerformer(8, 64))
    nn.init.zeros_(performer.qkv.weight)
    performer.qkv.bias[:128] = 0
    tokens = noise(1, 6400, 8)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(performer(tokens)[:, :1], performer(tokens[:, :1]), rtol=0.01, atol=0.01)
