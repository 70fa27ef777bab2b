"""What no smooth lens explains: nothing of a smooth lens, much of others, and the place of a mass is where it is."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from conftest import population
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from deeplense.models.lens_residual import MULTIPLE, LensResidual, in_units_of_noise
from deeplense.models.smooth_lens import (
    NAMES,
    NUM_LATENTS,
    compare,
    derivatives,
    fit_lens,
    parameters,
    render,
)
from deeplense.simulation import images as simulation
from deeplense.simulation.lenses import sie_deflection
from deeplense.simulation.populations import CLASSES, HALO_MASS, Preset

HALF_IMAGE_ARCSEC = 32 * 0.08
MASS_ARCSEC = 0.15


@lru_cache
def simulated(preset: Preset, name: str, num_images: int) -> Tensor:
    """Noisy images (B, 1, 64, 64) of one class."""
    numbers = range(CLASSES.index(name), 3 * num_images, 3)
    of = population("Model_III", preset)
    return torch.from_numpy(simulation.simulate(numbers, population=of, seed=3, split="test").images)[:, None]


def with_point_mass(place: tuple[float, float], source: tuple[float, float], *, theta_E: float) -> Tensor:
    """A noisy image (1, 1, 64, 64) of a lens with one point mass (arcsec)."""
    of = population("Model_III", "noisy")
    system = simulation.draw_system(of, 0, np.random.default_rng(0))
    mass = {"point_theta_E": [theta_E], "point_x": [place[0]], "point_y": [place[1]]}
    arrays = {name: np.array(value) for name, value in mass.items()}
    system = replace(system, source_x=source[0], source_y=source[1], **arrays)
    clean = simulation.render([system], population=of, dtype=torch.float32)
    noisy = simulation.expose(clean, [system], [np.random.default_rng(1)], population=of)
    return torch.from_numpy(noisy)[:, None]


@torch.no_grad()
def maps(images: Tensor) -> tuple[Tensor, Tensor]:
    """The residual and the significance of a point mass, (B, S, S) each."""
    model = LensResidual(in_chans=images.shape[1], image_size=images.shape[-1])
    residual, significance = model.maps(images)[:, -2:].unbind(1)
    return residual, significance


def chi_squared(residual: Tensor) -> Tensor:
    return residual.square().mean(dim=(1, 2))


@torch.no_grad()
def fitted(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of images (B, 1, S, S), the images in units of their noise, and the noise in each pixel."""
    model = LensResidual(in_chans=1, image_size=images.shape[-1])
    stack = in_units_of_noise(images)[:, 0]
    sigma = model.noise_of(stack)
    return fit_lens(stack, sigma).latents, stack, sigma


@pytest.mark.parametrize("preset", ["noisy", "physical"])
def test_a_smooth_lens_leaves_nothing_but_noise(preset: Preset) -> None:
    residual, significance = maps(simulated(preset, "no_sub", 16))
    assert chi_squared(residual).min() > 0.8
    assert chi_squared(residual).max() < 1.3
    assert 0.7 < significance.std() < 1.3
    assert significance.abs().max() < 6


@pytest.mark.parametrize("preset", ["noisy", "physical"])
def test_a_vortex_leaves_more_than_noise_and_shows_as_mass(preset: Preset) -> None:
    residual, significance = maps(simulated(preset, "axion", 12))
    assert chi_squared(residual).median() > 1.4
    assert (significance.amax(dim=(1, 2)) > 6).all()


def test_the_fit_finds_the_lens_that_was_simulated() -> None:
    found = parameters(fitted(simulated("noisy", "no_sub", 8))[0])
    of = population("Model_III", "noisy")
    true = {
        "theta_E": of.deflection_scale * of.einstein_radius(HALO_MASS) / HALF_IMAGE_ARCSEC,
        "gamma1": of.deflection_scale * 0.05,
        "gamma2": 0.0,
        "e1": simulation.HOST_ELLIPTICITY[0],
        "e2": simulation.HOST_ELLIPTICITY[1],
        "center_x": 0.0,
        "source_radius": simulation.SOURCE_RADIUS / HALF_IMAGE_ARCSEC,
        "source_index": simulation.SOURCE_INDEX,
        "source_e1": simulation.SOURCE_ELLIPTICITY[0],
        "source_e2": simulation.SOURCE_ELLIPTICITY[1],
        "psf_sigma": 1 / (2 * math.sqrt(2 * math.log(2))) / 32,
    }
    for name, value in true.items():
        assert float((found[name] - value).abs().max()) < 0.02 * max(abs(value), 0.5), name
    assert float((found["theta_E"] / true["theta_E"] - 1).abs().max()) < 0.003


def test_a_wrong_deflection_leaves_far_more() -> None:
    latents, stack, sigma = fitted(simulated("noisy", "no_sub", 8))
    right = chi_squared(compare(latents, stack, sigma).residual)
    for name in ("theta_E", "e1", "gamma1", "gamma2"):
        wrong = latents.clone()
        wrong[:, NAMES.index(name)] += 0.6
        assert (chi_squared(compare(wrong, stack, sigma).residual) > 10 * right).all(), name


@pytest.mark.parametrize("place", [(0.9, 0.1), (-0.1, -0.85), (-0.6, 0.6)])
def test_a_mass_is_most_significant_where_it_is(place: tuple[float, float]) -> None:
    residual, significance = maps(with_point_mass(place, (0.05, 0.1), theta_E=MASS_ARCSEC / 5))
    peak = int(significance[0].argmax())
    found = [(index - 31.5) * 0.08 for index in (peak % 64, peak // 64)]
    assert float(significance.max()) > 10
    assert math.dist(found, place) < 0.25
    near = around(place)
    assert residual[0][near].square().mean() > 3 * residual[0][~near].square().mean()


def around(place: tuple[float, float]) -> Tensor:
    """The pixels within 0.3 arcsec of a place."""
    along = (torch.arange(64) - 31.5) * 0.08
    return (along[None, :] - place[0]).square() + (along[:, None] - place[1]).square() < 0.3**2


def test_subhaloes_are_told_from_none_without_any_learning() -> None:
    scores = [maps(simulated("noisy", name, 12))[1].amax(dim=(1, 2)) for name in ("no_sub", "cdm")]
    labels = torch.arange(2).repeat_interleave(12)
    assert roc_auc_score(labels, torch.cat(scores)) > 0.97
    bright = [simulated("noisy", name, 12).amax(dim=(1, 2, 3)) for name in ("no_sub", "cdm")]
    assert 0.2 < roc_auc_score(labels, torch.cat(bright)) < 0.8


def test_unit_and_background_of_each_image_are_its_own() -> None:
    images = simulated("noisy", "no_sub", 6)
    unit, background = torch.rand(2, 6, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for this, other in zip(maps(images), maps((images + background) * (0.1 + 10 * unit)), strict=True):
        assert float((this - other).square().mean().sqrt()) < 0.1


def test_bands_of_any_brightness_are_fitted_together() -> None:
    of = population("Model_III", "noisy")
    system = simulation.draw_system(of, 0, np.random.default_rng(2))
    colours = torch.tensor([1.0, 0.3, 0.1])[:, None, None]
    clean = colours * simulation.render([system], population=of, dtype=torch.float32)
    noisy = simulation.expose(clean, 3 * [system], [np.random.default_rng(k) for k in range(3)], population=of)
    residual, significance = maps(torch.from_numpy(noisy)[None])
    assert 0.8 < float(chi_squared(residual)) < 1.3
    assert float(significance.abs().max()) < 6
    shifted = torch.from_numpy(np.stack([np.roll(band, 3 * k, axis=1) for k, band in enumerate(noisy)]))[None]
    assert float(chi_squared(maps(shifted)[0])) > 3


def test_a_turned_image_has_a_turned_residual() -> None:
    images = simulated("noisy", "no_sub", 3)
    for turn in (lambda image: image.flip(-1), lambda image: image.rot90(1, (-2, -1))):
        for straight, turned in zip(maps(images), maps(turn(images)), strict=True):
            assert float((turn(straight) - turned).square().mean().sqrt()) < 0.2


def test_the_smooth_lens_is_the_one_of_the_simulation() -> None:
    latents = torch.zeros(1, NUM_LATENTS)
    p = {name: value[0, 0, 0] for name, value in parameters(latents).items()}
    along = (torch.arange(64) - 31.5) / 32
    x, y = along[None, :], along[:, None]
    alpha_x, alpha_y = sie_deflection(x, y, theta_E=p["theta_E"], e1=p["e1"], e2=p["e2"])
    source = simulation.sersic_brightness(
        x - alpha_x,
        y - alpha_y,
        amplitude=1.0,
        radius=float(p["source_radius"]),
        index=float(p["source_index"]),
        e1=0.0,
        e2=0.0,
        center_x=torch.tensor(0.0),
        center_y=torch.tensor(0.0),
    )
    fwhm = 2 * math.sqrt(2 * math.log(2)) * float(p["psf_sigma"]) * 32
    expected = simulation.gaussian_blur(source[None], fwhm_pixels=fwhm, truncation=8.0)
    torch.testing.assert_close(render(latents, 64), expected, rtol=1e-3, atol=1e-4)


def test_the_derivatives_are_those_of_autograd() -> None:
    latents = torch.randn(2, NUM_LATENTS, generator=torch.Generator().manual_seed(0)) / 2
    image, slopes = derivatives(latents, 32)
    torch.testing.assert_close(image, render(latents, 32))
    exact = torch.autograd.functional.jacobian(lambda z: render(z, 32).sum(dim=0), latents, vectorize=True)
    assert isinstance(exact, Tensor)
    for ours, other in zip(slopes.unbind(1), exact.permute(2, 3, 0, 1).unbind(1), strict=True):
        assert float((ours - other).norm() / other.norm()) < 0.01


@pytest.mark.parametrize(("image_size", "in_chans"), [(32, 5), (64, 1), (64, 3), (160, 3)])
def test_every_parameter_and_every_border_counts(image_size: int, in_chans: int) -> None:
    torch.manual_seed(0)
    model = LensResidual(in_chans=in_chans, image_size=image_size)
    images = torch.randn(3, in_chans, image_size, image_size).requires_grad_()
    features = model(images)
    assert features.shape == (3, model.num_features)
    (features * torch.randn_like(features)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert images.grad is not None
    depends = images.grad.abs().sum(dim=(0, 1)) > 0
    assert all(border.any() for border in (depends[0], depends[-1], depends[:, 0], depends[:, -1]))


def test_a_size_that_would_lose_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=f"image_size=50 is not a multiple of {MULTIPLE}"):
        LensResidual(in_chans=1, image_size=50)


def strange_images() -> dict[str, Tensor]:
    """Images in which there is no lens."""
    noise = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    spike = torch.zeros(1, 64, 64)
    spike[0, 0, 63] = 1e6
    along = torch.linspace(-1, 1, 64)
    galaxy = torch.exp(-(along**2 + along[:, None] ** 2) / 0.02)[None]
    names = ("blank", "constant", "noise", "bright", "faint", "spike", "galaxy", "slope", "negative")
    zero = torch.zeros(1, 64, 64)
    slope = along.expand(1, 64, 64)
    images = (zero, zero + 7, noise, 1e6 * noise, 1e-6 * noise, spike, 100 * galaxy + noise, slope, -galaxy)
    return dict(zip(names, images, strict=True))


@pytest.mark.parametrize("name", strange_images())
def test_an_image_without_a_lens_gives_finite_features_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = LensResidual(in_chans=1, image_size=64)
    images = torch.stack([strange_images()[name], strange_images()["noise"]])
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images)
    features.float().square().sum().backward()
    assert features.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_precision_of_bf16_does_not_reach_the_fit() -> None:
    seen: list[Tensor] = []
    model = LensResidual(in_chans=1, image_size=64).eval()
    first = next(layer for layer in model.network.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = simulated("noisy", "cdm", 3)
    model(images)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert torch.equal(*seen)


def test_images_do_not_know_each_other_and_weights_can_be_loaded() -> None:
    torch.manual_seed(0)
    model = LensResidual(in_chans=1, image_size=64).eval()
    images = torch.cat([simulated("noisy", "no_sub", 2), simulated("physical", "no_sub", 2)])
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
        assert float((together - alone).abs().max() / together.abs().max()) < 0.02
        other = LensResidual(in_chans=1, image_size=64).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images), together)
