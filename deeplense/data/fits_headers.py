"""Headers of FITS files: their cards, and what they say about an image."""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from deeplense.data.records import Facts

BLOCK, CARD = 2880, 80
MOST_BLOCKS = 1000
"""Largest number of blocks of a header: 36,000 cards."""
MOST_REMEMBERED = 2**14
"""Number of cards whose content is remembered."""
ZERO_POINTS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG0", "PHOTZP", "PHOTZPT", "ZEROPT", "ZPT", "ZP", "FPA.ZP", "MAG_ZERO")
"""Usual keywords of the magnitude of one unit of flux, the most likely first."""
SCALES = ("PIXSCALE", "PIXSCAL1", "PIXELSCL", "PIXEL_SCALE")
"""Usual keywords of the side of a pixel in arcsec, where there are no coordinates."""
DISTORTIONS = ("A_ORDER", "B_ORDER", "D2IMERR1", "D2IMDIS1", "CPDIS1", "CPERR1", "CQDIS1", "AP_ORDER")
"""Keywords of coordinates that are not those of a plane."""
FILTERS = ("FILTER", "BAND", "FILTNAM", "FILTER1")
UNKNOWN = ("", "unknown", "none", "n/a", "clear", "null")
ARCSEC = 3600.0
EQUAL = 0.01
"""Relative difference up to which two pixel scales are one."""

SKY = (("RA--", "DEC-"), ("GLON", "GLAT"), ("ELON", "ELAT"))
"""Beginnings of CTYPE1 and CTYPE2 of coordinates on the sky."""

Header = Mapping[str, str]
"""The text after `= ` of each card, by keyword; the first if a keyword comes several times."""


def read_cards(text: bytes) -> tuple[dict[str, str], bool]:
    """Return the cards of whole blocks of a header, and whether they end it.

    Args:
        text: the blocks.

    Raises:
        ValueError: the text is not ASCII.

    Example:
        >>> block = b"NAXIS   =                    0".ljust(80) + b"END".ljust(80)
        >>> read_cards(block.ljust(2880))
        ({'NAXIS': '                   0'}, True)
    """
    cards: dict[str, str] = {}
    letters = text.decode("ascii")
    for start in range(0, len(letters), CARD):
        keyword, value = card_of(letters[start : start + CARD])
        if value is not None:
            cards.setdefault(keyword, value)
        elif keyword == "END":
            return cards, True
    return cards, False


# Most cards are the same in all files of a survey, so they are parsed once.
@lru_cache(maxsize=MOST_REMEMBERED)
def card_of(card: str) -> tuple[str, str | None]:
    """Return the keyword of a card and the text after `= `; None if it has no value.

    Example:
        >>> card_of("NAXIS   =    2"), card_of("HIERARCH ESO ZP = 25.0"), card_of("COMMENT = is text"), card_of("END")
        (('NAXIS', '   2'), ('ESO ZP', '25.0'), ('COMMENT', None), ('END', None))
    """
    keyword = card[:8].rstrip()
    if keyword == "HIERARCH":
        name, _, value = card[9:].partition("=")
        return name.strip(), value.strip()
    has_value = card[8:10] == "= " and keyword not in ("COMMENT", "HISTORY", "")
    return keyword, card[10:].rstrip() if has_value else None


def text_of(header: Header, keyword: str) -> str:
    """Return the text of a card; "" if it is missing or no text.

    Example:
        >>> text_of({"OBJECT": "'it''s a lens '  / name"}, "OBJECT")
        "it's a lens"
    """
    value = header.get(keyword)
    return "" if value is None else text_in(value)


@lru_cache(maxsize=MOST_REMEMBERED)
def text_in(value: str) -> str:
    """Return the text of a value; "" if it is no text."""
    value = value.lstrip()
    if not value.startswith("'"):
        return ""
    pieces = value[1:].replace("''", "\0").partition("'")
    return pieces[0].replace("\0", "'").strip()


def number_of(header: Header, keyword: str) -> float | None:
    """Return the number of a card; None if it is missing or no finite number.

    Example:
        >>> number_of({"EXPTIME": "  1.5D2 / seconds"}, "EXPTIME")
        150.0
    """
    value = header.get(keyword)
    return None if value is None else number_in(value)


@lru_cache(maxsize=MOST_REMEMBERED)
def number_in(value: str) -> float | None:
    """Return the number of a value; None if it is no finite number."""
    try:
        number = float(value.partition("/")[0].replace("D", "E").replace("d", "e"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def whole_of(header: Header, keyword: str, default: int | None = None) -> int:
    """Return the integer of a card.

    Args:
        header: the cards.
        keyword: its keyword.
        default: value if it is missing.

    Raises:
        ValueError: it is missing, or no integer.
    """
    value = header.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int((value or "").partition("/")[0])
    except ValueError:
        raise ValueError(f"its header has no integer {keyword}") from None


def is_true(header: Header, keyword: str) -> bool:
    """Whether a card has the value T."""
    return header.get(keyword, "").partition("/")[0].strip() == "T"


def facts_of(header: Header, shape: tuple[int, ...]) -> Facts:
    """Return what a header says about its image.

    Args:
        header: the cards.
        shape: shape of the image, (..., H, W).
    """
    height, width = shape[-2:]
    found = position_of(header, (1 + width) / 2, (1 + height) / 2) if "CTYPE1" in header else None
    columns = {} if found is None else {"ra": found[0], "dec": found[1]}
    zero_point = next((value for key in ZERO_POINTS if (value := number_of(header, key)) is not None), None)
    if zero_point is not None:
        columns["zero_point"] = zero_point
    band = next((text for key in FILTERS if (text := text_of(header, key)).lower() not in UNKNOWN), "")
    return Facts((band,) if band else (), text_of(header, "BUNIT"), scale_of(header), columns)


def matrix_of(header: Header) -> tuple[float, float, float, float] | None:
    """Return the matrix from pixels to degrees on the tangent plane, CD1_1, CD1_2, CD2_1, CD2_2; None if the header has
    none."""
    given = [number_of(header, key) for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")]
    if any(value is not None for value in given):
        a, b, c, d = (value or 0.0 for value in given)
        return a, b, c, d
    steps = [number_of(header, f"CDELT{i}") for i in (1, 2)]
    if steps[0] is None or steps[1] is None:
        return None
    one, two = steps[0], steps[1]
    if any(f"PC{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        a, b, c, d = (
            float(i == j) if (value := number_of(header, f"PC{i}_{j}")) is None else value
            for i in (1, 2)
            for j in (1, 2)
        )
        return one * a, one * b, two * c, two * d
    turn = math.radians(number_of(header, "CROTA2") or 0.0)
    cos, sin = math.cos(turn), math.sin(turn)
    return one * cos, -two * sin, one * sin, two * cos


def is_sky(header: Header) -> bool:
    """Whether the first two axes are right ascension and declination, or longitude and latitude."""
    kinds = (text_of(header, "CTYPE1")[:4], text_of(header, "CTYPE2")[:4])
    return kinds in SKY or kinds[::-1] in SKY


def scale_of(header: Header) -> float | None:
    """Return the side of a pixel in arcsec; None if it is unknown, or pixels are not square (by more than 1 %)."""
    matrix = matrix_of(header) if is_sky(header) else None
    if matrix is None:
        return next((abs(value) for key in SCALES if (value := number_of(header, key))), None)
    units = {text_of(header, f"CUNIT{axis}") for axis in (1, 2)}
    if not units <= {"", "deg", "degree", "degrees"}:
        return None
    a, b, c, d = matrix
    wide, high = math.hypot(a, c), math.hypot(b, d)
    square = abs(wide - high) <= EQUAL * max(wide, high) and max(wide, high) > 0
    return ARCSEC * math.sqrt(abs(a * d - b * c)) if square and a * d != b * c else None


def position_of(header: Header, x: float, y: float) -> tuple[float, float] | None:
    """Return right ascension and declination of a pixel in degrees, None if the header has no such coordinates.

    The tangent projection is computed here; astropy computes all others.

    Args:
        header: the cards.
        x: first pixel coordinate, from 1.
        y: second pixel coordinate, from 1.
    """
    if not is_sky(header):
        return None
    kinds = text_of(header, "CTYPE1"), text_of(header, "CTYPE2")
    units = {text_of(header, f"CUNIT{axis}") for axis in (1, 2)}
    matrix = matrix_of(header)
    plain = kinds == ("RA---TAN", "DEC--TAN") and units <= {"", "deg"} and not unusual(header)
    if not plain or matrix is None:
        return by_astropy(header, x, y)
    ra, dec, first, second = (number_of(header, key) or 0.0 for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2"))
    return from_tangent(matrix, (ra, dec), x - first, y - second)


def unusual(header: Header) -> bool:
    """Whether coordinates have distortions, another pole than that of the tangent projection, or another equinox."""
    pole, equinox = number_of(header, "LONPOLE"), number_of(header, "EQUINOX")
    distorted = not header.keys().isdisjoint(DISTORTIONS) or any(key.startswith("PV") for key in header)
    old = text_of(header, "RADESYS") not in ("", "ICRS", "FK5") or equinox not in (None, 2000)
    return distorted or old or (pole is not None and pole != 180)


def from_tangent(
    matrix: tuple[float, float, float, float], centre: tuple[float, float], x: float, y: float
) -> tuple[float, float]:
    """Return right ascension and declination, in degrees, of a point on the tangent plane.

    Args:
        matrix: from pixels to degrees.
        centre: point where the plane touches the sphere, in degrees.
        x: pixels from there along the first axis.
        y: pixels from there along the second axis.

    Example:
        >>> from_tangent((-1.0, 0.0, 0.0, 1.0), (10.0, 0.0), 0.0, 0.0)
        (10.0, 0.0)
    """
    a, b, c, d = matrix
    east, north = math.radians(a * x + b * y), math.radians(c * x + d * y)
    ra, dec = math.radians(centre[0]), math.radians(centre[1])
    along = math.cos(dec) - north * math.sin(dec)
    longitude = ra + math.atan2(east, along)
    latitude = math.atan2(math.sin(dec) + north * math.cos(dec), math.hypot(east, along))
    return math.degrees(longitude) % 360.0, math.degrees(latitude)


def by_astropy(header: Header, x: float, y: float) -> tuple[float, float] | None:
    """Return the position of a pixel in ICRS, in degrees, as astropy computes it, None if it cannot.

    Args:
        header: the cards.
        x: first pixel coordinate, from 1.
        y: second pixel coordinate, from 1.
    """
    import warnings

    from astropy.io.fits import Header as AstropyHeader
    from astropy.wcs import WCS

    text = "".join(line[:CARD].ljust(CARD) for line in written(header))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sky = WCS(AstropyHeader.fromstring(text), naxis=2)
            found: Any = sky.pixel_to_world(x - 1, y - 1)
            position = float(found.icrs.ra.deg), float(found.icrs.dec.deg)
    except Exception:  # coordinates that it does not know are no reason to lose the image
        return None
    return position if all(map(math.isfinite, position)) else None


def written(header: Header) -> Iterator[str]:
    """Yield the cards with keywords of at most eight letters, as in a file."""
    for keyword, value in header.items():
        if len(keyword) <= 8:
            yield f"{keyword:8}= {value}"
