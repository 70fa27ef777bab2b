"""LensViT-PINN: every part learns, from the classes too; its lens is the one it was told; its edges stand noise."""

import math
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from deeplense.models.lensvit_pinn import PENALTY_WEIGHT, LensViTPINN, edges
from deeplense.models.source_plane import pixel_grid, sis_deflection, source_image, trace_back
from tests.models import backbone_laws
from tests.models.backbone_laws import noise, seeded, seen_attention


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0, **changes: Any) -> LensViTPINN:
    """With the tiny encoder of one block."""
    settings = {"encoder": "vit_tiny_patch16_224", "depth": 1, "patch_size": 8} | changes
    return LensViTPINN(in_chans=in_chans, image_size=image_size, drop_path=drop_path, **settings)


def set_sphere(model: LensViTPINN, size: int, theta_E: float) -> None:
    """Make the encoder say for all images that the lens is a sphere."""
    sphere = sis_deflection(*pixel_grid(torch.empty(size, size)), theta_E=torch.tensor(theta_E))
    with torch.no_grad():
        model.deflection.weight.zero_()
        model.deflection.bias.copy_(torch.stack(sphere).flatten())


def without_gradient(model: nn.Module) -> list[str]:
    """Parameters that the last backward pass has not reached, or not with numbers."""
    return [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]


@pytest.mark.parametrize(("image_size", "in_chans", "gradient"), [(32, 5, True), (64, 3, False), (160, 1, False)])
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int, gradient: bool) -> None:
    make = partial(small, gradient=gradient, patch_size=16 if image_size == 160 else 8)
    backbone_laws.check_backbone(make, image_size=image_size, in_chans=in_chans)


def test_the_penalty_alone_teaches_the_encoder_but_not_the_classifier() -> None:
    model = seeded(small).train()
    model(noise(2, 1, 32, 32))[1].sum().backward()
    unreached = without_gradient(model)
    assert unreached == [name for name, _ in model.named_parameters() if name.startswith("classifier.")]


@pytest.mark.parametrize("size", [32, 64])
def test_it_starts_at_an_einstein_radius_of_a_quarter_of_half_the_image(size: int) -> None:
    model, images = seeded(partial(small, image_size=size)).train(), noise(4, 1, size, size)
    alpha, penalty = model.estimate_deflection(images), model(images)[1]
    theta_E = torch.linalg.vector_norm(alpha, dim=1).mean((1, 2))
    assert theta_E.tolist() == pytest.approx([size / 8] * 4, rel=0.01)
    assert 0 < theta_E.std() < 0.1
    assert penalty.max() < PENALTY_WEIGHT, "a sphere within a pixel"
    assert alpha.mean().abs() < 0.1, "the mean of the signed deflections, as published, is of no use"


def test_the_classifier_sees_the_source_behind_the_sphere_that_the_encoder_gives() -> None:
    model, images = seeded(partial(small, in_chans=2)), noise(2, 2, 32, 32)
    set_sphere(model, 32, 5.5)
    seen: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(images)
    sphere = sis_deflection(*pixel_grid(images), theta_E=torch.full((2, 1, 1), 5.5))
    torch.testing.assert_close(seen[0][:, :2], images, rtol=0, atol=0)
    torch.testing.assert_close(seen[0][:, 2:], source_image(images, trace_back(sphere)), rtol=1e-4, atol=1e-3)


def test_the_penalty_is_nothing_for_a_sphere_and_the_mean_square_of_what_breaks_the_lens_equation() -> None:
    model, images = seeded(small).train(), noise(3, 1, 32, 32)
    set_sphere(model, 32, 5.5)
    assert model(images)[1].max() < 1e-9
    with torch.no_grad():
        model.deflection.bias.zero_()
        model.deflection.bias[: 32 * 32] = 2.0
    x, y = pixel_grid(images)
    cosine = x / torch.hypot(x, y)
    expected = PENALTY_WEIGHT * ((2 - 2 * cosine).square() + 4 * (1 - cosine.square())).mean() / 2
    torch.testing.assert_close(model(images)[1], expected.expand(3))


def test_the_weights_of_the_encoder_are_seen() -> None:
    weights = seen_attention(seeded(partial(small, depth=2)), noise(2, 1, 32, 32))
    assert [tuple(layer.shape) for layer in weights] == [(2, 3, 17, 17)] * 2


def test_it_is_as_large_as_its_published_parts() -> None:
    """DINO's ViT-S/16 has 21.7 million parameters, torchvision's ResNet-18 11.7 with its 1000 classes."""
    with torch.device("meta"):
        model = LensViTPINN(in_chans=3, image_size=224)
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    assert counts["encoder"] == pytest.approx(21.67, rel=0.03)
    assert counts["classifier"] + 0.513 == pytest.approx(11.69, rel=0.03)
    assert counts["deflection"] == pytest.approx(385 * 2 * 224**2 / 1e6)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_the_encoder_s_published_weights_are_fitted_to_patches_images_and_bands(patch_size: int) -> None:
    published = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    model, theirs = small(image_size=64, patch_size=patch_size), published.state_dict()
    rest = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    model.load_state_dict(model.fitted(theirs))
    ours = model.encoder.state_dict()
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in rest.items())
    if patch_size == 16:
        summed = theirs["patch_embed.proj.weight"].sum(1, keepdim=True)
        torch.testing.assert_close(ours["patch_embed.proj.weight"], summed)
        images = noise(2, 3, 224, 224)
        whole = small(image_size=224, in_chans=3, patch_size=16)
        whole.load_state_dict(whole.fitted(theirs))
        with torch.no_grad():
            torch.testing.assert_close(whole.encoder.eval()(images), published.eval()(images))


def test_deflections_keep_their_precision_where_the_rest_is_in_bfloat16() -> None:
    model, images = seeded(partial(small, image_size=64)), noise(2, 1, 64, 64)
    set_sphere(model, 64, 9.03)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        alpha = model.estimate_deflection(images)
        assert model(images).isfinite().all()
    assert torch.linalg.vector_norm(alpha, dim=1).mean((1, 2)).tolist() == pytest.approx([9.03] * 2, rel=1e-5)
    coarse = torch.linalg.vector_norm(alpha.bfloat16().float(), dim=1)
    assert (coarse - 9.03).abs().max() > 0.01


def test_edges_are_the_slope_of_the_stretched_image() -> None:
    x, y = pixel_grid(torch.empty(16, 16))
    slope = edges(torch.sinh(0.3 * x - 0.4 * y)[None, None])
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5), rtol=1e-4, atol=0)


def test_edges_stand_noise_and_blank_images_where_the_published_ones_do_not() -> None:
    for images in (noise(2, 1, 16, 16), torch.zeros(1, 1, 16, 16), -1e6 * noise(1, 1, 16, 16)):
        images.requires_grad_()
        slope = edges(images)
        slope.sum().backward()
        assert slope.isfinite().all()
        assert images.grad is not None
        assert images.grad.isfinite().all()
    image = noise(1, 1, 16, 16)
    published = torch.log(image.max() / image).square()
    assert not published.isfinite().all()
    assert edges(image).max() < 2 * math.asinh(image.abs().max())
