"""A page of candidates for tests in a browser, and what it shows."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from browser import Browser

from deeplense.candidates.page import Candidate, Facts, write_page
from deeplense.candidates.stamps import PER_IMAGE, Stamps, encode

COUNT, SIZE = 130, 16
HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "=HYPERLINK(1)",
    "{{ 7 * 7 }}",
    'e\u0301toile \u2028 \U0001f30c, "quoted"\nline',
    "__proto__",
]


def images(count: int, size: int = SIZE) -> np.ndarray:
    """Noise with a source, (count, 3, size, size); the first image is red, the second green, the third blue."""
    found = np.random.default_rng(0).normal(size=(count, 3, size, size))
    found[:, :, size // 2 - 2 : size // 2 + 2, size // 2 - 2 : size // 2 + 2] += 100
    for k in range(3):
        found[k, :, size // 2 - 2 : size // 2 + 2, size // 2 - 2 : size // 2 + 2] -= (
            80 * (np.arange(3) != k)[:, None, None]
        )
    return found


def stamps_of(count: int, size: int) -> Stamps:
    """Encoded images; of many the first 130 stand again and again."""
    found = encode([images(min(count, COUNT), size)], planes=(0, 1, 2))
    rows = np.arange(count) % COUNT
    return replace(found, **{name: getattr(found, name)[rows] for name in PER_IMAGE})


def make_page(
    folder: Path, *, count: int = COUNT, size: int = SIZE, key: str = "k", names: list[str] | None = None
) -> Path:
    """A page of candidates with these names; the first ones are `HOSTILE`."""
    names = names or [*HOSTILE, *(f"J{k:04d}" for k in range(len(HOSTILE), count))]
    candidates = [Candidate(name, "data/sky", 1 - k / count, 0.01, 150.1, -2.3) for k, name in enumerate(names)]
    write_page(
        folder,
        facts=Facts("Candidates: lens", "from here", key, "probability of lens", ["i", "r", "g"], 0.2),
        candidates=candidates,
        stamps=stamps_of(count, size),
        similar=[[((k + 1) % count, 0.9), ((k + 2) % count, 0.5)] for k in range(count)],
    )
    return folder / "index.html"


def ready(browser: Browser) -> None:
    """Wait until all pixels are there."""
    browser.until("performance.getEntriesByName('deeplense-complete').length > 0")


def graded(browser: Browser) -> dict[str, str]:
    """The grade of each image that has one, as the page shows it."""
    script = "[...document.querySelectorAll('.card[data-grade]')].map(c => [names[c.dataset.number], c.dataset.grade])"
    return dict(browser.do(script))


def rows_of(browser: Browser) -> list[dict[str, str]]:
    """The lines of the file of grades."""
    return list(csv.DictReader(io.StringIO(browser.do("fileOfGrades()"), newline="")))


def current(browser: Browser) -> int:
    """The number of the chosen image."""
    (found,) = browser.do("[...document.querySelectorAll('[aria-selected=true]')].map(c => Number(c.dataset.number))")
    return found


def name_of(number: int) -> str:
    """The name of an image on the page."""
    return HOSTILE[number] if number < len(HOSTILE) else f"J{number:04d}"


KEYS = {"a": "A", "b": "B", "c": "C", "n": "not", "x": "not", "A": "A"}


def keys(count: int, seed: int = 0) -> list[str]:
    """Random keys of grades."""
    return [str(key) for key in np.random.default_rng(seed).choice(list(KEYS), size=count)]
