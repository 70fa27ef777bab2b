"""Which forward passes give a batch norm too few values, and that finding out changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from deeplense.training.batch_norms import lacks_values


def images(count: int, size: int) -> Tensor:
    """Images of noise."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("count", "size", "lacks"), [(1, 1, True), (1, 2, False), (2, 1, False)])
def test_a_map_of_one_pixel_of_one_sample_is_too_little_and_nothing_else_is(count: int, size: int, lacks: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert lacks_values(network, lambda: network(images(count, size))) == lacks


@pytest.mark.parametrize("last", [nn.BatchNorm1d(3), nn.LayerNorm(3)])
def test_the_state_of_the_network_stays_as_it_is(last: nn.Module) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert lacks_values(network, lambda: network(images(1, 8))) == isinstance(last, nn.BatchNorm1d)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_batch_norms_with_fixed_statistics_need_one_value_only() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    network = Frozen(3)
    assert not lacks_values(network, lambda: network(torch.ones(1, 3)))


def test_other_errors_are_not_hidden() -> None:
    network = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        lacks_values(network, lambda: network(images(2, 2)))
