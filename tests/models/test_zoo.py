"""The zoo: each name is what it says, takes images of any size whole, and learns."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from deeplense.models.registry import Network, build
from deeplense.models.zoo import ARCHITECTURES, require_known
from deeplense.training.batch_norms import lacks_values
from jobs.train.settings import Settings

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes" / "models"
NAMES = sorted(ARCHITECTURES)
LARGEST_DIFFERENCE = 0.006
"""Of millions of parameters, which are told to two digits."""
PARAMETERS: dict[str, int] = {}
"""How many parameters the networks for 64 pixels have that were built here."""
LEAST_SAMPLES: dict[str, int] = {}
"""How many samples a forward pass in training of these networks needs."""


def seeded(name: str, image_size: int, **changes: float) -> Network:
    """A network for one band and three classes."""
    torch.manual_seed(0)
    network = build(name, image_size=image_size, in_chans=1, num_outputs=3, **changes)  # type: ignore[arg-type]
    if image_size == 64:
        PARAMETERS[name] = sum(parameter.numel() for parameter in network.parameters())
        if name not in LEAST_SAMPLES:
            with torch.random.fork_rng(devices=[]):
                LEAST_SAMPLES[name] = 1 + lacks_values(network, lambda: network(noise(64, 1)))
    return network


def noise(image_size: int, count: int = 2) -> Tensor:
    """Images of noise."""
    return torch.randn(count, 1, image_size, image_size, generator=torch.Generator().manual_seed(1))


def wake(network: Network) -> Network:
    """Let residual branches that begin at zero take part."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.any():
            nn.init.normal_(weight, std=0.5)
    for name, parameter in network.named_parameters():
        if not parameter.any() and "bias" not in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def fixed(network: Network) -> Network:
    """Let batch norm take the statistics that it has, so that one image is enough."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return network


@pytest.mark.parametrize("image_size", [64, 150])
@pytest.mark.parametrize("name", NAMES)
def test_each_name_learns_from_every_border_with_every_parameter(name: str, image_size: int) -> None:
    network, count = wake(seeded(name, image_size)), 2 if image_size == 64 else 1
    images = noise(image_size, count).requires_grad_()
    outputs = (network if count > 1 else fixed(network))(images)
    outputs, penalty = outputs if isinstance(outputs, tuple) else (outputs, torch.zeros(count))
    assert outputs.shape == (count, 3)
    (functional.cross_entropy(outputs, torch.tensor([0, 2])[:count]) + penalty.mean()).backward()
    assert images.grad is not None
    depends = images.grad.abs().sum(dim=(0, 1)) > 0
    assert all(bool(border.any()) for border in (depends[0], depends[-1], depends[:, 0], depends[:, -1]))
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_that_is_told_is_the_real_one(name: str) -> None:
    if name not in PARAMETERS:
        seeded(name, 64)
    assert abs(PARAMETERS[name] / 1e6 - ARCHITECTURES[name].millions) < LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", NAMES)
def test_images_are_padded_to_the_size_that_is_told_and_no_more_than_a_patch(name: str) -> None:
    one = ARCHITECTURES[name]
    for image_size in (32, 64, 150):
        padded = one.padded(image_size)
        assert image_size <= padded < image_size + max(one.multiple, 16)
        assert one.padded(padded) == padded


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_a_paper_and_a_recipe_that_can_be_trained_by(name: str) -> None:
    one = ARCHITECTURES[name]
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|baseline|github|ML4PS|astro-ph|^lensvit_pinn,", one.paper), one.paper
    recipe = yaml.safe_load((RECIPES / f"{one.recipe}.yaml").read_text())
    settings = Settings(run=Path("run"), dataset="data", model_name=name, **recipe)
    if settings.drop_path:
        assert one.drop_path


@pytest.mark.parametrize("name", [name for name in NAMES if not ARCHITECTURES[name].of_timm])
def test_branches_are_left_out_at_random_or_the_wish_is_refused(name: str) -> None:
    if not ARCHITECTURES[name].drop_path:
        with pytest.raises(ValueError, match="drop_path"):
            seeded(name, 32, drop_path=0.5)
        return
    network = seeded(name, 32, drop_path=0.9)
    images = noise(32)
    with torch.no_grad():
        first, second = (network(images) for _ in range(2))
    first, second = (given[0] if isinstance(given, tuple) else given for given in (first, second))
    assert not torch.equal(first, second)


def test_pretrained_weights_keep_the_patches_that_they_were_published_with() -> None:
    small, published = ARCHITECTURES["pit_tiny"], ARCHITECTURES["pit_tiny"].as_published
    assert small.arguments(64) == {"img_size": 64, "patch_size": 8, "stride": 4}
    assert small.arguments(152) == {"img_size": 152, "patch_size": 16, "stride": 8}
    assert published.arguments(64) == {"img_size": 64}
    assert (small.padded(72), published.padded(72)) == (72, 80)
    assert ARCHITECTURES["cpvt_tiny"].as_published == ARCHITECTURES["cpvt_tiny"]


@pytest.mark.parametrize(("wrong", "near"), [("convit_tny", "convit_tiny"), ("xyzzy", "none")])
def test_a_wrong_name_is_answered_with_the_nearest(wrong: str, near: str) -> None:
    require_known("convit_tiny")
    require_known("convnext_femto")
    with pytest.raises(ValueError, match=f"unknown model '{wrong}'\\. Nearest: {near}"):
        require_known(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_samples_of_a_forward_pass_in_training_are_those_that_are_told(name: str) -> None:
    if name not in LEAST_SAMPLES:
        seeded(name, 64)
    assert LEAST_SAMPLES[name] == ARCHITECTURES[name].least_samples
