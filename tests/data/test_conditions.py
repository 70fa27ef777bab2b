"""Conditions on a catalogue: what holds for which row, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from deeplense.data.catalogues import attach, read_catalogue
from deeplense.data.choosing import Choice, choose
from deeplense.data.conditions import holds, parse_condition, split_classes
from deeplense.data.layouts import npz

GRADES = np.array(["3", "2.0", "1.5", "", "0.3", "two"])


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("grade>=2", [True, True, False, False, False, False]),
        ("grade > 2", [True, False, False, False, False, False]),
        ("grade<1", [False, False, False, False, True, False]),
        ("grade<=1.5", [False, False, True, False, True, False]),
        ("grade=2.0", [False, True, False, False, False, False]),
        ("grade!=two", [True, True, True, True, True, False]),
        ("grade=", [False, False, False, True, False, False]),
        ("grade!=", [True, True, True, False, True, True]),
        ("grade=nan", [False, False, False, True, False, False]),
        ("grade=3.00", [True, False, False, False, False, False]),
        ("grade!=2", [True, False, True, True, True, True]),
        ("grade = +1.50", [False, False, True, False, False, False]),
        ("grade=.3", [False, False, False, False, True, False]),
    ],
)
def test_conditions_hold_where_they_should_and_numbers_are_compared_as_numbers(
    condition: str, expected: list[bool]
) -> None:
    assert holds(condition, GRADES).tolist() == expected


def test_zero_is_zero_however_it_is_written() -> None:
    cells = np.array([f"{k % 4}.0" for k in range(30)])
    assert holds("grade!=0", cells).sum() == 22
    assert holds("grade=0", np.array(["0", "0.0", "-0", "0e5", "00", "O", "0 0"])).tolist() == [True] * 5 + [False] * 2


def test_long_numbers_are_compared_to_the_last_digit_and_what_looks_like_one_is_text() -> None:
    long = "12345678901234567891"
    assert holds(f"id={long}", np.array([long, long[:-1] + "2", f"{long}.0"])).tolist() == [True, False, True]
    assert holds("id=1_0", np.array(["10", "1_0"])).tolist() == [False, True]
    assert holds("id>1", np.array(["inf", "1_0", "NaN", "2"])).tolist() == [True, False, False, True]


def test_a_value_may_hold_any_sign_but_the_first_decides() -> None:
    assert parse_condition("name != a=b") == ("name", "!=", "a=b")


@pytest.mark.parametrize(
    ("text", "why"), [("grade", "is not a condition"), ("grade>high", "'high', which is not a number")]
)
def test_what_is_no_condition_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_condition(text)


def test_classes_are_told_by_conditions_or_by_labels_but_not_by_both() -> None:
    assert split_classes(["lens:grade>=2", "other: grade<1"]) == {"lens": "grade>=2", "other": " grade<1"}
    assert split_classes(["ring", "arc"]) == {}
    with pytest.raises(ValueError, match="give all classes as"):
        split_classes(["lens:grade>=2", "other"])
    for entries in (["lens:grade>=2", "lens:grade<1"], ["lens:grade>=2", ":grade<1"]):
        with pytest.raises(ValueError, match="a unique name"):
            split_classes(entries)


@pytest.fixture
def graded(tmp_path: Path) -> tuple[Path, Path]:
    """Six images that know their number, and their grades."""
    np.savez(tmp_path / "stamps.npz", images=np.arange(6, dtype="float32")[:, None, None] * np.ones((4, 4), "float32"))
    lines = [f"{number},{grade}" for number, grade in enumerate(GRADES)]
    (tmp_path / "catalog.csv").write_text("\n".join(["index,grade", *lines]) + "\n")
    return tmp_path / "stamps.npz", tmp_path / "catalog.csv"


def read(graded: tuple[Path, Path], classes: list[str], where: list[str]) -> list[tuple[float, str]]:
    """The images that are kept, by their pixels, and their classes."""
    source, catalog = graded
    layout = attach(npz(source, bands=["r"]), read_catalogue(catalog))
    layout = choose(layout, Choice(classes=classes, where=where))
    return [(float(layout.load(one)[0].mean()), layout.classes[one.label]) for one in layout.records]


def test_images_are_given_the_class_whose_condition_holds_and_left_out_where_none_does(
    graded: tuple[Path, Path],
) -> None:
    classes = ["lens:grade>=2", "other:grade<1"]
    assert read(graded, classes, []) == [(0.0, "lens"), (1.0, "lens"), (4.0, "other")]
    assert read(graded, classes, ["index!=0"]) == [(1.0, "lens"), (4.0, "other")]


def test_classes_that_overlap_are_refused_by_the_first_image_of_both(graded: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"image 2 satisfies the conditions of several classes, \['lens', 'other'\]"):
        read(graded, ["lens:grade>=1", "other:grade<2"], [])
