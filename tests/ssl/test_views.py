"""Views: what each step must keep, scipy for where light falls, statistics with a control for what is random."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

from deeplense.random.noise import fast_words
from deeplense.ssl.views import (
    DRAWS,
    KEYS,
    LENSES,
    PRESETS,
    PUBLISHED,
    ViewSettings,
    blur,
    estimate_sky,
    make_views,
    num_uniforms,
)

STILL = ViewSettings(
    num_global=1,
    num_local=0,
    global_scale=(1.0, 1.0),
    flips=False,
    rotation=0,
    zoom=1,
    blur_fwhm=0,
    noise=(0, 0),
    gain=(1, 1),
    zero_point=0,
    reddening=0,
)
"""Nothing is done; each test changes what it is about."""
CHANGES: dict[str, dict[str, Any]] = {
    "crop": {"global_scale": (0.3, 0.9)},
    "place": {"global_scale": (0.5, 0.5)},
    "aspect": {"global_scale": (0.5, 0.5), "global_spread": 0, "aspect": 1.5},
    "mirror": {"flips": True},
    "turn": {"rotation": 20},
    "zoom": {"zoom": 1.3},
    "blur": {"blur_fwhm": 3},
    "noise": {"noise": (0.2, 0.2)},
    "gain": {"gain": (0.5, 2)},
    "zero point": {"zero_point": 0.1},
    "dust": {"reddening": 0.3, "bands": ("g", "r", "i")},
}
SIZE = 32


def images(count: int = 4, size: int = SIZE, bands: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, bands, size, size))).float()


def star(x: float, y: float, sigma: float = 1.5, size: int = SIZE) -> Tensor:
    """One round source of flux 1, (1, 1, size, size), `x` and `y` pixels off the middle."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    image = torch.exp(-((place - x) ** 2 + (place[:, None] - y) ** 2) / (2 * sigma**2))
    return (image / image.sum()).float()[None, None]


def drawn(made: ViewSettings, count: int, *, seed: int = 0, fixed: dict[str, float] | None = None) -> Tensor:
    """Random numbers for `count` samples; what is named is the same for all views."""
    numbers = np.random.default_rng(seed).uniform(size=(count, num_uniforms(made) // len(DRAWS), len(DRAWS)))
    for name, value in (fixed or {}).items():
        numbers[..., DRAWS.index(name)] = value
    return torch.from_numpy(numbers.reshape(count, num_uniforms(made))).float()


def views(given: Tensor, made: ViewSettings, seed: int = 0, **fixed: float) -> list[Tensor]:
    sky = torch.ones(given.shape[1])
    return make_views(given, drawn(made, len(given), seed=seed, fixed=fixed), made, sky=sky)


def width(image: Tensor) -> float:
    """Standard deviation of the light of an image (S, S) along both axes."""
    place = torch.arange(len(image), dtype=torch.float64)
    light = image.double() / image.double().sum()
    return math.sqrt(
        sum(float((sums * place**2).sum() - (sums * place).sum() ** 2) for sums in (light.sum(0), light.sum(1))) / 2
    )


@pytest.mark.parametrize("size", [16, 32, 64])
def test_settings_that_change_nothing_give_the_image_back(size: int) -> None:
    given = images(size=size)
    torch.testing.assert_close(views(given, replace(STILL, global_size=size))[0][0], given, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "border"), [(33, 0), (40, 4), (41, 4)])
def test_the_stamp_is_the_middle_of_the_image_to_the_rounding_of_places(size: int, border: int) -> None:
    given, side = images(size=size), size - 2 * border
    stamp = views(given, replace(STILL, global_size=side, stamp_size=side))[0][0]
    expected = given[..., border : size - border, border : size - border]
    # Places are between -1 and 1 in float32: to 2**-24 of half the image, and pixels differ by up to 6.
    torch.testing.assert_close(stamp, expected, rtol=0, atol=6 * size * 2**-23)


@pytest.mark.parametrize("name", PRESETS)
def test_the_views_of_a_resolution_are_one_tensor_large_ones_first(name: str) -> None:
    made = PRESETS[name]
    large, local = views(images(), made)
    assert large.shape == (made.num_global, 4, 3, made.global_size, made.global_size)
    assert local.shape == (made.num_local, 4, 3, made.local_size, made.local_size)
    assert large.is_contiguous()
    assert local.is_contiguous()
    assert len(views(images(), replace(made, num_local=0))) == 1


@pytest.mark.parametrize("change", CHANGES)
def test_each_sample_and_each_view_is_drawn_by_itself(change: str) -> None:
    same, made = images(1).repeat(5, 1, 1, 1), replace(STILL, num_global=3, **CHANGES[change])
    together = views(same, made)[0].flatten(0, 1)
    # There are four ways to mirror.
    assert len(torch.unique(together, dim=0)) == (4 if change == "mirror" else 15)
    still = views(same, replace(STILL, num_global=3))[0].flatten(0, 1)
    assert torch.equal(still, still[:1].expand_as(still))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [32, 80])
def test_the_views_of_a_sample_do_not_depend_on_its_batch(name: str, size: int) -> None:
    given, made, sky = images(13, size), PRESETS[name], torch.tensor([1.0, 2.0, 3.0])
    numbers = drawn(made, 13)
    together = make_views(given, numbers, made, sky=sky)
    for chosen in ([4], [12, 0], list(range(13))[::-1], [5, 6, 7]):
        for some, all_of_them in zip(make_views(given[chosen], numbers[chosen], made, sky=sky), together, strict=True):
            assert torch.equal(some, all_of_them[:, chosen])


def test_the_numbers_of_large_and_local_views_are_their_own() -> None:
    alike = replace(LENSES, num_local=2, local_size=32, local_scale=LENSES.global_scale, local_spread=1.0)
    large, local = views(images(1).repeat(4, 1, 1, 1), alike)
    assert len(torch.unique(torch.cat([large, local]).flatten(0, 1), dim=0)) == 16
    # In another order of its views the sample has the same views in that order.
    numbers = drawn(alike, 4).unflatten(1, (4, -1))[:, [2, 3, 0, 1]].flatten(1)
    swapped = make_views(images(1).repeat(4, 1, 1, 1), numbers, alike, sky=torch.ones(3))
    assert torch.equal(torch.stack(swapped), torch.stack([local, large]))


def test_images_need_not_be_square() -> None:
    given = images(size=64)[..., 10:50, :]
    found = views(given, replace(STILL, global_size=32, stamp_size=32, rotation=180), angle=0.75)[0][0]
    ways = [torch.rot90(given[..., 4:36, 16:48], sign, dims=(-2, -1)) for sign in (1, -1)]
    assert min(float((found - way).abs().max()) for way in ways) < 1e-4
    assert views(given, LENSES)[1].shape == (8, 4, 3, 16, 16)


def test_no_images_have_no_views() -> None:
    assert [len(each[0]) for each in views(images()[:0], LENSES)] == [0, 0]


def test_one_view_of_one_sample_is_that_of_a_batch() -> None:
    given, made = images(9), replace(LENSES, num_global=1, num_local=0)
    together = views(given, made)[0]
    alone = make_views(given[:1], drawn(made, 9)[:1], made, sky=torch.ones(3))[0]
    assert torch.equal(alone, together[:, :1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
def test_views_are_float32_whatever_the_images_and_under_autocast(dtype: torch.dtype) -> None:
    given = (10 * images() + 50).to(dtype)
    expected = views(given.float(), LENSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = views(given, LENSES)
    for ours, those in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, those)
    assert not torch.equal(found[0], views(given, LENSES, seed=1)[0])


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.0, 1 - 1e-7), (0.5, 0.5)])
def test_a_window_is_cut_out_where_it_was_drawn(x: float, y: float) -> None:
    given, made = images(), replace(STILL, global_size=16, global_scale=(0.25, 0.25))
    left, top = round(16 * x), round(16 * y)
    found = views(given, made, x=x, y=y)[0][0]
    torch.testing.assert_close(found, given[..., top : top + 16, left : left + 16], rtol=0, atol=2e-5)


def windows_of(made: ViewSettings) -> tuple[Tensor, Tensor]:
    """Middles and sides of 2000 windows along x and y, in pixels of the stamp, (2, B): read off two ramps."""
    place = torch.arange(32.0).expand(32, 32) - 15.5
    found = views(torch.stack([place, place.T])[None].repeat(2000, 1, 1, 1), made)[0][0]
    x, y = found[:, 0, 0], found[:, 1, :, 0]
    ends = torch.stack([torch.stack([x[:, 10], x[:, 21]]), torch.stack([y[:, 10], y[:, 21]])])
    return ends.mean(1), (ends[:, 1] - ends[:, 0]).abs() / 11 * 32


@pytest.mark.parametrize("spread", [1.0, 0.4, 0.0])
def test_windows_lie_in_the_stamp_and_their_areas_are_even(spread: float) -> None:
    middles, sides = windows_of(replace(STILL, global_scale=(0.14, 1.0), global_spread=spread, flips=True))
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=1e-3)
    share = (sides[0] / 32) ** 2
    assert stats.kstest(share, stats.uniform(0.14, 0.86).cdf).pvalue > 1e-3
    assert stats.kstest(share, stats.uniform(0.2, 0.8).cdf).pvalue < 1e-6
    room = (middles / (32 - sides))[:, sides[0] < 31]
    if spread:
        assert stats.kstest(room.flatten(), stats.uniform(-spread / 2, spread).cdf).pvalue > 1e-3
    else:
        assert middles.abs().max() < 1e-3


def test_windows_that_are_stretched_keep_their_area_and_fit() -> None:
    _, sides = windows_of(replace(STILL, global_scale=(0.3, 0.6), aspect=1.5))
    assert stats.kstest(sides.prod(0) / 32**2, stats.uniform(0.3, 0.3).cdf).pvalue > 1e-3
    ratio = torch.log(sides[0] / sides[1]) / math.log(1.5)
    assert stats.kstest(ratio, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    _, sides = windows_of(replace(STILL, global_scale=(0.9, 1.0), aspect=1.5))
    assert float(sides.max()) == pytest.approx(32, abs=1e-3)


def test_the_mirror_shows_each_of_four_ways_alike() -> None:
    given = images(1).repeat(80, 1, 1, 1)
    numbers = drawn(STILL, 80)
    numbers[:, DRAWS.index("mirror")] = torch.arange(80) / 80
    found = make_views(given, numbers, replace(STILL, flips=True), sky=torch.ones(3))[0][0]
    for k, axes in enumerate([(), (-1,), (-2,), (-1, -2)]):
        torch.testing.assert_close(found[20 * k : 20 * k + 20], given[:20].flip(axes), rtol=0, atol=1e-6)


@pytest.mark.parametrize("quarters", [0, 1, 2])
def test_a_quarter_turn_is_one(quarters: int) -> None:
    given = images()
    found = views(given, replace(STILL, rotation=180), angle=0.5 + quarters / 4)[0][0]
    ways = [torch.rot90(given, sign * quarters, dims=(-2, -1)) for sign in (1, -1)]
    assert min(float((found - way).abs().max()) for way in ways) < 1e-4


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    angle=st.floats(0, 0.999),
    zoom=st.floats(0, 0.999),
    x=st.floats(0, 0.999),
    y=st.floats(0, 0.999),
    way=st.integers(0, 3),
)
def test_all_of_the_geometry_together_is_that_of_scipy(angle: float, zoom: float, x: float, y: float, way: int) -> None:
    given = images(1, 40, 1)
    made = replace(STILL, global_size=24, global_scale=(0.4, 0.4), flips=True, rotation=180, zoom=1.2)
    found = views(given, made, angle=angle, zoom=zoom, x=x, y=y, mirror=way / 4)[0][0, 0, 0].numpy()
    factor, side = 1.2 ** (2 * zoom - 1), math.sqrt(0.4) * 40
    turned = (2 * angle - 1) * math.pi
    turn = np.array([[math.cos(turned), math.sin(turned)], [-math.sin(turned), math.cos(turned)]])
    # scipy's axes are rows, columns; its matrix goes from places in the view to places in the image.
    matrix = turn @ np.diag([-1 if way & 2 else 1, -1 if way & 1 else 1]) * side / factor / 24
    middle = 19.5 + (2 * np.array([y, x]) - 1) * (40 - side) / 2
    offset = middle - matrix @ np.array([11.5, 11.5])
    image = given[0, 0].double().numpy()
    expected = ndimage.affine_transform(image, matrix, offset, (24, 24), order=1, mode="reflect") / factor**2
    np.testing.assert_allclose(found, expected, atol=2e-4)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(angle=st.floats(0, 0.999), fwhm=st.floats(0, 0.999), x=st.floats(-2, 2), y=st.floats(-2, 2))
def test_turn_mirror_and_blur_keep_the_flux_of_a_star(angle: float, fwhm: float, x: float, y: float) -> None:
    made = replace(STILL, rotation=180, blur_fwhm=3, flips=True)
    found = views(star(x, y), made, angle=angle, blur=fwhm)[0][0, 0, 0]
    assert float(found.sum()) == pytest.approx(1, abs=0.004)


def test_a_zoom_keeps_the_flux_of_a_star_within_what_linear_interpolation_may_lose() -> None:
    """A tenth as much is lost of what is six pixels wide."""
    places = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
    stars = torch.cat([star(x, y) for x, y in places])
    found = views(stars, replace(STILL, zoom=1.1))[0][0].sum((1, 2, 3))
    assert (found - 1).abs().max() < 0.04
    assert (found - 1).std() < 0.01
    wide = torch.cat([star(x, y, sigma=6, size=96) for x, y in places[:50]])
    lost = views(wide, replace(STILL, global_size=96, zoom=1.1))[0][0].sum((1, 2, 3)) - 1
    assert lost.abs().max() < 0.004


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.75, 0.9999])
def test_a_zoom_enlarges_by_its_factor(draw: float) -> None:
    wide = star(0.3, -0.2, sigma=3, size=64)
    made = replace(STILL, global_size=64, zoom=1.3)
    found = views(wide, made, zoom=draw)[0][0, 0, 0]
    assert width(found) == pytest.approx(3 * 1.3 ** (2 * draw - 1), rel=0.02)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_view_that_is_shrunk_has_the_mean_of_the_pixels_below_each(factor: int) -> None:
    given = images(size=16 * factor)
    found = views(given, replace(STILL, global_size=16))[0][0]
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(given, factor), rtol=0, atol=1e-5)
    if factor > 2:
        plain = torch.nn.functional.interpolate(given, size=(16, 16), mode="bilinear")
        assert plain.std() > 1.3 * found.std()


@pytest.mark.parametrize("side", [25, 28, 32, 37])
def test_a_point_keeps_its_flux_wherever_it_falls_in_a_view_that_is_shrunk(side: int) -> None:
    """Within the quarter that a footprint of the right width, but not of the right shape, may lose."""
    given = torch.eye(side**2).reshape(-1, 1, side, side)
    found = views(given, replace(STILL, global_size=16))[0][0].sum((1, 2, 3)) * (side / 16) ** 2
    assert float(found.mean()) == pytest.approx(1, abs=1e-4)
    assert ((found > 0.7) & (found < 1.4)).all()


@pytest.mark.parametrize("fwhm", [0.3, 0.5, 1.0, 2.0, 4.5])
def test_the_blur_has_the_width_that_was_asked_for(fwhm: float) -> None:
    given = star(0, 0, sigma=1.2, size=41)
    found = blur(given[None], torch.full((1, 1), fwhm))[0, 0, 0]
    added = math.sqrt(width(found) ** 2 - width(given[0, 0]) ** 2)
    assert 2.354820045 * added == pytest.approx(fwhm, rel=3e-3)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found, found.T)
    # The logarithm of a Gaussian is a line in the square of the distance.
    across = torch.log(found[20, 20:26] / found[20, 20]).double().numpy()
    half = math.sqrt(np.interp(math.log(2), -across, np.arange(6.0) ** 2))
    assert 2 * half == pytest.approx(math.hypot(fwhm, 2.354820045 * 1.2), rel=3e-3)


def test_the_blur_is_that_of_scipy_and_reflects_at_the_border() -> None:
    given, sigmas = images(2)[None], torch.tensor([1.2, 2.0])
    found = blur(given, (sigmas * 2.354820045)[None])[0]
    for image, ours, sigma in zip(given[0].double().numpy(), found.numpy(), sigmas.tolist(), strict=True):
        theirs = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="reflect", truncate=8)
        assert np.abs(ours - theirs).max() < 2e-3 * theirs.std()
        assert np.abs(ours - ndimage.gaussian_filter(image, (0, sigma, sigma), mode="constant")).max() > 0.2


def test_as_many_views_are_blurred_as_asked_for_and_their_widths_are_even() -> None:
    made = replace(STILL, num_global=2, num_local=1, local_scale=(1, 1), local_size=32)
    made = replace(made, blur_fwhm=4, blur_share=(1.0, 0.3, 0.0), local_spread=0)
    large, local = views(star(0, 0).repeat(2000, 1, 1, 1), made)
    peaks = star(0, 0).max() - torch.cat([large, local]).amax((-1, -2))[..., 0]
    assert (peaks[0] > 0).float().mean() > 0.99
    assert float((peaks[1] > 1e-6).float().mean()) == pytest.approx(0.3, abs=0.04)
    assert (peaks[2].abs() < 1e-6).all()
    found = [width(view) for view in large[1, peaks[1] > 1e-6][:, 0]]
    added = np.sqrt(np.maximum(np.square(found) - 1.5**2, 0)) * 2.354820045
    assert stats.kstest(added, stats.uniform(0, 4).cdf).pvalue > 1e-3


NOISY = replace(STILL, num_global=2, noise=(0.5, 0.5))


def noise(count: int = 60, made: ViewSettings = NOISY, **fixed: float) -> Tensor:
    """The sky that is added to dark images, in units of what was asked for, (V, B, C, S, S)."""
    sky = torch.tensor([0.1, 2.0, 30.0])
    dark = torch.zeros(count, 3, SIZE, SIZE)
    return make_views(dark, drawn(made, count, fixed=fixed), made, sky=sky)[0] / (0.5 * sky[:, None, None])


def correlations(values: Tensor) -> dict[str, float]:
    """Between neighbours of many kinds, in units of what chance makes of white noise."""
    pairs = {
        "column": (values[..., 1:], values[..., :-1]),
        "row": (values[..., 1:, :], values[..., :-1, :]),
        "diagonal": (values[..., 1:, 1:], values[..., :-1, :-1]),
        "pair": (values.flatten(2)[..., :1536], values.flatten(2)[..., 1536:]),
        "band": (values[:, :, 1:], values[:, :, :-1]),
        "sample": (values[:, 1:], values[:, :-1]),
        "view": (values[1:], values[:-1]),
        "squares": (values[..., 1:] ** 2 - 1, values[..., :-1] ** 2 - 1),
        "squares of samples": (values[:, 1:] ** 2 - 1, values[:, :-1] ** 2 - 1),
    }
    return {name: float((a * b).mean() / (a * b).std()) * math.sqrt(a.numel()) for name, (a, b) in pairs.items()}


def test_the_sky_that_is_added_has_its_width_in_each_band_and_is_gaussian() -> None:
    found = noise()
    assert (found.std((0, 1, 3, 4)) - 1).abs().max() < 0.01
    assert (found.mean((0, 1, 3, 4))).abs().max() < 0.01
    each = found.std((2, 3, 4)).flatten()
    assert ((each - 1).abs() < 5 / math.sqrt(2 * 3 * SIZE**2)).all()
    sample = found.flatten()[::3].numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert stats.kstest(1.03 * sample, "norm").pvalue < 1e-3
    assert stats.kurtosis(sample) == pytest.approx(0, abs=0.05)
    assert 4 < float(found.abs().max()) < 6


def test_the_sky_that_is_added_is_white() -> None:
    assert {name: value for name, value in correlations(noise()).items() if abs(value) > 5} == {}
    smooth = blur(noise(), torch.full((2, 60), 0.8))
    assert abs(correlations(smooth)["column"]) > 20


@pytest.mark.parametrize("key", ["key", "second_key"])
def test_keys_that_are_neighbours_draw_unlike_noise(key: str) -> None:
    numbers = drawn(NOISY, 50, fixed={"key": 0.3, "second_key": 0.7}).reshape(50, 2, -1)
    numbers[..., DRAWS.index(key)] = torch.arange(100).reshape(50, 2) / 2**24
    found = make_views(torch.zeros(50, 3, SIZE, SIZE), numbers.flatten(1), NOISY, sky=torch.full((3,), 2.0))[0]
    assert {name: value for name, value in correlations(found).items() if abs(value) > 5} == {}
    together = torch.corrcoef(found.flatten(0, 1).flatten(1)) - torch.eye(100)
    assert together.abs().max() < 6 / math.sqrt(3 * SIZE**2)


def test_both_keys_tell_views_apart() -> None:
    """A hash with 32 bits of state would draw about ten pairs of views alike."""
    numbers = np.random.default_rng(0).integers(0, 2**24, size=(len(KEYS), 1, 300_000))
    first, second = torch.from_numpy(numbers).float() / 2**24
    found = fast_words((first, second), 2)[0]
    assert len(np.unique(found.numpy().view(np.int64))) == 300_000


def test_the_same_numbers_draw_the_same_noise_and_the_level_changes_nothing_else() -> None:
    found = noise(key=0.3, second_key=0.7)
    assert torch.equal(found, found[:1, :1].expand_as(found))
    weaker = replace(NOISY, noise=(0.0, 0.5))
    torch.testing.assert_close(noise(made=weaker, key=0.3, second_key=0.7, noise=0.5), 0.5 * found)


def test_the_sky_is_not_blurred_and_light_comes_through() -> None:
    made = replace(NOISY, blur_fwhm=4)
    assert torch.equal(noise(made=made), noise())
    light = torch.full((60, 3, SIZE, SIZE), 7.0)
    torch.testing.assert_close(views(light, made)[0].mean((-1, -2)), torch.full((2, 60, 3), 7.0), rtol=0, atol=0.1)


def factors(made: ViewSettings, count: int = 500, bands: int = 3, **fixed: float) -> Tensor:
    """By how much each band is changed, (B, C)."""
    return views(torch.ones(count, bands, SIZE, SIZE), made, 0, **fixed)[0][0, :, :, 3, 5]


def test_a_common_gain_leaves_colours_alone_and_errors_of_zero_points_keep_to_their_bound() -> None:
    common = factors(replace(STILL, gain=(0.5, 2)))
    torch.testing.assert_close(common / common[:, :1], torch.ones_like(common))
    assert stats.kstest(common[:, 0], stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3
    errors = -2.5 * torch.log10(factors(replace(STILL, zero_point=0.05)))
    assert errors.abs().max() < 0.0501
    assert errors.abs().amax(0).min() > 0.048
    assert stats.kstest(errors.flatten(), stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
    assert torch.corrcoef(errors.T).fill_diagonal_(0).abs().max() < 0.2


def test_only_a_share_of_views_has_another_gain() -> None:
    common = factors(replace(STILL, gain=(0.2, 0.8), gain_share=0.1), 2000)[:, 0]
    assert float((common != 1).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert stats.kstest(common[common != 1], stats.uniform(0.2, 0.6).cdf).pvalue > 1e-3


def test_dust_reddens_by_the_formula_and_leaves_bands_that_it_does_not_know() -> None:
    made = replace(STILL, reddening=0.4, bands=("i", "F160W", "g", "r"))
    found = -2.5 * torch.log10(factors(made, 1, 4, dust=0.25))[0]
    torch.testing.assert_close(found, torch.tensor([0.1698, 0.0, 0.3303, 0.2285]), rtol=0, atol=1e-5)
    assert torch.equal(factors(replace(made, bands=())), torch.ones(500, 3))


def ring_seen(made: ViewSettings, radius: float) -> tuple[Tensor, Tensor]:
    """Whether large and local views show any of a ring (a disc for radius 0) in the middle."""
    place = torch.arange(SIZE) - 15.5
    ring = torch.exp(-(((torch.hypot(place, place[:, None]) - radius) / 1.5) ** 2)).expand(300, 1, SIZE, SIZE)
    made = replace(made, blur_fwhm=0, noise=(0, 0), gain=(1, 1), zero_point=0)
    large, local = views(ring, made)
    return large.amax((-1, -2)) > 0.4, local.amax((-1, -2)) > 0.4


def test_the_lens_stays_in_sight() -> None:
    large, _ = ring_seen(LENSES, 0)
    assert large.all()
    _, local = ring_seen(LENSES, 6)
    assert local.float().mean() > 0.99
    assert ring_seen(PUBLISHED, 0)[0].float().mean() < 0.98
    assert ring_seen(PUBLISHED, 6)[1].float().mean() < 0.85


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"global_scale": (0.0, 1.0)}, "global_scale"),
        ({"local_scale": (0.5, 0.2)}, "local_scale"),
        ({"noise": (-1.0, 1.0)}, "noise"),
        ({"zoom": 0.9}, "zoom"),
        ({"aspect": 0.5}, "aspect"),
        ({"num_global": 0}, "num_global"),
        ({"blur_fwhm": -1.0}, "blur_fwhm"),
        ({"blur_share": (1.0, 2.0, 0.0)}, "blur_share"),
        ({"local_spread": 1.5}, "local_spread"),
    ],
)
def test_wrong_settings_are_refused_by_name(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}=.* must be"):
        replace(LENSES, **change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_views(images(), torch.rand(4, 3), LENSES, sky=torch.ones(3)), r"uniforms have shape \(4, 3\)"),
        (lambda: make_views(images(), drawn(LENSES, 5), LENSES, sky=torch.ones(3)), r"uniforms have shape \(5, "),
        (lambda: make_views(images(), drawn(LENSES, 4), LENSES, sky=torch.ones(1)), "sky has shape"),
        (lambda: views(images(), replace(LENSES, bands=("g",))), "bands="),
        (lambda: views(images(), replace(LENSES, stamp_size=33)), r"stamp_size=33 is larger than the images \(32"),
        (lambda: estimate_sky(torch.full((2, 3, 8, 8), torch.nan)), r"bands \[0, 1, 2\]: they have no finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_sky_is_found_beside_lenses_neighbours_levels_and_missing_pixels() -> None:
    sigma = torch.tensor([0.5, 1.0, 40.0])[:, None, None]
    given = images(300, 40) * sigma
    given += 100 * torch.arange(300)[:, None, None, None] * sigma + 1e4 * sigma * star(0, 0, 4, 40)
    given[::2, :, :4, :4] += 500 * sigma
    given[::5, :, 30:] = torch.nan
    given[7] = torch.nan
    given[9, :, 0, 0] = torch.inf
    torch.testing.assert_close(estimate_sky(given), sigma[:, 0, 0], rtol=0.03, atol=0)
    assert float(given[1].std((-1, -2))[0]) > 3 * 0.5
