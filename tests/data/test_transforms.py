"""Augmentation: what it must not change, and scipy and numpy for the rest."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from deeplense.data.transforms import NUM_UNIFORMS, augment, flip_and_turn, zoom_and_rotate


def images(count: int = 3, size: int = 8, bands: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(size=(count, bands, size, size)))


def smooth(size: int = 33, sigma: float = 4.0) -> Tensor:
    """One image of two round blobs off the centre, wide enough to be interpolated well."""
    x = torch.arange(size, dtype=torch.float64) - size // 2

    def blob(x0: float, y0: float) -> Tensor:
        return torch.exp(-((x[None, :] - x0) ** 2 + (x[:, None] - y0) ** 2) / (2 * sigma**2))

    return (blob(5, -2) + 0.5 * blob(-3, -4))[None, None]


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=(count, NUM_UNIFORMS)))


def zoomed(image: Tensor, zoom: float, degrees: float) -> Tensor:
    factors = torch.full((len(image),), zoom, dtype=image.dtype)
    return zoom_and_rotate(image, factors, torch.full_like(factors, math.radians(degrees)))


def test_the_eight_ways_are_distinct_permutations_of_the_pixels() -> None:
    numbered = torch.arange(25.0).reshape(1, 1, 5, 5).repeat(8, 1, 1, 1)
    ways = flip_and_turn(numbered, torch.arange(8))
    assert len({tuple(way.ravel().tolist()) for way in ways}) == 8
    for way in ways:
        assert sorted(way.ravel().tolist()) == list(range(25))
    assert torch.equal(ways[0], numbered[0])


@pytest.mark.parametrize(("dtype", "bands", "size"), [("float32", 3, 7), ("float64", 1, 8), ("bfloat16", 2, 1)])
def test_the_eight_ways_are_those_of_numpy_to_the_bit(dtype: str, bands: int, size: int) -> None:
    before = torch.randn(40, bands, size, size, generator=torch.Generator().manual_seed(0))
    before[0, 0, 0, 0], before[-1, -1, -1, -1] = torch.nan, torch.inf
    before = before.to(getattr(torch, dtype))
    ways = torch.arange(40) % 8
    found = flip_and_turn(before, ways).double().numpy()
    for image, way, out in zip(before.double().numpy(), ways.tolist(), found, strict=True):
        turned = np.rot90(image, way % 4, axes=(1, 2))
        assert np.array_equal(out, turned[..., ::-1] if way >= 4 else turned, equal_nan=True)


def test_each_way_is_drawn_alike() -> None:
    numbers = torch.stack([torch.arange(80) / 80, torch.full((80,), 0.5), torch.full((80,), 0.5)], dim=1)
    out = augment(images(1).repeat(80, 1, 1, 1), numbers, flips=True, random_zoom=1, random_rotation=0)
    ways = [tuple(each.ravel().tolist()) for each in out]
    assert [ways.count(each) for each in set(ways)] == [10] * 8


@pytest.mark.parametrize(("flips", "zoom", "rotation"), [(True, 1.0, 0.0), (False, 1.3, 0.0), (True, 1.2, 30.0)])
def test_augmentation_is_a_function_of_the_random_numbers_of_the_image(
    flips: bool, zoom: float, rotation: float
) -> None:
    before, numbers = images(12), uniforms(12)

    def augmented(chosen: list[int]) -> Tensor:
        return augment(before[chosen], numbers[chosen], flips=flips, random_zoom=zoom, random_rotation=rotation)

    together = augmented(list(range(12)))
    assert torch.equal(augmented(list(range(12))[::-1]).flip(0), together)
    for k in (0, 5, 11):
        assert torch.equal(augmented([k])[0], together[k])
    assert not torch.equal(together, before)


def test_zoom_one_and_no_rotation_is_the_identity() -> None:
    torch.testing.assert_close(zoomed(images(), 1.0, 0.0), images(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_rotation_by_quarters_is_a_quarter_turn(quarters: int) -> None:
    turned = zoomed(smooth(), 1.0, 90.0 * quarters)
    candidates = [torch.rot90(smooth(), sign * quarters, dims=(-2, -1)) for sign in (1, -1)]
    assert min(float((turned - each).abs().max()) for each in candidates) < 1e-9


@pytest.mark.parametrize(("zoom", "degrees"), [(1.5, 0.0), (0.8, 0.0), (1.0, 25.0), (1.2, -40.0)])
def test_zoom_and_rotation_are_those_of_scipy(zoom: float, degrees: float) -> None:
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    image, places = smooth()[0, 0].numpy(), np.indices((33, 33)).reshape(2, -1) - 16
    candidates = [
        map_coordinates(image, turn @ places / zoom + 16, order=1, mode="reflect").reshape(33, 33)
        for turn in (rotation, rotation.T)
    ]
    ours = zoomed(smooth(), zoom, degrees)[0, 0].numpy()
    assert min(np.abs(ours - each)[5:-5, 5:-5].max() for each in candidates) < 1e-9


def test_a_zoom_enlarges_and_its_inverse_undoes_it() -> None:
    larger = zoomed(smooth(), 1.25, 15.0)
    assert larger.sum() > 1.4 * smooth().sum()
    back = zoomed(larger, 1 / 1.25, -15.0)
    assert (back - smooth())[..., 8:-8, 8:-8].abs().max() < 0.03
    assert (larger - smooth())[..., 8:-8, 8:-8].abs().max() > 0.1
