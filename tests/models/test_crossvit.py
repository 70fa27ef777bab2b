"""CrossViT: timm's numbers at any size, nothing resized, and each branch hears of the other."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.crossvit import CrossVit
from torch import nn

from deeplense.models.crossvit import CrossViT
from deeplense.models.registry import Network, build
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention

TIMM_SIZE = 48
"""timm's number of patches is wrong unless they cover the image: 12 and 16 do."""


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0) -> CrossViT:
    """Two stages of few features."""
    depths = ((1, 2, 0),) * 2
    return CrossViT(in_chans=in_chans, image_size=image_size, drop_path=drop_path, embed_dims=(12, 24), depths=depths)


def of_timm(in_chans: int = 3) -> CrossVit:
    """CrossViT-Ti as timm makes it, for images that it need not resize."""
    return CrossVit(
        img_size=TIMM_SIZE,
        patch_size=(12, 16),
        in_chans=in_chans,
        num_classes=5,
        embed_dim=(96, 192),
        depth=((1, 4, 0),) * 3,
        num_heads=(3, 3),
        mlp_ratio=(4, 4, 1),
    )


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_the_weights_of_attention_are_those_of_patches_of_two_sizes_and_of_class_tokens() -> None:
    shapes = [tuple(weight.shape[2:]) for weight in seen_attention(seeded(small), noise(2, 1, 32, 32))]
    in_a_stage = [(65, 65), (17, 17), (17, 17), (1, 17), (1, 65)]
    assert shapes == 2 * in_a_stage


def test_it_has_the_parameters_of_the_paper_and_of_timm() -> None:
    backbone = CrossViT(in_chans=3, image_size=240, patch_sizes=(12, 16))
    theirs = timm.create_model("crossvit_tiny_240", num_classes=0)
    more_positions = (15 * 15 - 14 * 14) * 192  # timm makes the image of the second branch 224 pixels large
    assert sum(map(torch.numel, backbone.parameters())) == sum(map(torch.numel, theirs.parameters())) + more_positions
    with_classes = backbone_laws.count_parameters(backbone)
    assert with_classes == pytest.approx(6.9e6, rel=0.03)


def test_with_timms_weights_it_gives_timms_features() -> None:
    theirs, ours = seeded(of_timm), CrossViT(in_chans=3, image_size=TIMM_SIZE, patch_sizes=(12, 16)).eval()
    ours.load_state_dict(ours.fitted(theirs.state_dict()))
    images = noise(2, 3, TIMM_SIZE, TIMM_SIZE)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(ours(images), expected, rtol=0, atol=0)


def test_timms_weights_fit_images_of_other_sizes_and_bands() -> None:
    theirs = seeded(of_timm)
    gray, colour = (CrossViT(in_chans=bands, image_size=64).eval() for bands in (1, 3))
    for ours in (gray, colour):
        ours.load_state_dict(ours.fitted(theirs.state_dict()))
    images = noise(2, 1, 64, 64)
    torch.testing.assert_close(gray(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def pretrained(file: Path | None) -> Network:
    """crossvit_tiny as users get it."""
    return build("crossvit_tiny", image_size=64, in_chans=1, num_outputs=2, pretrained=True, pretrained_file=file)


def test_a_file_of_timms_weights_or_of_ours_can_be_started_from(tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs, file = timm.create_model("crossvit_tiny_240").state_dict(), tmp_path / "model.safetensors"
    save_file(theirs, file)
    network = pretrained(file)
    expected = CrossViT(in_chans=1, image_size=64).fitted(theirs)
    torch.testing.assert_close(network.backbone.state_dict(), expected, rtol=0, atol=0)
    save_file({key: value + 1 for key, value in network.state_dict().items()}, file)
    ours = {key: value + 1 for key, value in expected.items()}
    torch.testing.assert_close(pretrained(file).backbone.state_dict(), ours, rtol=0, atol=0)


def test_where_no_file_is_given_weights_are_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"of timm/crossvit_tiny_240\.in1k .*--pretrained_file FILE"):
        pretrained(None)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("crossvit_9_240", "does not contain the weights of crossvit_tiny "),
        ("resnet18", "parameters of crossvit_tiny_240"),
    ],
)
def test_weights_of_another_model_are_refused(name: str, why: str, tmp_path: Path) -> None:
    save_file(timm.create_model(name).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=why):
        pretrained(tmp_path / "model.safetensors")


@torch.no_grad()
def test_nothing_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the image is resized")

    backbone, images = seeded(small), noise(2, 1, 32, 32)
    monkeypatch.setattr(nn.functional, "interpolate", refuse)
    assert backbone(images).isfinite().all()
    with pytest.raises(AssertionError, match="resized"):
        timm.create_model("crossvit_tiny_240", num_classes=0)(noise(1, 3, 240, 240))


def test_each_branch_hears_of_the_other() -> None:
    backbone, images = seeded(small), noise(2, 1, 32, 32)
    before = backbone(images).detach()
    with torch.no_grad():
        backbone.get_parameter("patch_embed.0.proj.weight").mul_(2)
    changed = (backbone(images) - before).abs().amax(dim=0) > 1e-6
    assert changed[:12].all(), "the branch of small patches"
    assert changed[12:].all(), "the branch of large patches"


@pytest.mark.parametrize("image_size", [64, 150])
def test_patches_that_do_not_cover_the_image_are_refused(image_size: int) -> None:
    with pytest.raises(ValueError, match="do not cover an image"):
        CrossViT(in_chans=1, image_size=image_size, patch_sizes=(12, 16))
