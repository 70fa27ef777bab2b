"""The laws of backbones find those that break them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.models import backbone_laws
from tests.models.backbone_laws import noise, seen_attention

FAULTS = {
    "cuts": "borders without gradient: .*bottom.*right",
    "cuts a corner of a band": "borders without gradient: .*top.*left",
    "blind": "borders without gradient",
    "not reached": "do not teach .*'unused.weight'",
    "reached by zero": "do not teach .*'unused.weight'",
    "infinite slope": "do not teach .*'patches.weight'",
    "other width": "features of shape",
    "not finite": "not finite",
    "mixes": "images meet",
    "looks at none": "all images look alike",
    "starts alike": "alike before the state is loaded",
    "forgets": "others although the state is loaded",
    "never drops": "drop_path=0.5 is not heeded",
    "always drops": "drop_path=0.0 is not heeded",
    "drops in evaluation": "chance in evaluation mode",
}
PENALTY_FAULTS = {
    "one for all": "a penalty of shape",
    "infinite": "without a finite gradient",
    "of nothing": "teaches nothing",
    "in evaluation": "more than features",
}


class Faulty(nn.Module):
    """A backbone that is right but for the fault that is named."""

    num_features = 4

    def __init__(self, fault: str = "none", *, image_size: int, in_chans: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.fault, self.patches = fault, nn.Conv2d(in_chans, 4, 8, stride=9 if fault == "cuts" else 8)
        self.forgotten = torch.rand(4)
        self.unused = nn.Linear(1, 1) if "reached" in fault else None
        if fault == "other width":
            self.num_features = 5
        if fault == "starts alike":
            for parameter in self.parameters():
                nn.init.constant_(parameter, 0.1)
        self.share = {"never drops": 0.0, "always drops": 0.5}.get(fault, drop_path)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.fault == "cuts a corner of a band":
            images = images * torch.arange(images[0].numel()).view_as(images[0]).gt(0)
        features = self.patches(images).mean(dim=(2, 3))
        if self.unused is not None and self.fault == "reached by zero":
            features = features + 0 * self.unused(features[:, :1])
        features = nn.functional.dropout(features, self.share, self.training or self.fault == "drops in evaluation")
        return self.changed(features)

    def changed(self, features: Tensor) -> Tensor:
        """Features with the fault, if it is one of them."""
        if self.fault == "infinite slope":
            return features + (0 * features).sqrt()
        if self.fault == "not finite" and not self.training:
            return features / 0
        if self.fault == "mixes":
            return features - features.mean(dim=0)
        if self.fault == "forgets":
            return features + self.forgotten
        if self.fault in ("blind", "looks at none") and not self.training:
            return features * (0 if self.fault == "blind" else 1e-6)
        return features


class FaultyPenalty(Faulty):
    """A right backbone whose penalty has a fault."""

    has_penalty = True

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.patches(images).mean(dim=(2, 3))
        penalty = features.square().sum(dim=1)
        changed = {
            "one for all": penalty.sum(),
            "infinite": (0 * penalty).sqrt(),
            "of nothing": 0 * penalty,
        }
        if self.training or self.fault == "in evaluation":
            return features, changed.get(self.fault, penalty)
        return features


def check(make: type[Faulty], fault: str) -> None:
    """All laws that need no attention."""
    backbone_laws.check_backbone(partial(make, fault), image_size=16, in_chans=2)
    if make is Faulty:
        backbone_laws.check_drop_path(partial(make, fault))


@pytest.mark.parametrize("make", [Faulty, FaultyPenalty])
def test_a_right_backbone_keeps_them(make: type[Faulty]) -> None:
    check(make, "none")


@pytest.mark.parametrize(("fault", "found"), FAULTS.items())
def test_a_fault_is_found_and_told(fault: str, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check(Faulty, fault)


@pytest.mark.parametrize(("fault", "found"), PENALTY_FAULTS.items())
def test_a_fault_of_a_penalty_is_found_and_told(fault: str, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check(FaultyPenalty, fault)


class Attention(nn.Module):
    """Attention of one head that is right but for the fault that is named."""

    fused_attn = True

    def __init__(self, fault: str = "none") -> None:
        super().__init__()
        self.fault = fault
        if fault != "no attn_drop":
            self.attn_drop = nn.Identity()
        self.other = nn.Sequential()
        if fault == "one is silent":
            self.other.attn_drop = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        heads = tokens if self.fault == "no heads" else tokens[:, None]
        if self.fused_attn and self.fault != "never fused":
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)
        scale = 0.5 if self.fault == "unequal" else tokens.shape[-1] ** -0.5
        weights = (scale * heads @ heads.mT).softmax(dim=-1)
        if self.fault == "twice":
            return self.attn_drop(2 * weights) @ heads / 2
        return (weights if self.fault == "hides" else self.attn_drop(weights)) @ heads


def test_right_attention_shows_its_weights() -> None:
    (weights,) = seen_attention(nn.Sequential(Attention()), noise(2, 5, 3))
    assert weights.shape == (2, 1, 5, 5)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("unequal", "not as fused"),
        ("no attn_drop", "no attention"),
        ("hides", "not shown"),
        ("one is silent", "not shown"),
        ("never fused", "fused attention that is not"),
        ("no heads", "weights of shape"),
        ("twice", "not close"),
    ],
)
def test_a_fault_of_attention_is_found_and_told(fault: str, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        seen_attention(nn.Sequential(Attention(fault)), noise(2, 5, 3))


def test_attention_without_attn_drop_is_found_beside_one_that_has_it() -> None:
    with pytest.raises(AssertionError, match="attention without attn_drop"):
        seen_attention(nn.Sequential(Attention(), nn.Flatten(1, 2), Attention("no attn_drop")), noise(2, 5, 3))


class Features(nn.Module):
    """Tokens of an image, of which some make the features."""

    def __init__(self, chosen: slice) -> None:
        super().__init__()
        self.last, self.chosen = nn.Flatten(2), chosen

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images)[:, self.chosen].mean(dim=1)


@pytest.mark.parametrize(
    ("chosen", "is_right"), [(slice(0, 1), True), (slice(1, 2), False), (slice(0, 2), False), (slice(None), False)]
)
def test_features_of_other_tokens_than_the_first_are_found(chosen: slice, is_right: bool) -> None:
    backbone = Features(chosen)
    if is_right:
        backbone_laws.check_the_first_token_is_the_feature(backbone, backbone.last, noise(2, 3, 4, 4))
        return
    with pytest.raises(AssertionError, match="first token"):
        backbone_laws.check_the_first_token_is_the_feature(backbone, backbone.last, noise(2, 3, 4, 4))


def test_parameters_are_counted_with_a_classifier_and_without_those_that_stand_still() -> None:
    backbone = Faulty(image_size=8, in_chans=1)
    assert backbone_laws.count_parameters(backbone, 10) == 4 * 64 + 4 + 10 * 4 + 10
    backbone.patches.bias.requires_grad_(False)  # type: ignore[union-attr]
    assert backbone_laws.count_parameters(backbone, 10) == 4 * 64 + 10 * 4 + 10
