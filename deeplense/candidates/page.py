"""A folder with a page on which images are looked at and graded: index.html and files with the pixels, which it loads
one after another. It works without a server and without a network connection."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from deeplense.candidates.stamps import Stamps
from deeplense.files import finite, replacing

CHUNK_BYTES = 750_000
"""Bytes of pixels in a file: the first images are there soon, and there are not too many files."""
SCRIPTS = ("grades.js", "journal.js", "draw.js", "cards.js", "keys.js")
DIGITS = 6


@dataclass(frozen=True)
class Candidate:
    """An image to look at.

    Args:
        name: its name; with `source` it is unique.
        source: data set or file that it is from.
        score: by which candidates are sorted.
        spread: uncertainty of the score; None if unknown.
        ra: right ascension in degrees; None if unknown.
        dec: declination in degrees; None if unknown.
    """

    name: str
    source: str
    score: float
    spread: float | None = None
    ra: float | None = None
    dec: float | None = None


@dataclass(frozen=True)
class Facts:
    """What a page says of all its images.

    Args:
        title: title of the page, one line.
        lead: one line below it.
        key: text that identifies the images: pages with the same key share their grades in a browser.
        score_name: what the score is.
        bands: names of the bands that are drawn red, green and blue.
        pixel_scale_arcsec: side of a pixel, in arcsec; None if unknown.
    """

    title: str
    lead: str
    key: str
    score_name: str
    bands: Sequence[str]
    pixel_scale_arcsec: float | None = None


def write_page(
    folder: Path,
    *,
    facts: Facts,
    candidates: Sequence[Candidate],
    stamps: Stamps,
    similar: Sequence[Sequence[tuple[int, float]]] = (),
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the page, replacing an old one once the new one is complete.

    Args:
        folder: folder to write.
        facts: what the page says.
        candidates: the images, the best first (N).
        stamps: their pixels, in the same order (N).
        similar: for each the numbers of similar ones, with their similarity (N); empty for none.
        record: content of `candidates.json` in the folder.
    """
    size = chunk_size(stamps)
    content = {
        **vars(facts),
        "candidates": columns_of(candidates),
        "stamps": {**encoding_of(stamps), "chunk": size},
        "similar": [[[number, round(cosine, 3)] for number, cosine in some] for some in similar],
    }
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for number, start in enumerate(range(0, len(candidates), size)):
            (temporary / chunk_name(number)).write_text(chunk(number, stamps.codes[start : start + size]))
        (temporary / "index.html").write_text(html(facts, content))
        if record is not None:
            (temporary / "candidates.json").write_text(as_json(record))


def html(facts: Facts, content: Mapping[str, Any]) -> str:
    """Return the text of index.html."""
    files = resources.files("deeplense.candidates")
    own = {"style": "page.css", **{name.partition(".")[0]: name for name in SCRIPTS}}
    texts = {name: Markup(files.joinpath(file).read_text()) for name, file in own.items()}
    template = Environment(autoescape=True).from_string(files.joinpath("page.html").read_text())
    return template.render(
        facts=facts, content=finite(content), scripts=[texts[n] for n in own if n != "style"], **texts
    )


def as_json(value: Any) -> str:
    """Return a value as JSON text, null for numbers that are not finite."""
    import json

    return json.dumps(finite(value), indent=2, allow_nan=False) + "\n"


def chunk_size(stamps: Stamps) -> int:
    """Return how many images are in one file of pixels."""
    return max(CHUNK_BYTES // max(stamps.codes[0].size, 1), 1) if len(stamps.codes) else 1


def chunk_name(number: int) -> str:
    """Return the name of a file of pixels.

    Example:
        >>> chunk_name(3)
        'stamps-0003.js'
    """
    return f"stamps-{number:04d}.js"


def chunk(number: int, codes: np.ndarray) -> str:
    """Return a file of pixels: a call that passes the bytes to the page. A script, because browsers do not let a page
    read other files of a disk."""
    return f'takeStamps({number}, "{base64.b64encode(codes.tobytes()).decode()}");\n'


def columns_of(candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
    """Return the candidates as columns; sources as numbers in `sources`."""
    sources = list(dict.fromkeys(candidate.source for candidate in candidates))
    numbers = {source: number for number, source in enumerate(sources)}
    return {
        "id": [candidate.name for candidate in candidates],
        "sources": sources,
        "source": [numbers[candidate.source] for candidate in candidates],
        "score": [rounded(candidate.score) for candidate in candidates],
        "spread": [rounded(candidate.spread) for candidate in candidates],
        "ra": [candidate.ra for candidate in candidates],
        "dec": [candidate.dec for candidate in candidates],
    }


def rounded(value: float | None) -> float | None:
    """Return a number with six significant digits.

    Example:
        >>> rounded(0.123456789)
        0.123457
    """
    return None if value is None else float(f"{value:.{DIGITS}g}")


def encoding_of(stamps: Stamps) -> dict[str, Any]:
    """Return what the browser needs to compute pixels from codes."""
    numbers = {
        name: np.vectorize(rounded, otypes=[float])(getattr(stamps, name)).tolist()
        for name in ("sky", "noise", "low", "high", "scale", "white")
    }
    (bands, height, width), planes = stamps.codes.shape[1:], stamps.planes
    return {"width": width, "height": height, "bands": bands, "planes": planes, "linear": stamps.is_linear, **numbers}
