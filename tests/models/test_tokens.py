"""Backbones for self-supervision against timm's own forward pass."""

from typing import cast

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from deeplense.models.registry import build
from deeplense.models.tokens import TokenEncoder, encoder_of, write_out_attention

PATCH, OWN, TOKENS = 16, 32, 4
KINDS = {
    "a class token": {"model_name": "test_vit"},
    "the mean of patches, registers, no class token": {"model_name": "test_vit2"},
    "attention to patches": {"model_name": "test_vit3"},
    "a norm before the blocks": {"model_name": "test_vit", "pre_norm": True},
}


def vit(kind: str, **options: object) -> VisionTransformer:
    """A small transformer of timm; what begins as zero or one is drawn, so that all of it counts."""
    torch.manual_seed(0)
    model = timm.create_model(**{"num_classes": 0, "img_size": OWN, "in_chans": 2} | KINDS[kind] | options)  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.std() == 0 or parameter.numel() == 1:
            nn.init.normal_(parameter, std=0.5)
    return cast(VisionTransformer, model.eval())


def images(size: int, *, seed: int = 0) -> Tensor:
    """A few random ones."""
    return torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_patches_are_those_of_timm(kind: str) -> None:
    features, patches = TokenEncoder(vit(kind)).tokens(images(OWN))
    plain = vit(kind)
    torch.testing.assert_close(features, plain(images(OWN)), atol=1e-6, rtol=0)
    expected = plain.forward_features(images(OWN))[:, plain.num_prefix_tokens :]
    torch.testing.assert_close(patches, expected, atol=1e-6, rtol=0)
    assert patches.shape == (3, TOKENS, plain.num_features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [PATCH, 3 * PATCH])
def test_at_other_sizes_they_are_those_of_timm_with_resampled_positions(kind: str, size: int) -> None:
    dynamic = vit(kind, dynamic_img_size=True)
    found = TokenEncoder(vit(kind))(images(size))
    torch.testing.assert_close(found, dynamic(images(size)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_patch_is_the_token_at_its_place_as_timm_would_see_it(kind: str) -> None:
    masks = torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    encoder, plain = TokenEncoder(vit(kind)), vit(kind)
    token = torch.randn(1, 1, plain.num_features)
    # timm's patches are (B, T, D), or (B, h, w, D) where sizes may change.
    plain.patch_embed.register_forward_hook(
        lambda _, given, patches: torch.where(masks.reshape(patches.shape[:-1])[..., None], token, patches)
    )
    features, patches = encoder.tokens(images(OWN), masks, token)
    torch.testing.assert_close(features, plain(images(OWN)), atol=1e-6, rtol=0)
    expected = plain.forward_features(images(OWN))[:, plain.num_prefix_tokens :]
    torch.testing.assert_close(patches, expected, atol=1e-6, rtol=0)


def test_no_pixel_of_a_hidden_patch_and_every_pixel_of_another_is_seen() -> None:
    encoder, shown = TokenEncoder(vit("a class token")), images(OWN).requires_grad_()
    masks = torch.tensor([[True, False, False, False]]).expand(3, -1)
    features, _ = encoder.tokens(shown, masks, torch.zeros(1, 1, encoder.vit.num_features))
    (gradient,) = torch.autograd.grad(features.square().sum(), shown)
    assert not gradient[..., :PATCH, :PATCH].any()
    assert gradient[..., :PATCH, PATCH:].all()
    assert gradient[..., PATCH:, :].all()


def test_blocks_that_are_computed_twice_change_no_gradient() -> None:
    def gradients(*, is_checkpointed: bool) -> list[Tensor]:
        encoder = TokenEncoder(vit("a class token", drop_path_rate=0.5)).train()
        encoder.vit.set_grad_checkpointing(is_checkpointed)
        torch.manual_seed(1)
        features, patches = encoder.tokens(images(OWN))
        return list(torch.autograd.grad(features.square().sum() + patches.cos().sum(), list(encoder.parameters())))

    assert all(map(torch.equal, gradients(is_checkpointed=True), gradients(is_checkpointed=False)))


def test_attention_that_is_written_out_is_the_same() -> None:
    fused, plain = TokenEncoder(vit("a class token")), TokenEncoder(vit("a class token"))
    write_out_attention(plain)
    attention = [module for module in plain.modules() if isinstance(module, Attention)]
    assert len(attention) == 6
    assert not any(module.fused_attn for module in attention)
    torch.testing.assert_close(plain(images(OWN)), fused(images(OWN)), atol=1e-5, rtol=0)


def test_images_without_whole_patches_are_refused() -> None:
    encoder = TokenEncoder(vit("a class token"))
    assert encoder.grid(48) == (3, 3)
    with pytest.raises(ValueError, match="20 pixels cannot be divided into patches of 16"):
        encoder(images(20))


def test_transformers_of_timm_have_tokens_and_other_backbones_are_as_they_are() -> None:
    transformer, other = (build(name, image_size=32, in_chans=1, num_outputs=3) for name in ("vit_tiny", "test_resnet"))
    encoder = encoder_of(transformer)
    assert isinstance(encoder, TokenEncoder)
    assert (encoder.patch_size, encoder.vit) == (8, transformer.backbone)
    assert encoder_of(other) is other.backbone
