"""The U-Net, held against that of diffusers."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from deeplense.diffusion.unet import (
    EARLIER,
    LARGE,
    SHAPES,
    SMALL,
    Shape,
    UNet,
    diffusers_options,
    pad_to,
    to_diffusers,
)

TINY = Shape(channels=(8, 16, 16, 24), num_blocks=2, num_groups=4, head_dim=8, film=False)


def theirs(shape: Shape, in_chans: int = 1) -> UNet2DModel:
    """The same network as diffusers builds it."""
    return UNet2DModel(**diffusers_options(shape, in_chans)).eval()


def filled(shape: Shape, in_chans: int = 1) -> UNet:
    """A network with no zeros, in which every part can be seen."""
    torch.manual_seed(0)
    network = UNet(in_chans, shape=shape).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def images_of(size: int, batch: int = 2, in_chans: int = 1) -> Tensor:
    """White noise."""
    return torch.randn(batch, in_chans, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("shape", [TINY, replace(TINY, film=True, num_blocks=1), replace(TINY, channels=(8, 16))])
@pytest.mark.parametrize(("size", "in_chans"), [(64, 3), (144, 1)])
def test_it_says_what_that_of_diffusers_says(shape: Shape, size: int, in_chans: int) -> None:
    ours, oracle = filled(shape, in_chans), theirs(shape, in_chans)
    given = to_diffusers(ours.state_dict())
    assert given.keys() == oracle.state_dict().keys()
    oracle.load_state_dict(given)
    images, times = images_of(size, in_chans=in_chans), torch.tensor([3.0, 998.0])
    with torch.no_grad():
        expected = oracle(images, times).sample
        assert (ours(images, times) - expected).abs().max() < 1e-5
        assert (ours(images, times + 1) - expected).abs().max() > 1e-5


@pytest.mark.parametrize(("shape", "millions"), [(EARLIER, 56.57), (replace(EARLIER, num_blocks=1), 39.70)])
def test_the_earlier_shape_has_its_number_of_parameters(shape: Shape, millions: float) -> None:
    with torch.device("meta"):
        network = UNet(1, shape=shape)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_small_one_has_a_million() -> None:
    with torch.device("meta"):
        plain, film = UNet(1, shape=replace(SMALL, film=False)), UNet(1, shape=SMALL)
    counts = [sum(p.numel() for p in network.parameters()) for network in (plain, film)]
    assert counts[0] / 1e6 == pytest.approx(1.04, abs=0.005)
    channels_out = 16 + 32 + 64 + 64 + 2 * 64 + 2 * (64 + 64 + 32 + 16)
    assert counts[1] - counts[0] == channels_out * (64 + 1), "what FiLM adds: a scale for each channel"


@pytest.mark.parametrize("size", [32, 37, 64, 75, 150])
@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_any_size_comes_out_as_it_went_in_and_each_border_counts(size: int, in_chans: int) -> None:
    network = filled(replace(SMALL, channels=(8, 8, 8, 8), head_dim=8), in_chans)
    images = images_of(size, batch=1, in_chans=in_chans).requires_grad_()
    output = network(images, torch.tensor([500.0]))
    assert output.shape == images.shape
    (output * images_of(size, batch=1, in_chans=in_chans).roll(1, -1)).sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    assert torch.stack([seen[0], seen[-1], seen[:, 0], seen[:, -1]]).all()


def test_no_size_is_resampled() -> None:
    images = images_of(150)
    padded, window = pad_to(images, 8)
    assert padded.shape == (2, 1, 152, 152)
    assert torch.equal(padded[window], images)
    assert torch.equal(padded[..., 0, 1:-1], images[..., 1, :]), "mirrored"
    assert padded.var().item() == pytest.approx(images.var().item(), rel=0.01)
    untouched, _ = pad_to(images_of(144), 8)
    assert untouched.shape[-1] == 144
    wide, window = pad_to(torch.randn(1, 1, 20, 31), 8)
    assert (wide.shape[-2:], wide[window].shape[-2:]) == ((24, 32), (20, 31))


def test_images_in_a_batch_do_not_meet() -> None:
    network, images = filled(SMALL), images_of(24, batch=3)
    times = torch.tensor([10.0, 300.0, 900.0])
    with torch.no_grad():
        together = network(images, times)
        for k in range(3):
            alone = network(images[k : k + 1], times[k : k + 1])[0]
            assert (alone - together[k]).abs().max() < 1e-5


def test_every_parameter_learns_and_a_condition_is_seen() -> None:
    network = filled(replace(SMALL, channels=(16, 16, 16, 16), head_dim=16))
    condition = torch.randn(2, network.embedding_dim, generator=torch.Generator().manual_seed(0))
    images, times = images_of(16), torch.tensor([1.0, 700.0])
    output = network(images, times, condition)
    assert not torch.allclose(output, network(images, times))
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A constant added to all keys changes no softmax.
        assert parameter.grad.abs().max() > (0 if name != "middle.1.key.bias" else -1), name


def test_a_new_network_says_zero_and_begins_to_learn() -> None:
    network = UNet(1, shape=SMALL)
    network(images_of(16), torch.tensor([1.0, 700.0])).sum().backward()
    assert network.last.weight.grad is not None
    assert network.last.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert network(images_of(16), torch.zeros(2)).std() == 0


def test_shapes_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim=48 must divide the 64 channels"):
        UNet(1, shape=replace(SMALL, head_dim=48))
    assert SHAPES["unet"] is LARGE


def test_half_precision_follows() -> None:
    network, images = filled(SMALL), images_of(32)
    times = torch.tensor([5.0, 800.0])
    with torch.no_grad():
        exact = network(images, times)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(images, times)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
