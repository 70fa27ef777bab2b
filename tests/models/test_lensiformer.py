"""Lensiformer: its encoder learns, its lens is a lens, and its attention is the paper's."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from deeplense.models import lensiformer
from deeplense.models.lensiformer import Lensiformer, LocalityAttention, ShiftedPatches
from deeplense.models.source_plane import Positions, source_image, splat
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0, depth: int = 1) -> Lensiformer:
    """Narrow, with few blocks."""
    return Lensiformer(in_chans=in_chans, image_size=image_size, drop_path=drop_path, depth=depth, dim=32, num_heads=2)


def share_without_gradient(model: nn.Module, images: Tensor) -> float:
    """Of all parameters, the share in tensors that a backward pass does not reach, or not with numbers."""
    model(images).square().sum().backward()
    parameters = list(model.parameters())
    unreached = [p for p in parameters if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    return sum(p.numel() for p in unreached) / sum(p.numel() for p in parameters)


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(partial(small, depth=2), image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_with_rounded_positions_as_published_the_encoder_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(images: Tensor, positions: Positions) -> Tensor:
        return source_image(images, (positions[0].round(), positions[1].round()))

    monkeypatch.setattr(lensiformer, "source_image", rounded)
    model = seeded(small)
    encoder = [model.lensed, model.encoder, model.norm_radius, model.to_radius]
    share = sum(p.numel() for part in encoder for p in part.parameters()) / sum(p.numel() for p in model.parameters())
    assert share_without_gradient(model, noise(2, 1, 32, 32)) == pytest.approx(share)
    assert share > 0.3


@pytest.mark.parametrize("size", [32, 64])
def test_einstein_radii_stay_within_the_published_bounds_and_pixels_differ(size: int) -> None:
    model = seeded(partial(small, image_size=size))
    with torch.no_grad():
        model.to_radius.fc2.weight.mul_(1e4)
        radius = model.einstein_radius(noise(2, 1, size, size)) / (size / 2)
    low, high = 0.8 / 3.232, 1.2 / 3.232
    assert radius.min().item() == pytest.approx(low, rel=0.01)
    assert radius.max().item() == pytest.approx(high, rel=0.01)


def test_radii_of_a_patch_belong_to_its_own_pixels() -> None:
    model, seen = seeded(partial(small, image_size=16)), []
    model.norm_radius.register_forward_hook(lambda _, given, result: seen.append(result.requires_grad_()))
    radius = model.einstein_radius(noise(1, 1, 16, 16))
    (gradient,) = torch.autograd.grad(radius[0, :8, 8:].sum(), seen[0])
    assert gradient[0].any(dim=1).tolist() == [False, True, False, False]


def test_a_ring_at_the_einstein_radius_that_it_starts_from_is_a_point_in_its_source_plane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        lensiformer, "source_image", lambda *given: seen.append(splat(*given)[0]) or source_image(*given)
    )
    model = seeded(partial(small, image_size=64))
    along = torch.arange(64) - 31.5
    radius = torch.hypot(along[None, :], along[:, None])
    truth = lensiformer.UNIT * 32
    for ring in (truth, truth + 6):
        model((radius - ring).abs().lt(1).float()[None, None])
    right, wrong = (sums[0, 0, 29:35, 29:35].sum() / sums.sum() for sums in seen)
    assert right > 0.99
    assert wrong < 0.01


def test_shifted_patches_see_half_a_patch_beyond_their_own_along_the_diagonals() -> None:
    tokens = ShiftedPatches(in_chans=1, image_size=24, patch_size=8, dim=4)
    images = noise(1, 1, 24, 24).requires_grad_()
    tokens(images)[0, 4].sum().backward()
    assert images.grad is not None
    seen = images.grad[0, 0] != 0
    assert seen[4:20, 4:20].all()
    assert seen.sum() == 16 * 16


def attention() -> LocalityAttention:
    torch.manual_seed(0)
    return LocalityAttention(dim=8, num_heads=2)


def test_no_token_attends_to_itself_and_weights_add_up_to_one() -> None:
    module, weights = attention(), []
    module.fused_attn = False
    module.attn_drop.register_forward_hook(lambda _, given, result: weights.append(result))
    module(noise(2, 5, 8), noise(2, 5, 8))
    assert weights[0].shape == (2, 2, 5, 5)
    assert not weights[0].diagonal(dim1=-2, dim2=-1).any()
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 2, 5))


def test_attention_is_torchs_with_that_mask_at_the_temperature_it_starts_from() -> None:
    module, tokens, values = attention(), noise(2, 5, 8), noise(2, 5, 8) + 1
    oracle = nn.MultiheadAttention(8, 2, bias=True, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([module.query_key.weight, module.value.weight]))
        oracle.in_proj_bias.zero_()
        oracle.out_proj.load_state_dict(module.proj.state_dict())
        expected, _ = oracle(tokens, tokens, values, attn_mask=torch.eye(5, dtype=torch.bool))
        torch.testing.assert_close(module(tokens, values), expected, rtol=1e-5, atol=1e-6)
        module.log_scale.add_(1)
        assert not torch.allclose(module(tokens, values), expected, atol=1e-3)


def test_the_weights_of_the_encoder_and_the_decoder_are_seen() -> None:
    weights = seen_attention(seeded(partial(small, in_chans=2)), noise(3, 2, 32, 32))
    assert [tuple(layer.shape) for layer in weights] == [(3, 2, 16, 16)] * 2


def test_an_image_of_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="8 pixels have fewer with patch_size=8; use images of 16"):
        small(image_size=8)


def test_it_is_smaller_than_the_published_one_whose_radii_come_from_all_tokens_at_once() -> None:
    """Published: 13,236,356 parameters, 8,515,073 of them in the encoder, 5 x 384 x 4096 in its last layer alone. Ours
    learns one map from a token to the 64 pixels of its patch."""
    model = Lensiformer(in_chans=1, image_size=64)
    assert sum(p.numel() for p in model.to_radius.parameters()) == 384 * 384 + 384 + 384 * 64 + 64
    assert 4 * sum(p.numel() for p in model.parameters()) < 13_236_356
