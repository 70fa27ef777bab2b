"""The page of candidates in a browser: what is seen, how fast, and that it is only what it should be."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from made_page import COUNT, HOSTILE, SIZE, current, images, make_page, ready

from deeplense.candidates.stamps import encode


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of these tests."""
    return make_page(tmp_path_factory.mktemp("page") / "page")


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    """A browser for several tests."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        yield browser
        browser.kill()


@pytest.fixture
def browser(running: Browser, page: Path) -> Browser:
    """The browser on the page, without any grade."""
    running.open(page)
    running.forget()
    running.resize(1400, 900)
    ready(running)
    return running


def test_a_single_image_has_its_facts_its_scale_and_similar_ones(browser: Browser) -> None:
    browser.press("ArrowRight", "Enter")
    assert browser.do("$('grid').hidden") is True
    told = browser.do("single.querySelector('.about').innerText")
    for text in (HOSTILE[1], f"2 of {COUNT}", "0.992 \u00b1 0.010", "150.10000\u00b0, -2.30000\u00b0", "data/sky"):
        assert text in told
    assert browser.do("$('scale').innerText") == "1\u2033"
    assert browser.do("parseFloat($('scale').style.width)") == pytest.approx(100 / (SIZE * 0.2))
    browser.press("c")
    assert current(browser) == 2
    browser.do("document.querySelector('#similar button').click()")
    assert current(browser) == 3
    assert "A" not in browser.do("$('similar').innerText")
    browser.press("Escape")
    assert browser.do("$('grid').hidden") is False


def pixels(browser: Browser, number: int) -> np.ndarray:
    """What is drawn for an image, (H, W, 4)."""
    browser.do(f"cards[{number}].card.scrollIntoView()")
    browser.until(f"'drawn' in cards[{number}].canvas.dataset && !isPlanned")
    context = f"cards[{number}].canvas.getContext('2d')"
    return np.array(browser.do(f"[...{context}.getImageData(0, 0, {SIZE}, {SIZE}).data]")).reshape(SIZE, SIZE, 4)


def test_images_are_drawn_in_their_own_colours_and_the_contrast_can_be_changed(browser: Browser) -> None:
    middle = (slice(SIZE // 2 - 1, SIZE // 2 + 1),) * 2
    for k in range(3):
        colour = pixels(browser, k)[middle].mean(axis=(0, 1))[:3]
        assert colour.argmax() == k
        assert colour[k] > 2 * np.delete(colour, k).max()
    faint = pixels(browser, 9)[:4].mean()
    browser.press(*"......")
    assert pixels(browser, 9)[:4].mean() > faint
    browser.press("r")
    assert pixels(browser, 9)[:4].mean() == faint
    bright = pixels(browser, 9)[..., :3].mean()
    browser.press("-", "-")
    assert pixels(browser, 9)[..., :3].mean() < bright
    browser.press("r", "i")
    assert pixels(browser, 9)[..., :3].mean() == pytest.approx(255 - bright, abs=1.5)
    browser.press("r", "3")
    grey = pixels(browser, 2)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert grey[middle][..., 0].min() > pixels(browser, 0)[middle][..., 0].max() - 1
    browser.reload()
    assert browser.do("$('band').value") == "blue"


def test_the_browser_computes_the_pixels_that_were_encoded(browser: Browser) -> None:
    given = images(COUNT)[5]
    scale, bands = np.array(browser.do("content.stamps.scale")), range(3)
    sky = np.array(browser.do("content.stamps.sky[5]"))
    levels = np.array(browser.do("drawer.levels(5).map(t => [...t])"))
    stamp = encode([images(COUNT)], planes=(0, 1, 2)).codes[5]
    found = np.stack([levels[b][stamp[b]] * scale[b] + sky[b] for b in bands])
    np.testing.assert_allclose(found, given, rtol=0.03, atol=0.05)
    chunk = browser.do("[...drawer.chunks[drawer.chunkOf(5)].slice(5 * 3 * drawer.size, 6 * 3 * drawer.size)]")
    np.testing.assert_array_equal(np.array(chunk).reshape(stamp.shape), stamp)


def test_names_are_text_and_nothing_is_fetched_from_elsewhere(browser: Browser) -> None:
    browser.press(*"aaaaaaa", "Home", "Enter")
    assert browser.do("window.pwned") is None
    assert browser.do("document.querySelectorAll('img').length") == 0
    assert browser.do("names.slice(0, 6)") == HOSTILE
    for name in HOSTILE[:4]:
        assert name in browser.do("$('grid').textContent")
    asked = {message["request"]["url"].split("/")[0] for message in browser.messages("Network.requestWillBeSent")}
    assert asked - {"blob:null"} == {"file:"}
    assert browser.messages("Runtime.exceptionThrown") == []


def test_ranks_and_scores_can_be_hidden(browser: Browser) -> None:
    browser.do("$('blind').click()")
    is_seen = "e => e.checkVisibility({ visibilityProperty: true })"
    seen = f"[...document.querySelectorAll('.card .rank, .card .score')].filter({is_seen}).length"
    assert browser.do(seen) == 0
    assert "score" not in browser.do("cards[0].card.getAttribute('aria-label')")
    browser.press("Enter")
    assert "0.992" not in browser.do("single.innerText")
    browser.do("$('blind').click()")
    assert browser.do(seen) == 0
    browser.press("Escape")
    assert browser.do(seen) == 2 * COUNT


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_screen(width: int, browser: Browser) -> None:
    browser.resize(width, 844)
    for keys_pressed in ([], ["Enter"], ["?"]):
        browser.press(*keys_pressed)
        browser.do("document.querySelector('details').open = true")
        assert browser.do("document.documentElement.scrollWidth") <= width
        is_wide = "e => e.getBoundingClientRect().right > innerWidth + 1"
        wide = f"[...document.querySelectorAll('main *, dialog *')].filter({is_wide})"
        assert browser.do(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []


def test_a_file_of_pixels_that_is_missing_is_named(running: Browser, tmp_path: Path) -> None:
    path = make_page(tmp_path / "part", key="part")
    (tmp_path / "part" / "stamps-0000.js").unlink()
    running.open(path)
    running.until("!$('warning').hidden")
    assert "stamps-0000.js is missing" in running.do("$('warning').textContent")


def test_a_thousand_images_load_in_three_seconds(running: Browser, tmp_path: Path) -> None:
    path = make_page(tmp_path / "many", count=1000, size=64, key="many")
    assert path.stat().st_size < 1_000_000
    found: list[dict[str, Any]] = []
    for _ in range(3):
        running.open(path)
        running.forget()
        ready(running)
        marks = "['seen', 'complete'].map(n => [n, performance.getEntriesByName(`deeplense-${n}`)[0].startTime / 1000])"
        found.append(dict(running.do(marks)))
        if found[-1]["complete"] < 3:
            break
    assert found[-1]["seen"] <= found[-1]["complete"] < 3, found
    assert running.do("cards.filter(c => c.canvas.dataset.drawn !== undefined).length") >= 40
