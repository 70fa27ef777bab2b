"""CPVT-GAP: where a patch is comes from its neighbours and the border alone."""

import pytest
import torch
from torch import nn

from deeplense.models.cpvt import CPVT, PositionalEncoding
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0) -> CPVT:
    """Three blocks."""
    return CPVT(in_chans=in_chans, image_size=image_size, drop_path=drop_path, embed_dim=24, depth=3, num_heads=3)


def encoding_of(backbone: CPVT) -> PositionalEncoding:
    """The only one."""
    (encoding,) = (module for module in backbone.modules() if isinstance(module, PositionalEncoding))
    return encoding


@pytest.mark.parametrize(("image_size", "in_chans"), SHAPES)
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


def test_attention_is_the_same_fused_or_not() -> None:
    weights = seen_attention(seeded(small), noise(2, 1, 32, 32))
    assert [tuple(weight.shape) for weight in weights] == [(2, 3, 16, 16)] * 3


def test_it_has_the_parameters_of_deit_tiny_with_a_convolution_for_positions_and_class_token() -> None:
    backbone = CPVT(in_chans=3, image_size=224, patch_size=16)
    deit_tiny, positions, class_token, convolution = 5_717_416, 197 * 192, 192, 10 * 192
    expected = deit_tiny - positions - class_token + convolution
    assert backbone_laws.count_parameters(backbone) == expected
    assert 5.5e6 < expected < 6.5e6, "the paper says 6 million"


def test_on_an_image_without_border_a_shift_by_whole_patches_changes_nothing() -> None:
    backbone, images = seeded(small), noise(2, 1, 32, 32)
    shifted = images.roll((8, -16), dims=(2, 3))
    zeros_beyond_the_border = (backbone(images) - backbone(shifted)).abs().max()
    round_the_border = nn.Conv2d(24, 24, 3, padding=1, padding_mode="circular", groups=24)
    round_the_border.load_state_dict(encoding_of(backbone).conv.state_dict())
    encoding_of(backbone).conv = round_the_border
    torch.testing.assert_close(backbone(images), backbone(shifted), rtol=1e-4, atol=1e-5)
    assert (backbone(images) - backbone(images.roll(4, dims=2))).abs().max() > 1e-3
    assert zeros_beyond_the_border > 1e-3


def test_without_the_encoding_it_does_not_know_where_a_patch_is() -> None:
    backbone, images = seeded(small), noise(2, 1, 32, 32)
    upper, lower = images.split(16, dim=2)
    swapped = torch.cat([lower, upper], dim=2)
    assert (backbone(images) - backbone(swapped)).abs().max() > 1e-3
    nn.init.zeros_(encoding_of(backbone).conv.weight)
    torch.testing.assert_close(backbone(images), backbone(swapped), rtol=1e-4, atol=1e-5)


def test_the_encoding_is_added_to_the_patch() -> None:
    encoding, patches = encoding_of(seeded(small)), noise(2, 16, 24)
    impulse = torch.zeros(24, 1, 3, 3)
    impulse[:, 0, 1, 2] = 1
    encoding.conv.weight.data, encoding.conv.bias = impulse, None
    right = nn.functional.pad(patches.unflatten(1, (4, 4))[:, :, 1:], (0, 0, 0, 1)).flatten(1, 2)
    torch.testing.assert_close(encoding(patches), patches + right)


def test_patches_that_do_not_cover_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="patches of 16 pixels do not cover an image of 150; give images of 160"):
        CPVT(in_chans=1, image_size=150, patch_size=16)
