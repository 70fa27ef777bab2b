"""FITS images and headers, as astropy reads them, whatever is in them; and damaged files, which are named."""

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from astropy.wcs import WCS as AstropyWCS
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.fits_files import Content, chosen_parts, parts_of, read_data
from deeplense.data.fits_headers import facts_of, number_of, position_of, read_cards, scale_of, text_of
from deeplense.data.image_files import Reading, load_image
from deeplense.data.records import Record

fits: Any = astropy_fits
WCS: Any = AstropyWCS

TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS"}


def read(path: Path, **choice: Any) -> np.ndarray:
    with Content(path) as content:
        (part,) = chosen_parts(parts_of(content), **choice)
        return read_data(content, part)


def header_of(**cards: Any) -> Any:
    header = fits.Header()
    for key, value in cards.items():
        header[key] = value
    return header


def record(path: Path, **changes: Any) -> Record:
    return Record(path, path.name, -1, "", **changes)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_of_pixels_is_read_as_by_astropy(tmp_path: Path, dtype: str) -> None:
    limits = (-4, 5) if dtype[0] == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.random.default_rng(0).uniform(*map(float, limits), size=(3, 4, 5)) / 2
    image = values.astype(dtype)
    if dtype[0] != "f":
        image[0, 0, :2] = limits
    fits.PrimaryHDU(image).writeto(tmp_path / "a.fits")
    found = read(tmp_path / "a.fits")
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(found, fits.getdata(tmp_path / "a.fits"))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    bits=st.sampled_from(["i2", "i4", "u1"]),
    scale=st.sampled_from([1, 1.0, 0.5, -2.0, 1e-3]),
    zero=st.sampled_from([0, 0.0, 32768, 7.25]),
    blank=st.sampled_from([None, 3, 1000]),
)
def test_scaled_integers_and_blank_pixels_are_those_of_astropy(
    tmp_path_factory: pytest.TempPathFactory, bits: str, scale: float, zero: float, blank: int | None
) -> None:
    path = tmp_path_factory.mktemp("scaled") / "a.fits"
    stored = np.arange(24).reshape(4, 6).astype(bits)
    hdu = fits.PrimaryHDU(stored)
    hdu.writeto(path)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as file:
        file[0].header["BSCALE"], file[0].header["BZERO"] = scale, zero
        if blank is not None:
            file[0].header["BLANK"] = blank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = fits.getdata(path)
    found = read(path)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.isnan(found).any() == (blank == 3)


CARDS = st.dictionaries(
    st.text("ABCDEFGHXYZ_-0123456789", min_size=2, max_size=8).map(lambda key: f"Q{key[:7]}"),
    st.one_of(
        st.booleans(),
        st.integers(-(10**12), 10**12),
        st.floats(-1e30, 1e30, allow_nan=False),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cards=CARDS)
def test_numbers_and_texts_of_any_header_are_those_of_astropy(cards: dict[str, Any]) -> None:
    header = header_of(**cards)
    found, ends = {}, False
    text = header.tostring().encode()
    for start in range(0, len(text), 2880):
        more, ends = read_cards(text[start : start + 2880])
        found |= more
    assert ends
    for key, value in cards.items():
        if isinstance(value, str):
            assert text_of(found, key) == header[key].strip()
        elif not isinstance(value, bool):
            assert number_of(found, key) == pytest.approx(value, rel=1e-12)


def matrix(kind: str, scale: float, turn: float, flip: float) -> dict[str, float]:
    cos, sin = np.cos(turn), np.sin(turn)
    if kind == "CD":
        return {
            "CD1_1": flip * scale * cos,
            "CD1_2": -scale * sin,
            "CD2_1": flip * scale * sin,
            "CD2_2": scale * cos,
        }
    if kind == "PC":
        return {"CDELT1": flip * scale, "CDELT2": scale, "PC1_1": cos, "PC1_2": -sin, "PC2_1": sin, "PC2_2": cos}
    return {"CDELT1": flip * scale, "CDELT2": scale} | ({"CROTA2": np.degrees(turn)} if kind == "CROTA" else {})


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    kind=st.sampled_from(["CD", "PC", "CDELT", "CROTA"]),
    ra=st.floats(0, 359.9),
    dec=st.floats(-89.5, 89.5),
    pixel=st.tuples(st.floats(-3e3, 3e3), st.floats(-3e3, 3e3)),
    scale=st.floats(1e-5, 1e-3),
    turn=st.floats(-3, 3),
    flip=st.sampled_from([-1.0, 1.0]),
    projection=st.sampled_from(["TAN", "SIN"]),
)
def test_positions_and_pixel_scales_are_those_of_astropy(
    kind: str,
    ra: float,
    dec: float,
    pixel: tuple[float, float],
    scale: float,
    turn: float,
    flip: float,
    projection: str,
) -> None:
    names = {key: value.replace("TAN", projection) for key, value in TAN.items()}
    given = names | {"CRVAL1": ra, "CRVAL2": dec, "CRPIX1": 3.5, "CRPIX2": -7.0} | matrix(kind, scale, turn, flip)
    header = header_of(**given)
    cards, _ = read_cards(header.tostring().encode())
    sky = WCS(header).pixel_to_world(pixel[0] - 1, pixel[1] - 1)
    found = position_of(cards, *pixel)
    assert found is not None
    assert (found[0] - sky.ra.deg + 180) % 360 - 180 == pytest.approx(0, abs=1e-8 / np.cos(np.radians(sky.dec.deg)))
    assert found[1] == pytest.approx(sky.dec.deg, abs=1e-8)
    assert scale_of(cards) == pytest.approx(3600 * scale, rel=1e-9)


@pytest.mark.parametrize(
    "more",
    [
        {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR"},
        {"RADESYS": "FK4", "EQUINOX": 1950.0},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN"},
        {"LONPOLE": 90.0},
        {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.01, "PV2_1": 1.0},
    ],
)
def test_other_coordinates_are_those_of_astropy_in_icrs(more: dict[str, Any]) -> None:
    given = TAN | {"CRVAL1": 40.0, "CRVAL2": 20.0, "CRPIX1": 9.0, "CRPIX2": 8.0} | matrix("CD", 1e-4, 0.3, -1.0) | more
    header = header_of(**given)
    found = position_of(read_cards(header.tostring().encode())[0], 30.0, 40.0)
    sky: Any = WCS(header).pixel_to_world(29, 39).icrs
    assert found == pytest.approx((sky.ra.deg, sky.dec.deg), abs=1e-7)


def test_pixels_that_are_not_square_have_no_side_and_headers_without_coordinates_no_position() -> None:
    cards = read_cards(header_of(**TAN, CRVAL1=1.0, CRVAL2=1.0, CDELT1=-1e-4, CDELT2=2e-4).tostring().encode())[0]
    assert scale_of(cards) is None
    facts = facts_of(
        read_cards(header_of(BUNIT="nJy", PIXSCALE=0.2, FILTER="r ", ZP=25.5).tostring().encode())[0], (4, 4)
    )
    assert (facts.unit, facts.pixel_scale_arcsec, facts.bands) == ("nJy", 0.2, ("r",))
    assert facts.columns == {"zero_point": 25.5}


def several(path: Path) -> dict[str, np.ndarray]:
    """Two images of two versions, a table and a mask; gives the images."""
    images = {name: np.full((4, 4), k, "f4") for k, name in enumerate(["SCI:1", "SCI:2", "ERR"])}
    parts: list[Any] = [fits.PrimaryHDU()]
    for name, image in images.items():
        extension, _, version = name.partition(":")
        parts.append(fits.ImageHDU(image, name=extension, ver=int(version or 1)))
    parts.insert(2, fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.zeros(3))], name="CAT"))
    fits.HDUList(parts).writeto(path)
    return images


@pytest.mark.parametrize(
    ("bands", "values"), [(["sci:2", "ERR"], [1, 2]), (["ERR", "SCI:1"], [2, 0]), (["4", "1"], [2, 0])]
)
def test_extensions_are_bands_by_name_version_or_number(tmp_path: Path, bands: list[str], values: list[int]) -> None:
    several(tmp_path / "a.fits")
    image = load_image(record(tmp_path / "a.fits"), Reading(bands=bands)).image
    assert image[:, 0, 0].tolist() == values


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, r"contains 3 images: SCI:1, SCI:2, ERR. Give --bands .* such as --bands SCI:1,SCI:2"),
        ({"bands": ["SCI", "ERR"]}, "several images SCI; give one of SCI:1, SCI:2"),
        ({"bands": ["ERR", "DQ"]}, "no image DQ; its images are: SCI:1, SCI:2, ERR"),
        ({"hdu": "CAT"}, "extension CAT has no image"),
        ({"hdu": "0"}, "extension 0 has no image"),
        ({"hdu": "9"}, "extension 9 does not exist"),
    ],
)
def test_an_extension_that_is_not_clear_is_refused_with_those_that_there_are(
    tmp_path: Path, choice: dict[str, Any], message: str
) -> None:
    several(tmp_path / "a.fits")
    with pytest.raises(ValueError, match=message) as raised:
        load_image(record(tmp_path / "a.fits"), Reading(**choice))
    assert "a.fits" in str(raised.value)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "gz"])
def test_compressed_images_are_read(tmp_path: Path, kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 200, size=(40, 50)).astype("i2")
    path = tmp_path / ("a.fits.gz" if kind == "gz" else "a.fits")
    header = header_of(FILTER="g", BUNIT="adu")
    part = fits.PrimaryHDU(image, header) if kind == "gz" else fits.CompImageHDU(image, header, compression_type=kind)
    (part if kind == "gz" else fits.HDUList([fits.PrimaryHDU(), part])).writeto(path)
    found = load_image(record(path), Reading())
    np.testing.assert_array_equal(found.image[0], image)
    assert (found.facts.bands, found.facts.unit) == (("g",), "adu")


@pytest.mark.parametrize("shape", [(1, 1, 6, 7), (1, 6, 7), (6, 7)])
def test_axes_of_length_one_are_no_bands(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=shape)
    fits.PrimaryHDU(image).writeto(tmp_path / "a.fits")
    np.testing.assert_array_equal(load_image(record(tmp_path / "a.fits"), Reading()).image, image.reshape(1, 6, 7))


def whole(tmp_path: Path) -> bytes:
    fits.PrimaryHDU(np.arange(5000.0).reshape(50, 100)).writeto(tmp_path / "whole.fits", overwrite=True)
    return (tmp_path / "whole.fits").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: b"", "is empty"),
        (lambda text: text[:100], "ends within a header"),
        (lambda text: text[:2880], "is incomplete"),
        (lambda text: text[:20000], "has 20000 bytes, but its headers need 42880; it is incomplete"),
        (lambda text: b"hello" * 1000, "not a FITS file"),
        (
            lambda text: text.replace(b"BITPIX  =                  -64", b"BITPIX  =                  -63"),
            "BITPIX is -63",
        ),
        (
            lambda text: text.replace(b"NAXIS1  =                  100", b"NAXIS1  =                 -100"),
            "negative size|length -100",
        ),
        (
            lambda text: text.replace(b"NAXIS1  =                  100", b"NAXIS1  =                    0"),
            "contains no image",
        ),
        (
            lambda text: text.replace(b"NAXIS   =                    2", b"NAXIS   =                   22"),
            "NAXIS is 22",
        ),
        (lambda text: text.replace(b"NAXIS2  =", b"NAXIS9  ="), "no integer NAXIS2"),
        (
            lambda text: text.replace(b"NAXIS1  =                  100", b"NAXIS1  =           9999999999"),
            "is incomplete",
        ),
        (lambda text: text.replace(b"END   ", b"FIN   "), "ends within a header|not ASCII"),
        (lambda text: gzip.compress(text)[:-500], "gzip data end too early|not a sound gzip"),
        (lambda text: b"\x1f\x8b" + text, "gzip"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "bad.fits"
    path.write_bytes(damage(whole(tmp_path)))
    with pytest.raises(ValueError, match=message) as raised:
        load_image(record(path), Reading())
    assert "bad.fits" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_padding_after_its_last_pixel_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(whole(tmp_path)[: 2880 + 40000])
    assert load_image(record(path), Reading()).image[0, 49, 99] == 4999
