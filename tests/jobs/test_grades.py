"""`deeplense grades`: files of several people become one, and their agreement is told."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from launch.__main__ import main

GRADES = ("A", "B", "C", "not")


def write(path: Path, grades: dict[str, str], **more: str) -> Path:
    """A file of grades as the page writes it."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "grade", *more])
        writer.writerows([name, grade, *more.values()] for name, grade in grades.items())
    return path


def drawn(seed: int, count: int = 60, first: int = 0) -> dict[str, str]:
    """Grades of one person who sees a common truth through noise."""
    truth = np.random.default_rng(0).normal(size=100)
    seen = truth + 0.5 * np.random.default_rng(seed).normal(size=100)
    return {f"i{k}": GRADES[int(np.digitize(seen[k], [-0.7, 0, 0.7]))] for k in range(first, first + count)}


def merged(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a merged file by the name of the image."""
    with path.open(newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def test_files_of_three_people_are_merged_and_their_agreement_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    people = {name: drawn(seed, first=10 * seed) for seed, name in enumerate(("anna", "ben", "cleo"))}
    paths = [str(write(tmp_path / f"{name}.csv", grades)) for name, grades in people.items()]
    assert main(["grades", *paths, f"--output={tmp_path / 'merged.csv'}"]) == 0
    told = capfd.readouterr().out
    found = merged(tmp_path / "merged.csv")
    assert len(found) == 80
    for name, row in found.items():
        given = [grades[name] for grades in people.values() if name in grades]
        assert int(row["num_graders"]) == len(given)
        assert given.count(row["grade"]) == max(map(given.count, given))
        assert float(row["agreement"]) == pytest.approx(given.count(row["grade"]) / len(given), abs=1e-3)
    common = sorted(set(people["anna"]) & set(people["ben"]))
    kappa = cohen_kappa_score(*([people[name][k] for k in common] for name in ("anna", "ben")))
    assert (
        f"anna and ben: 50 common images, {np.mean([people['anna'][k] == people['ben'][k] for k in common]):.0%}"
        in told
    )
    assert f"Cohen's kappa {kappa:.3f}" in told
    assert "60 of 80 images have grades of two or more people" in told
    assert "Krippendorff's alpha 0." in told


def test_two_files_of_one_person_are_one_and_the_later_grade_counts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    late = write(tmp_path / "b.csv", {"x": "not"}, grader="anna", time="2026-02-01T00:00:00Z")
    early = write(tmp_path / "a.csv", {"x": "A", "y": "B"}, grader="anna", time="2026-01-01T00:00:00Z")
    assert main(["grades", str(late), str(early), f"--output={tmp_path / 'merged.csv'}"]) == 0
    told = capfd.readouterr().out
    assert "anna: 2 images, A 0, B 1, C 0, not 1; 1 earlier lines are replaced by later ones" in told
    assert "One person" in told
    assert {name: row["grade"] for name, row in merged(tmp_path / "merged.csv").items()} == {"x": "not", "y": "B"}


@pytest.mark.parametrize(("rule", "right"), [("majority", "A"), ("median", "B")])
def test_the_rule_can_be_chosen(rule: str, right: str, tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{k}.csv", {"x": grade})) for k, grade in enumerate(("A", "A", "B", "C", "not"))]
    assert main(["grades", *paths, f"--output={tmp_path / 'merged.csv'}", f"--rule={rule}"]) == 0
    assert merged(tmp_path / "merged.csv")["x"]["grade"] == right


def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, empty = write(tmp_path / "good.csv", {"x": "A"}), write(tmp_path / "empty.csv", {"x": ""})
    wrong = write(tmp_path / "wrong.csv", {"x": "A", "y": "AA"})
    output = tmp_path / "out" / "merged.csv"
    for words, problem in (
        ([good, wrong], "wrong.csv, line 3: grade 'AA' is unknown"),
        ([good, tmp_path / "nowhere.csv"], "nowhere.csv: No such file or directory"),
        ([empty], "the files have no grades"),
        ([good, f"--output={output}"], "does not exist; create it"),
        ([good, tmp_path], "Is a directory"),
    ):
        assert main(["grades", *map(str, words)]) == 2
        told = capfd.readouterr().err
        assert (problem in told, len(told.splitlines())) == (True, 1), told
    assert sorted(os.listdir(tmp_path)) == ["empty.csv", "good.csv", "wrong.csv"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a.csv", "a.csv"], "given twice"),
        (["a.csv", "./a.csv"], "given twice"),
        (["a.csv", "--output=a.csv"], "is one of the files"),
        (["a.csv", "--output=a.txt"], "must end in .csv"),
        ([], "give FILES"),
    ],
)
def test_settings_that_would_lose_a_file_are_refused(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["grades", *words])
    assert problem in capsys.readouterr().err
