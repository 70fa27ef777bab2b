"""The light of the source and the PSF: conservation, scipy, lenstronomy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.ndimage import gaussian_filter
from torch import Tensor

from deeplense.simulation.light import gaussian_blur, sersic_brightness, sersic_flux

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def sersic(x: Tensor, y: Tensor, *, index: float = 1.0, e1: float = 0.0, e2: float = 0.0) -> Tensor:
    center = torch.tensor(0.1, dtype=x.dtype)
    shape = {"radius": 0.25, "index": index, "e1": e1, "e2": e2}
    return sersic_brightness(x, y, amplitude=3.0, **shape, center_x=center, center_y=-center)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(fwhm=st.floats(0.5, 7.0), truncation=st.floats(2.0, 6.0))
def test_the_blur_is_that_of_scipy(fwhm: float, truncation: float) -> None:
    before = images(2, 24, 31)
    ours = gaussian_blur(before, fwhm_pixels=fwhm, truncation=truncation)
    for image, blurred in zip(before, ours, strict=True):
        expected = gaussian_filter(image.numpy(), fwhm / FWHM_PER_SIGMA, mode="nearest", truncate=truncation)
        np.testing.assert_allclose(blurred.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_blur_conserves_flux_away_from_the_border() -> None:
    image = torch.zeros(1, 40, 40, dtype=torch.float64)
    image[0, 15:25, 15:25] = images(10, 10)
    blurred = gaussian_blur(image, fwhm_pixels=4.0)
    assert blurred.sum().item() == pytest.approx(image.sum().item(), rel=1e-13)
    assert blurred.max() < 0.9 * image.max()


def test_the_blur_is_linear_and_has_derivatives() -> None:
    first, second = images(1, 12, 12), images(1, 12, 12, seed=1)
    summed = gaussian_blur(first, fwhm_pixels=2.0) + 3 * gaussian_blur(second, fwhm_pixels=2.0)
    torch.testing.assert_close(gaussian_blur(first + 3 * second, fwhm_pixels=2.0), summed)
    assert torch.autograd.gradcheck(
        lambda image: gaussian_blur(image, fwhm_pixels=1.5, truncation=2.0), images(1, 5, 5).requires_grad_()
    )


@pytest.mark.parametrize("index", [0.5, 1.0, 2.0, 4.0])
def test_the_flux_of_a_sersic_profile_is_the_integral_of_its_brightness(index: float) -> None:
    def ring(log_r: float) -> float:
        r = torch.tensor(math.exp(log_r), dtype=torch.float64)
        return 2 * math.pi * float(r**2 * sersic(r + 0.1, torch.full_like(r, -0.1), index=index))

    integral, _ = quad(ring, math.log(1e-6), math.log(1e6), limit=500, points=[math.log(1e-4), math.log(0.25)])
    assert integral == pytest.approx(3.0 * sersic_flux(radius=0.25, index=index), rel=1e-5)


@pytest.mark.parametrize(("e1", "e2"), [(-0.1, 0.1), (0.4, 0.0), (0.0, -0.3)])
def test_an_ellipse_has_the_flux_of_the_circle(e1: float, e2: float) -> None:
    along = (torch.arange(1200, dtype=torch.float64) - 599.5) * 0.01
    total = sersic(along[None, :], along[:, None], e1=e1, e2=e2).sum().item() * 0.01**2
    assert total == pytest.approx(3.0 * sersic_flux(radius=0.25, index=1.0), rel=1e-4)


@pytest.mark.parametrize(("index", "e1", "e2"), [(1.0, -0.1, 0.1), (1.0, 0.0, 0.0), (4.0, 0.3, -0.2), (0.7, 0.0, 0.5)])
def test_the_source_is_that_of_lenstronomy(index: float, e1: float, e2: float) -> None:
    from lenstronomy.LightModel.light_model import LightModel

    x, y = images(2, 500) * 2 - 1
    shape = {"R_sersic": 0.25, "n_sersic": index, "e1": e1, "e2": e2, "center_x": 0.1, "center_y": -0.1}
    theirs = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(x.numpy(), y.numpy(), [{"amp": 3.0} | shape])
    np.testing.assert_allclose(sersic(x, y, index=index, e1=e1, e2=e2).numpy(), theirs, rtol=1e-9)
