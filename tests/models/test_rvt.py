"""RVT: attention that is plain until it learns positions, and tokens enough for small images."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from deeplense.models.rvt import RVT, PositionAwareAttention, conv_feed_forward
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0, patch_size: int = 8) -> RVT:
    """One block and one block."""
    return RVT(
        in_chans=in_chans,
        image_size=image_size,
        drop_path=drop_path,
        patch_size=patch_size,
        embed_dims=(24, 48),
        depths=(1, 1),
        num_heads=(2, 4),
    )


@pytest.mark.parametrize(("image_size", "in_chans"), [*SHAPES, (40, 1)])
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


@pytest.mark.parametrize(("patch_size", "tokens"), [(4, (256, 64)), (8, (64, 16)), (16, (16, 4))])
def test_an_image_of_64_pixels_has_these_tokens_in_the_two_stages(patch_size: int, tokens: tuple[int, int]) -> None:
    first, last = seen_attention(seeded(partial(small, image_size=64, patch_size=patch_size)), noise(2, 1, 64, 64))
    assert (first.shape[2:], last.shape[2:]) == ((tokens[0],) * 2, (tokens[1],) * 2)


def test_it_has_the_parameters_of_the_paper() -> None:
    backbone = RVT(in_chans=3, image_size=224, patch_size=16)
    scales = sum(module.scales.numel() for module in backbone.modules() if isinstance(module, PositionAwareAttention))
    with_classes = backbone_laws.count_parameters(backbone)
    assert with_classes == pytest.approx(10.9e6, rel=0.03)
    assert with_classes - scales == pytest.approx(8.6e6, rel=0.03), "RVT-Ti, without position-aware scaling"


def attention() -> PositionAwareAttention:
    """Of 9 tokens."""
    return seeded(lambda: PositionAwareAttention(12, 3, num_tokens=9))


def test_with_scales_of_one_attention_is_plain() -> None:
    module, tokens = attention(), noise(2, 9, 12)
    queries, keys, values = module.qkv(tokens).reshape(2, 9, 3, 3, 4).permute(2, 0, 3, 1, 4)
    plain = functional.scaled_dot_product_attention(queries, keys, values).permute(0, 2, 1, 3).reshape(2, 9, 12)
    torch.testing.assert_close(module(tokens), module.proj(plain))
    nn.init.constant_(module.scales, 2.0)
    twice = functional.scaled_dot_product_attention(2 * queries, keys, values).permute(0, 2, 1, 3).reshape(2, 9, 12)
    torch.testing.assert_close(module(tokens), module.proj(twice))


@torch.no_grad()
def test_a_scale_belongs_to_one_head_one_query_and_one_key() -> None:
    module, tokens = attention(), noise(1, 9, 12)
    seen: list[torch.Tensor] = []
    module.attn_drop.register_forward_hook(lambda *passed: seen.append(passed[2]))
    module(tokens)
    module.scales[1, 4, 7] = 0
    module(tokens)
    before, after = seen
    changed = (after != before).any(dim=-1)[0].nonzero().tolist()
    assert changed == [[1, 4]], "the weights of query 4 in head 1, for all of its keys"
    ratios = after[0, 1, 4] / before[0, 1, 4]
    others = torch.arange(9) != 7
    torch.testing.assert_close(ratios[others], ratios[:1].expand(8))


def test_the_feed_forward_looks_at_neighbours_and_no_further() -> None:
    layers = seeded(lambda: conv_feed_forward(4, 8))
    grid = noise(1, 4, 7, 7).requires_grad_()
    layers(grid)[0, :, 3, 3].sum().backward()
    assert grid.grad is not None
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert (grid.grad.abs().sum(dim=(0, 1)) > 0).equal(expected)
