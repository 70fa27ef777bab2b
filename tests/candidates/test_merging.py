"""Grades of several people become one: by a rule that is stated, with nothing lost."""

import csv
from itertools import permutations
from pathlib import Path
from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplense.candidates.merging import (
    GRADES,
    Graded,
    guarded,
    latest,
    merge,
    named_apart,
    one_grade,
    read_grades,
    unguarded,
    write_merged,
)

SOME = st.lists(st.sampled_from(GRADES), min_size=1, max_size=7)


@given(SOME)
def test_the_majority_counts_and_a_tie_goes_to_the_worst(given: list[str]) -> None:
    found = one_grade(given, "majority")
    most = max(map(given.count, GRADES))
    assert given.count(found) == most
    worse = GRADES[GRADES.index(found) + 1 :]
    assert all(given.count(grade) < most for grade in worse)


@given(SOME)
def test_the_median_is_that_of_the_standard_library(given: list[str]) -> None:
    # From the worst to the best, so that the lower one of two middle grades is the worse.
    places = [-GRADES.index(grade) for grade in given]
    assert one_grade(given, "median") == GRADES[-median_low(places)]


@given(SOME, st.sampled_from(["majority", "median"]))
def test_the_order_of_people_makes_no_difference(given: list[str], rule: str) -> None:
    assert len({one_grade(list(order), rule) for order in list(permutations(given))[:50]}) == 1


@given(st.text())
def test_a_guarded_text_is_read_as_it_was_and_begins_no_formula(text: str) -> None:
    assert unguarded(guarded(text)) == text
    assert guarded(text)[:1] not in tuple("=@\t\r")


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1+cmd|'/c calc'!A0", "-2+3", "\t=1", "-12.5+3", "--1"])
def test_a_formula_is_guarded(text: str) -> None:
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("text", ["J0201-0915", "-12.5", "+3", "1e-5", "-.5", "'tis", "", "a=b"])
def test_a_plain_text_or_number_stays(text: str) -> None:
    assert guarded(text) == text


def graded(name: str, grader: str, grade: str, **more: str) -> Graded:
    """A line of a file."""
    return Graded(name, more.pop("source", "s"), grader, grade, **more)


def test_the_last_word_of_a_person_counts_whatever_the_order_of_the_files() -> None:
    early = graded("a", "anna", "A", time="2026-01-01T10:00:00.000Z")
    late = graded("a", "anna", "not", time="2026-01-02T09:00:00.000Z")
    assert [each.grade for each in latest([late, early])] == ["not"]
    assert [each.grade for each in latest([early, late])] == ["not"]


def test_a_later_undo_takes_a_grade_back() -> None:
    early = graded("a", "anna", "A", time="2026-01-01T10:00:00.000Z")
    undone = graded("a", "anna", "", time="2026-01-01T10:00:01.000Z", note="unsure")
    (found,) = merge([early, undone])
    assert (found.grade, dict(found.grades), found.notes) == ("", {}, {"anna": "unsure"})


def test_images_of_the_same_name_from_two_sources_are_two() -> None:
    assert len(merge([graded("a", "anna", "A", source="x"), graded("a", "ben", "B", source="y")])) == 2


def test_merged_grades_are_sorted_by_rank_and_written_with_votes_and_agreement(tmp_path: Path) -> None:
    lines = [
        graded("=b", "anna", "B", rank="10", score="0.5", note="an arc, perhaps"),
        graded("=b", "ben", "B", rank="10", score="0.5"),
        graded("=b", "cleo", "A", note='a "ring"'),
        graded("a", "ben", "not", rank="9", score="0.7"),
    ]
    write_merged(tmp_path / "merged.csv", merge(lines))
    with (tmp_path / "merged.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["id"], first["grade"], first["num_graders"], first["agreement"]) == ("a", "not", "1", "1")
    assert second == {
        "id": "'=b",
        "grade": "B",
        "num_graders": "3",
        "agreement": "0.667",
        "votes": "A:1 B:2",
        "note": 'anna: an arc, perhaps; cleo: a "ring"',
        "source": "s",
        "rank": "10",
        "score": "0.5",
    }
    assert [each.name for each in read_grades(tmp_path / "merged.csv", grader="all")] == ["a", "=b"]


def test_a_file_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    text = '\ufeffgrade,id,comment\r\na,"one, two",x\r\nNOT,three,y\r\n,four,\r\n'
    (tmp_path / "anna.csv").write_text(text, encoding="utf-8")
    found = read_grades(tmp_path / "anna.csv", grader="anna")
    assert [(each.name, each.grade, each.grader) for each in found] == [
        ("one, two", "A", "anna"),
        ("three", "not", "anna"),
        ("four", "", "anna"),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name,grade\na,A\n", "has no column id; its columns: name, grade"),
        (b"", "has no column id and grade; its columns: none"),
        (b"id,grade\na,A\nb,D\n", "line 3: grade 'D' is unknown; grades are A, B, C, not"),
        (b"id,grade\n,A\n", "line 2 has no id"),
        (b"id,grade\n\xff,A\n", "is not a CSV file in UTF-8"),
        (b'id,grade\n"a,A\n', "is not a CSV file in UTF-8"),
    ],
)
def test_another_file_is_refused_with_its_name_and_line(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "grades.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"grades\.csv") as refused:
        read_grades(tmp_path / "grades.csv", grader="anna")
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_people_are_named_by_their_files_where_these_say_no_name() -> None:
    assert named_apart([Path("x/anna.csv"), Path("y/ben.csv")]) == ["anna", "ben"]
    assert named_apart([Path("x/g.csv"), Path("y/g.csv")]) == ["x/g.csv", "y/g.csv"]
