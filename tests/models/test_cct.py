"""CCT: any size as it is, and a mean of the tokens with weights that are learnt."""

from functools import partial

import pytest
import torch
from torch import nn

from deeplense.models.cct import CCT
from tests.models import backbone_laws
from tests.models.backbone_laws import SHAPES, noise, seeded, seen_attention


def small(*, image_size: int = 32, in_chans: int = 1, drop_path: float = 0.0, num_convs: int | None = None) -> CCT:
    """Two blocks."""
    return CCT(
        in_chans=in_chans, image_size=image_size, drop_path=drop_path, num_convs=num_convs, embed_dim=24, depth=2
    )


@pytest.mark.parametrize(("image_size", "in_chans"), [*SHAPES, (86, 1), (45, 1)])
def test_it_keeps_the_laws_of_backbones(image_size: int, in_chans: int) -> None:
    backbone_laws.check_backbone(small, image_size=image_size, in_chans=in_chans)


def test_paths_are_dropped_in_training_alone() -> None:
    backbone_laws.check_drop_path(small)


@pytest.mark.parametrize(
    ("image_size", "along"), [(16, 8), (32, 16), (40, 20), (41, 11), (64, 16), (150, 19), (160, 20)]
)
def test_there_are_20_tokens_along_a_side_at_most(image_size: int, along: int) -> None:
    (weights, *_) = seen_attention(seeded(partial(small, image_size=image_size)), noise(1, 1, image_size, image_size))
    assert weights.shape == (1, 4, along**2, along**2)


@pytest.mark.parametrize(("num_convs", "millions"), [(1, 3.76), (2, 3.85)])
def test_it_has_the_parameters_of_the_paper(num_convs: int, millions: float) -> None:
    backbone = CCT(in_chans=3, image_size=32, num_convs=num_convs)
    assert backbone_laws.count_parameters(backbone, 10) == pytest.approx(1e6 * millions, rel=0.03)


def test_without_positions_and_borders_only_the_set_of_tokens_counts() -> None:
    backbone, images = seeded(small), noise(2, 1, 32, 32)
    flipped = images.flip(3)
    for conv in (module for module in backbone.modules() if isinstance(module, nn.Conv2d)):
        with torch.no_grad():
            conv.weight.add_(conv.weight.flip(3))
    backbone.tokenizer[2] = nn.MaxPool2d(2)
    assert (backbone(images) - backbone(flipped)).abs().max() > 1e-3
    nn.init.zeros_(backbone.positions)
    torch.testing.assert_close(backbone(images), backbone(flipped), rtol=1e-4, atol=1e-5)


def test_equal_weights_make_the_mean_and_large_ones_choose_a_token() -> None:
    backbone, images = seeded(small), noise(2, 1, 32, 32)
    seen: list[torch.Tensor] = []
    backbone.norm.register_forward_hook(lambda *passed: seen.append(passed[2]))
    nn.init.zeros_(backbone.importance.weight)
    torch.testing.assert_close(backbone(images), seen[0].mean(dim=1))
    nn.init.normal_(backbone.importance.weight, std=1e6)
    first = backbone.importance(seen[0]).argmax(dim=1)
    chosen = seen[0].gather(1, first[..., None].expand(-1, -1, 24)).squeeze(1)
    torch.testing.assert_close(backbone(images), chosen)
