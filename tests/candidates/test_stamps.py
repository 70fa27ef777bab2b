"""Images as bytes for a browser: what is decoded is what was encoded, and colours are comparable between images."""

import numpy as np
import pytest
from astropy.stats import sigma_clipped_stats

from deeplense.candidates.stamps import background, colour_bands, decode, encode, middle, shrunk

PLANES = (0, 1, 2)


def sky(count: int, *, size: int = 24, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise with an offset in each of three bands, and a bright source in the middle, (count, 3, size, size)."""
    random = np.random.default_rng(seed)
    images = random.normal(0, noise, size=(count, 3, size, size)) + np.array([5.0, -3.0, 100.0])[:, None, None]
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return images + 400 * noise * np.exp(-(rows**2 + columns**2) / 8)


def test_decoded_pixels_differ_by_half_a_step_at_most_and_by_little_of_the_noise_where_they_are_faint() -> None:
    images = sky(7)
    stamps = encode([images[:4], images[4:]], planes=PLANES)
    found = decode(stamps)
    assert stamps.codes.dtype == np.uint8
    steps = (stamps.high - stamps.low)[..., None, None] / 254
    scaled = [
        np.arcsinh((each - stamps.sky[..., None, None]) / stamps.noise[..., None, None]) for each in (images, found)
    ]
    assert (np.abs(scaled[0] - scaled[1]) <= 0.5001 * steps).all()
    in_noise = np.abs(images - stamps.sky[..., None, None]) / stamps.noise[..., None, None]
    errors = np.abs(images - found) / stamps.noise[..., None, None]
    assert errors[in_noise < 1].max() < 0.05


def test_background_and_noise_are_those_of_sigma_clipping_of_astropy() -> None:
    images = sky(3, size=40)
    found = background(images)
    for number in range(3):
        for band in range(3):
            _, middle_of, spread = sigma_clipped_stats(images[number, band], sigma=3, maxiters=5)
            assert found[0][number, band] == pytest.approx(middle_of, abs=0.02)
            assert found[1][number, band] == pytest.approx(spread, rel=0.02)


def test_the_background_is_that_of_the_pixels_that_have_a_value() -> None:
    images = sky(2) + 1000
    part = images.copy()
    part[:, :, :, 16:] = np.nan
    found = background(part)
    right = background(images[:, :, :, :16])
    np.testing.assert_allclose(found, right, rtol=1e-9)


def test_the_unit_of_the_pixels_makes_no_difference_to_what_is_drawn() -> None:
    images = sky(4)
    one, other = encode([images], planes=PLANES), encode([images * 1e-3], planes=PLANES)
    np.testing.assert_allclose(one.white, other.white, rtol=1e-6)
    assert (np.abs(one.codes.astype(int) - other.codes) <= 1).all()


def test_one_scale_for_all_keeps_the_colours_of_images_apart() -> None:
    images = sky(5)
    images[0, 0] += 3 * (images[0, 0] - 5)
    stamps = encode([images], planes=PLANES)
    assert stamps.scale.shape == (3,)
    peak = (decode(stamps) - stamps.sky[..., None, None]).max(axis=(2, 3)) / stamps.scale
    assert peak[0, 0] > 3 * peak[1:, 0].max()
    np.testing.assert_allclose(peak[0, 1:], peak[1, 1:], rtol=0.1)


def test_an_image_without_a_source_stays_dark() -> None:
    images = sky(5)
    images[2] = np.random.default_rng(1).normal(0, 1, size=images[2].shape)
    stamps = encode([images], planes=PLANES)
    levels = ((decode(stamps) - stamps.sky[..., None, None]) / stamps.scale[:, None, None]).mean(axis=1)
    assert levels[2].max() < 0.6 * stamps.white[2]
    assert levels[1].max() >= stamps.white[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_not_finite_has_no_value_and_changes_no_other(value: float) -> None:
    images = sky(2)
    spoilt = images.copy()
    spoilt[0, 1, 3, 4] = value
    found = decode(encode([spoilt], planes=PLANES))
    assert np.isnan(found[0, 1, 3, 4])
    assert np.isfinite(found).sum() == found.size - 1
    np.testing.assert_allclose(found[0, 1, 5:], images[0, 1, 5:], atol=30, rtol=0.05)


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan])
def test_an_image_of_one_value_is_encoded_without_a_warning(value: float, recwarn: pytest.WarningsRecorder) -> None:
    images = np.full((2, 3, 8, 8), value)
    found = decode(encode([images], planes=PLANES))
    np.testing.assert_allclose(found, images, atol=1e-6)
    assert [str(warning.message) for warning in recwarn] == []


def test_images_that_are_stretched_already_are_kept_to_one_part_in_255() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(3, 3, 9, 9)).astype(np.float32)
    stamps = encode([images], planes=PLANES, is_stretched=True)
    assert np.abs(decode(stamps) - images).max() <= 0.51
    assert (stamps.white == 1).all()
    assert (stamps.scale == 255).all()


@pytest.mark.parametrize(
    ("bands", "asked", "right"),
    [
        (("g", "r", "i"), (), "irg"),
        (("u", "G", "R", "I", "z"), (), "IRG"),
        (("g", "r", "z"), (), "zrg"),
        (("VIS", "Y", "J", "H"), (), ("H", "J", "VIS")),
        (("r",), (), "rrr"),
        (("g", "i"), (), "iig"),
        (("g", "r", "i", "z"), ("z", "i", "g"), "zig"),
        (("g", "r", "i"), ("R",), "rrr"),
    ],
)
def test_bands_are_drawn_from_red_to_blue(bands: tuple[str, ...], asked: tuple[str, ...], right: str) -> None:
    assert [bands[k] for k in colour_bands(bands, asked)] == list(right)


@pytest.mark.parametrize("asked", [("i", "r", "y"), ("i", "r")])
def test_bands_that_do_not_exist_or_are_two_are_refused(asked: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"rgb={','.join(asked)}"):
        colour_bands(("g", "r", "i"), asked)


def test_the_middle_keeps_the_centre_and_a_small_image_whole() -> None:
    image = np.arange(64 * 48).reshape(64, 48)
    assert middle(image, 20).shape == (20, 20)
    assert middle(image, 20)[10, 10] == image[32, 24]
    assert middle(image, 100) is not None
    assert middle(image, 100).shape == (64, 48)


def test_large_images_are_averaged_and_keep_their_mean() -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 60))
    small, factor = shrunk(images, 16)
    assert (small.shape, factor) == ((2, 3, 16, 15), 4)
    np.testing.assert_allclose(small.mean(axis=(2, 3)), images.mean(axis=(2, 3)))
    same, factor = shrunk(images, 64)
    assert factor == 1
    np.testing.assert_array_equal(same, images)
