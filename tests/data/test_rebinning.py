"""Bands on other pixels: flux is kept, surface brightness is averaged, and what cannot be placed is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.image_files import Reading, load_image
from deeplense.data.rebinning import Grid, overlaps, rebinned
from deeplense.data.records import Record

fits: Any = astropy_fits


def grid(count: int, scale: float, centre: tuple[float, float] = (10.0, 0.0)) -> Grid:
    return Grid((count, count), scale, (-1.0, 0.0, 0.0, 1.0), centre)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(count=st.integers(1, 30), width=st.floats(0.1, 3), new_width=st.floats(0.1, 3), offset=st.floats(-1, 1))
def test_every_part_of_a_covered_pixel_is_counted_once(
    count: int, width: float, new_width: float, offset: float
) -> None:
    new_count = int(count * width / new_width + 2 * abs(offset) / new_width) + 3
    found = overlaps(count, width, new_count, new_width, offset)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-9)
    assert found.min() >= 0


@pytest.mark.parametrize(("old", "new"), [((30, 0.1), (10, 0.3)), ((10, 0.3), (30, 0.1)), ((20, 0.15), (12, 0.25))])
def test_the_sum_of_a_flux_and_the_mean_of_a_brightness_are_kept(old: Any, new: Any) -> None:
    image = np.random.default_rng(0).uniform(1, 2, size=(old[0], old[0]))
    flux = rebinned(image, grid(*old), grid(*new), unit="nJy")
    bright = rebinned(image, grid(*old), grid(*new), unit="MJy/sr")
    assert flux.sum() == pytest.approx(image.sum(), rel=1e-9)
    assert bright.mean() == pytest.approx(image.mean(), rel=1e-9)
    np.testing.assert_allclose(flux, bright * (new[1] / old[1]) ** 2, rtol=1e-9)


def test_whole_pixels_are_summed_as_by_reshaping() -> None:
    image = np.random.default_rng(0).normal(size=(12, 12))
    expected = image.reshape(4, 3, 4, 3).sum(axis=(1, 3))
    np.testing.assert_allclose(rebinned(image, grid(12, 0.1), grid(4, 0.3), unit=""), expected, atol=1e-12)


def test_pixels_that_are_not_covered_or_touch_unknown_ones_are_unknown() -> None:
    image = np.ones((4, 4))
    image[0, 0] = np.nan
    found = rebinned(image, grid(4, 0.1), grid(3, 0.2), unit="nJy")
    assert np.isnan(found).sum() == 8, "the middle only is covered completely"
    found = rebinned(image, grid(4, 0.1), grid(2, 0.2), unit="nJy")
    assert np.isnan(found).tolist() == [[True, False], [False, False]]


def test_a_shift_on_the_sky_moves_the_pixels() -> None:
    image = np.zeros((9, 9))
    image[4, 4] = 1
    moved = grid(9, 1.0, (10.0, 1.0 / 3600))
    found = rebinned(image, moved, grid(9, 1.0), unit="nJy")
    assert np.unravel_index(np.nanargmax(found), found.shape) == (5, 4), "to the north"
    moved = grid(9, 1.0, (10.0 + 1.0 / 3600, 0.0))
    found = rebinned(image, moved, grid(9, 1.0), unit="nJy")
    assert np.unravel_index(np.nanargmax(found), found.shape) == (4, 3), "to the east, which is left"


def test_pixels_that_are_turned_are_refused() -> None:
    turned = Grid((4, 4), 0.1, (-0.8, 0.6, 0.6, 0.8), (10.0, 0.0))
    with pytest.raises(ValueError, match="not parallel"):
        rebinned(np.ones((4, 4)), turned, grid(4, 0.1), unit="nJy")


def two_bands(path: Path, *, sky: bool = True) -> np.ndarray:
    """Bands of 0.1 and 0.3 arcsec of the same sky; gives the first."""
    image = np.random.default_rng(0).uniform(size=(24, 24))
    parts: list[Any] = [fits.PrimaryHDU()]
    for name, count, scale in (("VIS", 24, 0.1), ("NIR", 8, 0.3)):
        header = fits.Header()
        header["BUNIT"] = "nJy"
        if sky:
            header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 50.0, "CRVAL2": -30.0})
            header["CRPIX1"] = header["CRPIX2"] = (count + 1) / 2
            header["CDELT1"], header["CDELT2"] = -scale / 3600, scale / 3600
        data = image if count == 24 else np.ones((8, 8))
        parts.append(fits.ImageHDU(data, header, name=name))
    fits.HDUList(parts).writeto(path)
    return image


def test_bands_of_other_pixels_are_refused_and_brought_to_those_of_one_on_demand(tmp_path: Path) -> None:
    image = two_bands(tmp_path / "a.fits")
    record = Record(tmp_path / "a.fits", "a", -1, "")
    with pytest.raises(ValueError, match=r"\[VIS\] has pixels of 0.1 arcsec, but .*\[NIR\] of 0.3 arcsec.*--resample"):
        load_image(record, Reading(bands=["VIS", "NIR"]))
    loaded = load_image(record, Reading(bands=["VIS", "NIR"], resample="NIR"))
    np.testing.assert_allclose(loaded.image[0], image.reshape(8, 3, 8, 3).sum(axis=(1, 3)), rtol=1e-6)
    np.testing.assert_array_equal(loaded.image[1], np.ones((8, 8)))
    assert loaded.facts.pixel_scale_arcsec == pytest.approx(0.3)
    assert loaded.facts.columns["dec"] == pytest.approx(-30)
    finer = load_image(record, Reading(bands=["VIS", "NIR"], resample="VIS")).image
    np.testing.assert_allclose(finer[1], 1 / 9, rtol=1e-6)


def test_bands_without_coordinates_cannot_be_placed(tmp_path: Path) -> None:
    two_bands(tmp_path / "a.fits", sky=False)
    with pytest.raises(ValueError, match=r"a.fits \[.*no coordinates"):
        load_image(Record(tmp_path / "a.fits", "a", -1, ""), Reading(bands=["VIS", "NIR"], resample="NIR"))
    with pytest.raises(ValueError, match="shape"):
        load_image(Record(tmp_path / "a.fits", "a", -1, ""), Reading(bands=["VIS", "NIR"]))


def test_one_unknown_pixel_makes_one_coarse_pixel_unknown_whatever_is_rounded() -> None:
    for marked in (np.nan, -3.4028235e38, np.inf):
        image = np.ones((30, 30))
        image[14, 14] = marked
        found = rebinned(image, grid(30, 0.1), grid(10, 0.3), unit="MJy/sr")
        assert np.isnan(found).sum() == 1
        assert np.nanmax(np.abs(found)) == pytest.approx(1)


def test_the_position_is_that_of_the_band_whose_pixels_are_taken(tmp_path: Path) -> None:
    two_bands(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits", mode="update") as parts:
        parts["NIR"].header["CRVAL2"] = -30 + 0.3 / 3600
    record = Record(tmp_path / "a.fits", "a", -1, "")
    for band, dec in (("NIR", -30 + 0.3 / 3600), ("VIS", -30.0)):
        columns = load_image(record, Reading(bands=["VIS", "NIR"], resample=band)).facts.columns
        assert columns["dec"] == pytest.approx(dec, abs=1e-8)
