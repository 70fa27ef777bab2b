"""Stretches: what they say, on what a data set they are standard, and that each comes back."""

import pytest
import torch
from torch import Tensor

from deeplense.data.scaling import FORMULAS, Scaling, Statistics

STRETCHES = sorted(FORMULAS)


def skewed(count: int = 50) -> Tensor:
    """Images of two bands in units that are far apart, with a bright tail and an offset."""
    drawn = torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn**6 * torch.tensor([10.0, 1000.0]).double()[:, None, None] + 5


def statistics_of(images: Tensor) -> Statistics:
    """All that a stretch may ask for, by the textbook."""
    known = moments(images, "")
    scale = torch.tensor([std or 1.0 for std in known["std"]], dtype=images.dtype)[:, None, None]
    return known | moments(torch.asinh(10 * images / scale) / 2, "stretched_")


def moments(images: Tensor, prefix: str) -> dict[str, list[float]]:
    """Mean and standard deviation of each band."""
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3), correction=0)
    return {f"{prefix}mean": mean.tolist(), f"{prefix}std": std.tolist()}


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_stretch_does_what_its_formula_says_in_any_unit(stretch: str) -> None:
    images = skewed()
    known = statistics_of(images)
    out = Scaling(known, stretch).scaled(images)
    named = {name: torch.tensor(values, dtype=torch.float64)[:, None, None] for name, values in known.items()}
    expected = eval(FORMULAS[stretch], {"x": images, "asinh": torch.asinh, **named})
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(Scaling(statistics_of(1e3 * images), stretch).scaled(1e3 * images), out)


@pytest.mark.parametrize("stretch", ["linear", "standard_asinh"])
def test_the_pixels_of_a_data_set_become_standard(stretch: str) -> None:
    images = skewed()
    out = Scaling(statistics_of(images), stretch).scaled(images)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(2).double())
    assert Scaling(statistics_of(images), "asinh").scaled(images).mean() > 0.5


@pytest.mark.parametrize("stretch", STRETCHES)
def test_images_come_back_with_their_flux(stretch: str) -> None:
    images = skewed()
    scaling = Scaling(statistics_of(images), stretch)
    there = scaling.scaled(images)
    torch.testing.assert_close(scaling.unscaled(there), images, atol=1e-10, rtol=1e-10)
    assert there.sum().item() != pytest.approx(images.sum().item())


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_band_without_variation_stays_finite(stretch: str) -> None:
    flat = torch.full((2, 1, 4, 4), 3.0)
    out = Scaling(statistics_of(flat), stretch).scaled(flat)
    assert torch.isfinite(out).all()
    if stretch == "linear":
        assert torch.equal(out, torch.zeros_like(out))
