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
    ],
)
def test_conditions_hold_where_they_should_and_numbers_are_compared_as_numbers(
    condition: str, expected: list[bool]
) -> None:
    assert holds(condition, GRADES).tolist() == expected


def test_a_value_may_hold_any_sign_but_the_first_decides() -> None:
    assert parse_condition("name != a=b") == ("name", "!=", "a=b")


@pytest.mark.parametrize(("text", "why"), [("grade", "is no condition"), ("grade>high", "'high', which is no number")])
def test_what_is_no_condition_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_condition(text)


def test_classes_are_told_by_conditions_or_by_labels_but_not_by_both() -> None:
    assert split_classes(["lens:grade>=2", "other: grade<1"]) == {"lens": "grade>=2", "other": " grade<1"}
    assert split_classes(["ring", "arc"]) == {}
    with pytest.raises(ValueError, match="all of them"):
        split_classes(["lens:grade>=2", "other"])


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
    with pytest.raises(ValueError, match=r"image 2 is of the classes \['lens', 'other'\]"):
        read(graded, ["lens:grade>=1", "other:grade<2"], [])
