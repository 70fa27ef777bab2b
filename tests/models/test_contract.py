"""The checks of backbones find those that break the contract."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.contract import attention_weights, check_backbone, noise


class Tiny(nn.Sequential):
    """One convolution, and the mean."""

    num_features = 4

    def __init__(self, kernel_size: int = 4) -> None:
        super().__init__(nn.Conv2d(1, 4, kernel_size, kernel_size), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class WithUnused(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self[0].register_parameter("unused", nn.Parameter(torch.ones(1)))


class WithDead(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Parameter(torch.ones(1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0 * self.dead


class OfItsNeighbours(Tiny):
    def forward(self, input: Tensor) -> Tensor:
        features = super().forward(input)
        return features - features.mean(dim=0)


class NotAsSaved(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.unsaved = torch.randn(4)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.unsaved


def test_a_backbone_that_keeps_the_contract_passes() -> None:
    check_backbone(Tiny, noise(2, 1, 8, 8))


@pytest.mark.parametrize("make", [lambda: Tiny(5), WithUnused, WithDead, OfItsNeighbours, NotAsSaved])
def test_a_backbone_that_breaks_the_contract_is_found(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(AssertionError):
        check_backbone(make, noise(2, 1, 8, 8))


def test_a_network_without_attention_has_no_weights() -> None:
    with pytest.raises(AssertionError):
        attention_weights(Tiny(), noise(2, 1, 8, 8))
