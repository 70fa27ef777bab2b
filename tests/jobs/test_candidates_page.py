"""The page of candidates in a browser: what a person does with the keyboard, and what is kept."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from made_page import COUNT, HOSTILE, KEYS, current, graded, keys, make_page, name_of, ready, rows_of

from deeplense.candidates.merging import Graded, guarded, merge, read_grades, unguarded, write_merged


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


def test_a_hundred_grades_by_keyboard_are_all_there_after_a_reload_and_in_the_file(browser: Browser) -> None:
    pressed = keys(100)
    browser.press(*pressed)
    right = {name_of(k): KEYS[key] for k, key in enumerate(pressed)}
    assert graded(browser) == right
    browser.reload()
    assert graded(browser) == right
    assert current(browser) == 100
    rows = rows_of(browser)
    assert {unguarded(row["id"]): row["grade"] for row in rows} == right
    assert [row["rank"] for row in rows] == [str(k) for k in range(1, 101)]
    assert {row["source"] for row in rows} == {"data/sky"}
    np.testing.assert_allclose([float(row["score"]) for row in rows], 1 - np.arange(100) / COUNT, atol=1e-5)
    assert browser.do("$('counts').textContent").startswith(f"100 of {COUNT} graded")


def test_grades_survive_the_end_of_the_browser(page: Path, tmp_path: Path) -> None:
    pressed = keys(20, seed=1)
    for begin in (True, False):
        browser = Browser(tmp_path / "profile")
        try:
            browser.open(page)
            ready(browser)
            if begin:
                browser.press(*pressed)
                browser.close()
            else:
                assert graded(browser) == {name_of(k): KEYS[key] for k, key in enumerate(pressed)}
                browser.press("u")
                assert len(graded(browser)) == 19
        finally:
            browser.kill()


def test_grades_survive_a_kill_of_the_browser_at_once(page: Path, tmp_path: Path) -> None:
    pressed = keys(20, seed=2)
    for begin in (True, False):
        browser = Browser(tmp_path / "profile")
        try:
            browser.open(page)
            ready(browser)
            if begin:
                browser.press(*pressed)
                browser.until("journal.pending === 0")
            else:
                browser.until("Object.keys(grades.entries).length > 0")
                assert graded(browser) == {name_of(k): KEYS[key] for k, key in enumerate(pressed)}
        finally:
            browser.kill()


def test_what_localstorage_lacks_comes_from_the_database_and_no_later_change_is_lost(browser: Browser) -> None:
    browser.press("a", "b", "c", "u")
    browser.until("journal.pending === 0")
    before = graded(browser)
    browser.do("localStorage.clear()")
    browser.reload()
    browser.until("Object.keys(grades.entries).length > 0")
    assert graded(browser) == before == {name_of(0): "A", name_of(1): "B"}


def test_the_file_that_is_saved_is_read_by_deeplense_and_by_another_page(
    browser: Browser, tmp_path: Path, page: Path
) -> None:
    browser.press(*"abcn")
    browser.do("$('grader').value = 'Anna \u00c9, PhD'; $('grader').dispatchEvent(new Event('input'))")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)
    browser.do("$('save').click()")
    path = tmp_path / "grades-Anna-\u00c9-PhD.csv"
    for _ in range(500):
        if path.exists() and path.stat().st_size:
            break
        browser.do("new Promise(done => setTimeout(done, 20))")
    found = read_grades(path, grader="nobody")
    assert [(each.name, each.grade, each.grader, each.rank) for each in found] == [
        (HOSTILE[k], grade, "Anna \u00c9, PhD", str(k + 1)) for k, grade in enumerate(("A", "B", "C", "not"))
    ]
    assert all(each.time.endswith("Z") for each in found)
    before = graded(browser)
    browser.forget()
    assert graded(browser) == {}
    browser.do(f"load({json.dumps(path.read_text())}, 'anna.csv')")
    assert graded(browser) == before
    assert [row["time"] for row in rows_of(browser)] == [each.time for each in found]
    browser.press("u")
    assert graded(browser) == {}


def test_a_file_never_replaces_later_grades_and_another_file_is_refused(browser: Browser) -> None:
    browser.press("a", "b")
    first = name_of(0)
    old = "id,grade,time,source\r\n" + f'"{first}",not,2020-01-01T00:00:00Z,data/sky\r\nJ0050,C,,data/sky\r\n'
    browser.do(f"load({json.dumps(old)}, 'old.csv')")
    assert (graded(browser)[first], graded(browser)["J0050"]) == ("A", "C")
    new = f'id,grade,time,source\r\n"{first}",not,2100-01-01T00:00:00Z,data/sky\r\n'
    browser.do(f"load({json.dumps(new)}, 'new.csv')")
    assert graded(browser)[first] == "not"
    before = rows_of(browser)
    for wrong, problem in (("a,b\n1,2\n", "no column id and grade"), ("id,grade\nx,D\n", "line 2 has the grade D")):
        browser.do(f"load({json.dumps(wrong)}, 'wrong.csv')")
        assert problem in browser.do("$('warning').textContent")
    assert rows_of(browser) == before


def test_merged_grades_are_loaded_where_there_are_no_own(browser: Browser, tmp_path: Path) -> None:
    browser.press("a")
    people = [Graded(name_of(k), "data/sky", "ben", "C", rank=str(k + 1)) for k in range(4)]
    write_merged(tmp_path / "merged.csv", merge(people))
    browser.do(f"load({json.dumps((tmp_path / 'merged.csv').read_bytes().decode())}, 'merged.csv')")
    assert graded(browser) == {name_of(0): "A", name_of(1): "C", name_of(2): "C", name_of(3): "C"}


def test_undo_takes_back_one_change_after_another_also_after_a_reload(browser: Browser) -> None:
    browser.press("a", "b", "ArrowLeft", "n")
    assert graded(browser) == {name_of(0): "A", name_of(1): "not"}
    browser.reload()
    browser.press("u")
    assert graded(browser) == {name_of(0): "A", name_of(1): "B"}
    assert current(browser) == 1
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="z", modifiers=2)
    assert graded(browser) == {name_of(0): "A"}
    browser.press("u", "u", "u")
    assert graded(browser) == {}
    assert rows_of(browser) == []


def test_all_grades_are_removed_and_brought_back_together(browser: Browser) -> None:
    browser.press(*"abcabc")
    before = graded(browser)
    browser.press("?")
    browser.press("n")
    browser.do("$('clear').click()")
    assert graded(browser) == {}
    browser.press("u")
    assert graded(browser) == before


def test_a_held_key_grades_one_image(browser: Browser) -> None:
    for _ in range(5):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="a", text="a", autoRepeat=True)
    assert graded(browser) == {}
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="a", text="a")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="a", text="a", autoRepeat=True)
    assert graded(browser) == {name_of(0): "A"}


def test_keys_move_in_the_grid_and_to_the_next_image_without_a_grade(browser: Browser) -> None:
    columns = browser.do("columnsOfGrid()")
    assert columns > 4
    steps = [("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("ArrowUp", 0)]
    for key, place in [*steps, ("End", COUNT - 1), ("ArrowRight", COUNT - 1), ("Home", 0)]:
        browser.press(key)
        assert current(browser) == place, key
    browser.press("a", "Home", " ")
    assert current(browser) == 1
    assert browser.do("[...document.querySelectorAll('.card')].filter(c => c.tabIndex === 0).length") == 1
    browser.press("End")
    inside = "(r => r.top >= document.querySelector('header').offsetHeight - 1 && r.bottom <= innerHeight)"
    assert browser.do(f"{inside}(cards[view.current].card.getBoundingClientRect())")
    browser.press("Home")
    assert browser.do(f"{inside}(cards[view.current].card.getBoundingClientRect())")


def test_notes_are_kept_with_each_letter_and_their_letters_are_no_grades(browser: Browser) -> None:
    browser.press("m", *"abc, not!")
    assert graded(browser) == {}
    browser.reload()
    (row,) = rows_of(browser)
    assert (unguarded(row["id"]), row["grade"], row["note"]) == (name_of(0), "", "abc, not!")
    browser.press("Escape", "b")
    assert (rows_of(browser)[0]["grade"], rows_of(browser)[0]["note"]) == ("B", "abc, not!")
    browser.press("u", "u")
    assert rows_of(browser) == []


def test_keys_are_grades_after_a_click_and_after_a_choice(browser: Browser) -> None:
    browser.press("ArrowRight", "Enter")
    browser.click("single.querySelector('[data-grade=B]')")
    browser.press(" ", "c", "Escape")
    assert graded(browser) == {name_of(1): "B", name_of(3): "C"}
    browser.click("cards[0].card")
    assert current(browser) == 0
    browser.do("$('which').focus(); $('which').dispatchEvent(new Event('change'))")
    browser.press("n")
    browser.press("/", *"abc", "Enter", "Home")
    browser.do("$('find').value = ''; $('find').dispatchEvent(new Event('input'))")
    browser.press("Home", "a")
    assert graded(browser) == {name_of(0): "A", name_of(1): "B", name_of(3): "C"}
    assert browser.do("$('which').value") == "all"


def test_only_images_that_match_are_shown_and_graded(browser: Browser) -> None:
    browser.press("/", *"j001", "Escape")
    shown = "[...document.querySelectorAll('.card:not([hidden])')].map(c => Number(c.dataset.number))"
    assert browser.do(shown) == list(range(10, 20))
    browser.press("a", "a")
    assert graded(browser) == {name_of(10): "A", name_of(11): "A"}
    browser.do("$('find').value = ''; $('which').value = 'open'; $('which').dispatchEvent(new Event('input'))")
    assert browser.do(shown) == [k for k in range(COUNT) if k not in (10, 11)]
    browser.do("$('which').value = 'A'; $('which').dispatchEvent(new Event('input'))")
    assert browser.do(shown) == [10, 11]
    browser.do("$('which').value = 'all'; $('least').value = '0.9'; $('least').dispatchEvent(new Event('input'))")
    assert browser.do(shown) == [k for k in range(COUNT) if 1 - k / COUNT >= 0.9]
    browser.do("$('find').value = 'nowhere'; $('find').dispatchEvent(new Event('input'))")
    assert (browser.do(shown), browser.do("$('none').hidden")) == ([], False)
    browser.press("c")
    assert len(graded(browser)) == 2


def test_what_a_spreadsheet_would_compute_is_guarded_alike_here_and_there(browser: Browser) -> None:
    texts = [*HOSTILE, "'=1", "''=1", "'tis", "-1.5", "+2e3", "-1-1", "@x", "\t=1", "\r", "", "'", "1e400", "--", "-."]
    assert browser.do(f"{json.dumps(texts)}.map(guarded)") == [guarded(text) for text in texts]
    assert browser.do(f"{json.dumps(texts)}.map(guarded).map(unguarded)") == texts


def test_two_windows_lose_none_of_their_grades(browser: Browser) -> None:
    browser.do("window.other = new Grades(grades.key, localStorage)")
    browser.press("a", "b")
    browser.do("other.set('data/sky', 'J0020', { grade: 'C' })")
    browser.press("c")
    browser.reload()
    assert graded(browser) == {name_of(0): "A", name_of(1): "B", name_of(2): "C", "J0020": "C"}


def test_a_browser_that_keeps_nothing_says_so(browser: Browser) -> None:
    browser.do("grades.storage = { getItem: () => null, setItem: () => { throw new Error('full'); } }")
    browser.press("a")
    assert "does not keep the grades" in browser.do("$('warning').textContent")
    assert (browser.do("$('warning').hidden"), graded(browser)) == (False, {name_of(0): "A"})
    browser.do("grades.isKept = true")


def test_content_of_the_storage_that_is_not_ours_is_ignored(browser: Browser) -> None:
    for text in ("{", "null", "[]", '{"entries": 3}'):
        browser.do(f"localStorage.setItem(grades.key, {json.dumps(text)})")
        browser.do(f"localStorage.setItem(VIEW, {json.dumps(text)})")
        browser.reload()
        ready(browser)
        assert graded(browser) == {}
