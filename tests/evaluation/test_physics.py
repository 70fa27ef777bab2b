"""What is measured on images is right, and the panel fails each broken generator for its own fault and lets real
images pass."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional
from toy_lenses import PIXEL_SCALE, blurred, normalised_one_by_one, toy_lenses

from deeplense.evaluation.memorisation import memorisation, orientations
from deeplense.evaluation.physics import (
    compare_images,
    einstein_radius_pixels,
    histogram_edges,
    peak_flux,
    pixel_histogram,
    radial_power_spectrum,
    total_flux,
)

COUNT = 300
PERMUTATIONS = 499


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    """Real images that no generator saw."""
    return toy_lenses(COUNT, 0)[0]


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    """Real images that generators were trained on."""
    return toy_lenses(COUNT, 1)[0]


@pytest.fixture(scope="module")
def new() -> np.ndarray:
    """What a perfect generator makes."""
    return toy_lenses(COUNT, 2)[0]


def failures(images: np.ndarray, held_out: np.ndarray, train: np.ndarray) -> set[str]:
    """Names of the tests and of the gate that images fail."""
    panel = compare_images(images, held_out, pixel_scale_arcsec=PIXEL_SCALE, num_permutations=PERMUTATIONS)
    return {*panel.failed, *(() if memorisation(images, held_out, train).passed else ("memorisation",))}


def resized_and_back(images: np.ndarray) -> np.ndarray:
    """Bilinear to a sixteenth fewer pixels and back, as 64 to 60 to 64."""
    size = images.shape[-1]
    smaller = functional.interpolate(
        torch.from_numpy(images), size=(size - size // 16,) * 2, mode="bilinear", antialias=True
    )
    return functional.interpolate(smaller, size=(size, size), mode="bilinear", antialias=True).numpy()


def collapsed(images: np.ndarray) -> np.ndarray:
    """Lenses with two fifths of the range of Einstein radii, otherwise as they should be."""
    return toy_lenses(len(images), 2, radii=(0.88, 1.12))[0]


@pytest.mark.parametrize(
    ("fault", "own"),
    [
        (blurred, {"power_spectrum", "pixel_histogram", "peak_flux"}),
        (resized_and_back, {"power_spectrum", "pixel_histogram", "peak_flux"}),
        (normalised_one_by_one, {"total_flux", "peak_flux", "pixel_histogram"}),
        # Rings of one radius leave their zeros at the same wavenumbers, which the mean spectrum shows.
        (collapsed, {"einstein_radius", "power_spectrum"}),
    ],
)
def test_a_broken_generator_fails_its_own_tests_and_no_other(
    fault: Callable[[np.ndarray], np.ndarray],
    own: set[str],
    new: np.ndarray,
    held_out: np.ndarray,
    train: np.ndarray,
) -> None:
    assert failures(fault(new), held_out, train) == own


def test_copied_training_images_fail_the_gate_alone(held_out: np.ndarray, train: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(scale=0.005, size=train.shape)
    assert failures((train + noise)[::-1].astype(np.float32), held_out, train) == {"memorisation"}


def test_new_images_of_the_same_kind_fail_nothing(new: np.ndarray, held_out: np.ndarray, train: np.ndarray) -> None:
    assert failures(new, held_out, train) == set()
    assert compare_images(train, held_out, pixel_scale_arcsec=PIXEL_SCALE, num_permutations=PERMUTATIONS).failed == []


def test_false_alarms_of_the_whole_panel_are_no_more_than_its_level() -> None:
    images = toy_lenses(800, 5, size=16)[0]
    alarms, flagged = 0, 0
    for seed in range(200):
        chosen = np.random.default_rng(seed).choice(len(images), 80, replace=False)
        halves = images[chosen[:40]], images[chosen[40:]]
        alarms += bool(compare_images(*halves, pixel_scale_arcsec=1, seed=seed, num_permutations=199).failed)
        brighter = (1.15 * halves[0] + 0.02, halves[1])
        flagged += bool(compare_images(*brighter, pixel_scale_arcsec=1, seed=seed, num_permutations=199).failed)
    assert alarms <= stats.binom.ppf(0.999, 200, 0.05)
    assert flagged > 100


def test_a_panel_says_in_words_what_failed_and_how(new: np.ndarray, held_out: np.ndarray) -> None:
    good = compare_images(new, held_out, pixel_scale_arcsec=PIXEL_SCALE, num_permutations=PERMUTATIONS)
    assert str(good) == "300 generated images against 300 held-out ones: no difference in any of 5 tests at level 0.05."
    bad = compare_images(2 * new, held_out, pixel_scale_arcsec=PIXEL_SCALE, num_permutations=PERMUTATIONS)
    first, *lines = str(bad).splitlines()
    assert first.endswith(f"{len(bad.failed)} of 5 tests find a difference.")
    assert [line.split(" ")[0] for line in lines] == bad.failed
    assert "power_spectrum" not in bad.failed


def test_classes_that_a_classifier_sees_too_rarely_fail(new: np.ndarray, held_out: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    balanced, other, rare = (generator.dirichlet(alpha, COUNT) for alpha in ([1, 1, 1], [1, 1, 1], [1, 1, 0.5]))
    for generated, failed in ((other, []), (rare, ["substructure_class"])):
        panel = compare_images(
            new,
            held_out,
            pixel_scale_arcsec=PIXEL_SCALE,
            probabilities=(generated, balanced),
            num_permutations=PERMUTATIONS,
        )
        assert panel.failed == failed
        assert len(panel.verdicts) == 6


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("size", [32, 64])
def test_einstein_radii_are_those_that_elliptical_lenses_with_shear_were_made_with(noise: float, size: int) -> None:
    """Between 0.7 and 1.3 arcsec. The law that is fitted has neither ellipticity nor shear: 1.5 % are theirs."""
    images, truth = toy_lenses(150, 3, label=0, noise=noise, size=size)
    bright = images.max(axis=(1, 2, 3)) > 5 * noise
    found = einstein_radius_pixels(images)[bright] * 4.0 / size
    error = found - truth[bright]
    assert np.corrcoef(found, truth[bright])[0, 1] > 0.98
    assert abs(np.median(error)) < 0.015
    assert 1.4826 * np.median(np.abs(error - np.median(error))) < 0.025
    slope, _ = np.polyfit(truth[bright], found, 1)
    assert slope == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("offset", [0, 4, 8, 12])
def test_the_radius_is_that_of_an_isothermal_lens_wherever_its_source_is(offset: float) -> None:
    """The lens equation of the singular isothermal sphere of 25 pixels, and a Gaussian source."""
    along = np.arange(101) - 50.0
    x, y = np.broadcast_arrays(along[None, :], along[:, None])
    radius = np.hypot(x, y)
    shrunk = 1 - 25 / np.maximum(radius, 0.5)
    image = np.exp(-((shrunk * x - 0.8 * offset) ** 2 + (shrunk * y - 0.6 * offset) ** 2) / (2 * 4**2))
    assert einstein_radius_pixels(image[None, None]).item() == pytest.approx(25, abs=0.05)
    assert abs((image * radius).sum() / image.sum() - 25) > 0.5


def test_radii_and_spectra_do_not_depend_on_orientation_brightness_and_background(new: np.ndarray) -> None:
    for measure in (einstein_radius_pixels, radial_power_spectrum):
        expected = measure(new[:20])
        for images in (*orientations(new[:20]), 7 * new[:20].astype(float) + 3):
            np.testing.assert_allclose(measure(images), expected, rtol=1e-4, atol=1e-4)


def test_a_wave_has_all_its_power_at_its_wavenumber() -> None:
    along = np.arange(24) / 24
    wave = np.cos(2 * np.pi * (3 * along[:, None] + 4 * along[None, :]))[None, None]
    shares = 10 ** radial_power_spectrum(wave)[0, 0]
    assert shares[5 - 1] == pytest.approx(1)
    assert np.delete(shares, 5 - 1).max() < 1e-9


def test_white_noise_has_as_much_power_as_there_are_waves() -> None:
    images = np.random.default_rng(0).normal(size=(4000, 1, 16, 16))
    along = np.fft.fftfreq(16, 1 / 16)
    radius = np.rint(np.hypot(along[:, None], along[None, :]))
    counts = np.array([(radius == k).sum() for k in range(1, 9)])
    means = (10 ** radial_power_spectrum(images)).mean(axis=(0, 1))
    np.testing.assert_allclose(means, counts / counts.sum(), rtol=0.05)


@pytest.mark.parametrize("counted", [False, True])
def test_a_histogram_is_that_of_numpy_band_by_band(counted: bool) -> None:
    images = np.random.default_rng(0).normal(scale=3, size=(5, 2, 8, 8))
    images = np.rint(images) if counted else images
    edges = histogram_edges(images, images + 1)
    shares = pixel_histogram(images, edges)
    assert shares.shape == (5, 2, len(edges) + 1)
    for image, of_image in zip(images, shares, strict=True):
        for band, share in zip(image, of_image, strict=True):
            counts, _ = np.histogram(band, np.r_[-np.inf, edges, np.inf])
            np.testing.assert_array_equal(share, counts / 64)


def test_fluxes_are_sums_and_maxima_of_each_band() -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(total_flux(images), images.reshape(2, 3, -1).sum(axis=2))
    np.testing.assert_array_equal(peak_flux(images), images.reshape(2, 3, -1).max(axis=2))


def test_images_that_are_black_or_of_several_bands_are_measured(new: np.ndarray) -> None:
    black = np.zeros_like(new[:20])
    panel = compare_images(black, new[20:60], pixel_scale_arcsec=PIXEL_SCALE, num_permutations=PERMUTATIONS)
    assert {"power_spectrum", "peak_flux"} <= set(panel.failed)
    bands = np.concatenate([new[:100], new[100:200]], axis=1)
    other = np.concatenate([new[200:], 2 * new[:100]], axis=1)
    found = compare_images(other, bands, pixel_scale_arcsec=PIXEL_SCALE, num_permutations=PERMUTATIONS)
    peak = next(verdict for verdict in found.verdicts if verdict.name == "peak_flux")
    assert peak.detail.startswith("band 1: ")


def test_images_of_another_size_too_few_or_with_no_numbers_are_refused(new: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"generated images are \(1, 30, 30\), real ones \(1, 32, 32\)"):
        compare_images(new[..., 1:-1, 1:-1], new, pixel_scale_arcsec=1)
    with pytest.raises(ValueError, match="1 generated images are too few"):
        compare_images(new[:1], new, pixel_scale_arcsec=1)
    broken = new.copy()
    broken[[3, 299], 0, 1, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 300 real images contain non-finite values"):
        compare_images(new, broken, pixel_scale_arcsec=1)
