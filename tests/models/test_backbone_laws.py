"""The laws of backbones find those that break them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.models import backbone_laws


class Faulty(nn.Module):
    """A backbone that is right but for the fault that is named."""

    num_features = 4

    def __init__(self, fault: str = "none", *, image_size: int, in_chans: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.fault, self.patches = fault, nn.Conv2d(in_chans, 4, 8, stride=9 if fault == "cuts" else 8)
        self.forgotten = torch.rand(4)
        self.unused = nn.Linear(1, 1) if fault == "unused" else None
        self.drop_path = nn.Dropout(0.0 if fault == "never drops" else drop_path)

    def forward(self, images: Tensor) -> Tensor:
        features = self.drop_path(self.patches(images).mean(dim=(2, 3)))
        if self.fault == "forgets":
            return features + self.forgotten
        return features - features.mean(dim=0) if self.fault == "mixes" else features


def check(fault: str) -> None:
    """All laws that need no attention."""
    make = partial(Faulty, fault)
    backbone_laws.check_gradients(make, image_size=64, in_chans=2)
    backbone_laws.check_images_are_apart(make)
    backbone_laws.check_weights_are_all_that_is_needed(make)
    backbone_laws.check_drop_path_is_random_in_training_alone(make)


def test_a_right_backbone_keeps_them() -> None:
    check("none")


@pytest.mark.parametrize("fault", ["cuts", "unused", "mixes", "forgets", "never drops"])
def test_a_fault_is_found(fault: str) -> None:
    with pytest.raises(AssertionError):
        check(fault)


def test_attention_that_changes_when_it_is_not_fused_is_found() -> None:
    class Unequal(nn.Module):
        fused_attn = True
        attn_drop = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return images if self.fused_attn else self.attn_drop(images.softmax(dim=-1))

    with pytest.raises(AssertionError):
        backbone_laws.seen_attention(nn.Sequential(Unequal()), torch.randn(1, 2, 3, 4))
