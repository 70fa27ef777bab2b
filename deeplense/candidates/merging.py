"""Files of grades, as the page of candidates writes them, and how grades of several people become one."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplense.choices import require_choice
from deeplense.files import replacing

GRADES = ("A", "B", "C", "not")
"""The grades, the best first."""
RULES = ("majority", "median")
MERGED = ("id", "grade", "num_graders", "agreement", "votes", "note", "source", "rank", "score")
TEXTS = ("id", "note", "source", "rank", "score")
BEGINS_FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would take a text as a formula."""
    return bool(BEGINS_FORMULA.match(text)) and not NUMBER.fullmatch(text)


def guarded(text: str) -> str:
    """Return a text with an apostrophe before it, if a spreadsheet would take it as a formula.

    Example:
        >>> guarded("=1+1"), guarded("-12.5"), guarded("J0201")
        ("'=1+1", '-12.5', 'J0201')
    """
    return f"'{text}" if is_formula(text.lstrip("'")) else text


def unguarded(text: str) -> str:
    """Return the text that `guarded` was given.

    Example:
        >>> unguarded("'=1+1"), unguarded("'tis")
        ('=1+1', "'tis")
    """
    return text[1:] if text.startswith("'") and is_formula(text.lstrip("'")) else text


@dataclass(frozen=True)
class Graded:
    """What one person said of one image.

    Args:
        name: name of the image.
        source: data set or file of the image; "" if unknown.
        grader: name of the person.
        grade: one of `GRADES`; "" for none.
        note: text of the person.
        time: when, in ISO 8601 with UTC; "" if unknown.
        rank: place of the image on the page; "" if unknown.
        score: score of the image; "" if unknown.
    """

    name: str
    source: str
    grader: str
    grade: str
    note: str = ""
    time: str = ""
    rank: str = ""
    score: str = ""


def read_grades(path: Path, *, grader: str) -> list[Graded]:
    """Return the lines of a file of grades.

    Args:
        path: CSV file with the columns `id` and `grade`, and optional ones.
        grader: name of the person where the file has none.

    Raises:
        ValueError: it is not such a file, or has another grade.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            heads = reader.fieldnames or []
            rows = [{name: unguarded(value or "") for name, value in row.items() if name} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error}); save the grades again.") from error
    lacking = [name for name in ("id", "grade") if name not in heads]
    if lacking:
        raise ValueError(f"{path} has no column {' and '.join(lacking)}; its columns: {', '.join(heads) or 'none'}.")
    return [graded_of(path, number, row, grader) for number, row in enumerate(rows, 2)]


def graded_of(path: Path, line: int, row: Mapping[str, str], grader: str) -> Graded:
    """Return one line of a file. Raises ValueError for an unknown grade or an empty id."""
    known = {grade.casefold(): grade for grade in ("", *GRADES)}
    given = row["grade"].strip().casefold()
    if given not in known:
        raise ValueError(
            f"{path}, line {line}: grade {row['grade'][:40]!r} is unknown; grades are {', '.join(GRADES)}."
        )
    if not row["id"]:
        raise ValueError(f"{path}, line {line} has no id; restore it, or remove the line.")
    texts = {name: row.get(name) or "" for name in ("source", "note", "time", "rank", "score")}
    return Graded(name=row["id"], grader=(row.get("grader") or "").strip() or grader, grade=known[given], **texts)


def latest(grades: Iterable[Graded]) -> list[Graded]:
    """Return the last word of each person on each image: of two lines the one with the later time, or the later line if
    the times are equal or unknown."""
    found: dict[tuple[str, str, str], Graded] = {}
    for each in grades:
        key = (each.grader, each.source, each.name)
        if key not in found or each.time >= found[key].time:
            found[key] = each
    return list(found.values())


@dataclass(frozen=True)
class Merged:
    """What several people said of one image.

    Args:
        name: name of the image.
        source: data set or file of the image.
        grade: the merged grade; "" if nobody gave one.
        grades: the grade of each person, by name.
        notes: the note of each person, by name.
        rank: place of the image on the page; "" if unknown.
        score: score of the image; "" if unknown.
    """

    name: str
    source: str
    grade: str
    grades: Mapping[str, str]
    notes: Mapping[str, str]
    rank: str
    score: str

    @property
    def agreement(self) -> float:
        """Fraction of the people who gave the merged grade; NaN without a grade."""
        given = list(self.grades.values())
        return given.count(self.grade) / len(given) if given else float("nan")


def merge(grades: Iterable[Graded], *, rule: str = "majority") -> list[Merged]:
    """Return one grade per image, sorted by rank.

    `majority` takes the grade that most people gave, and of several such grades the worst. `median` takes the middle
    one of the sorted grades, and of two middle ones the worse.

    Args:
        grades: what people said; only the last word of each counts.
        rule: `majority` or `median`.

    Raises:
        ValueError: unknown rule.

    Example:
        >>> one, other = Graded("a", "", "anna", "A"), Graded("a", "", "ben", "B")
        >>> merge([one, other])[0].grade
        'B'
    """
    require_choice("rule", rule, RULES)
    images: dict[tuple[str, str], list[Graded]] = {}
    for each in latest(grades):
        images.setdefault((each.source, each.name), []).append(each)
    merged = [merged_of(some, rule) for some in images.values()]
    return sorted(merged, key=lambda each: (rank_of(each.rank), each.source, each.name))


def merged_of(some: Sequence[Graded], rule: str) -> Merged:
    """Merge what people said of one image."""
    given = {each.grader: each.grade for each in some if each.grade}
    known = next((each for each in some if each.rank), some[0])
    return Merged(
        name=some[0].name,
        source=some[0].source,
        grade=one_grade(list(given.values()), rule),
        grades=given,
        notes={each.grader: each.note for each in some if each.note},
        rank=known.rank,
        score=known.score,
    )


def one_grade(given: Sequence[str], rule: str) -> str:
    """Return the merged grade of some grades; "" if there are none.

    Example:
        >>> one_grade(["A", "A", "not", "not"], "majority"), one_grade(["A", "B", "C", "C"], "median")
        ('not', 'C')
    """
    if not given:
        return ""
    if rule == "median":
        return sorted(given, key=GRADES.index)[len(given) // 2]
    most = max(given.count(grade) for grade in GRADES)
    return [grade for grade in GRADES if given.count(grade) == most][-1]


def rank_of(text: str) -> float:
    """Return a rank as a number; infinity if it is unknown."""
    return float(text) if text.isascii() and text.isdigit() else float("inf")


def table_of(merged: Sequence[Merged], graders: Sequence[str]) -> np.ndarray:
    """Return the numbers of the grades, (N, R); -1 where a person gave none.

    Args:
        merged: images (N).
        graders: names of the people (R).
    """
    table = [[GRADES.index(each.grades[name]) if name in each.grades else -1 for name in graders] for each in merged]
    return np.array(table, dtype=np.int64).reshape(len(merged), len(graders))


def write_merged(path: Path, merged: Sequence[Merged]) -> None:
    """Write a CSV file with a line per image.

    Args:
        path: file to write or replace.
        merged: the images.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(MERGED)
        for each in merged:
            row = row_of(each)
            writer.writerow([row[name] for name in MERGED])


def row_of(each: Merged) -> dict[str, object]:
    """Return the line of an image."""
    share = each.agreement
    row: dict[str, object] = {
        "id": each.name,
        "grade": each.grade,
        "num_graders": len(each.grades),
        "agreement": "" if np.isnan(share) else f"{share:.3g}",
        "votes": " ".join(votes(each)),
        "note": "; ".join(f"{name}: {note}" for name, note in each.notes.items()),
        "source": each.source,
        "rank": each.rank,
        "score": each.score,
    }
    return row | {name: guarded(str(row[name])) for name in TEXTS}


def votes(each: Merged) -> Iterator[str]:
    """Yield how often each grade was given, such as `A:2`."""
    given = list(each.grades.values())
    yield from (f"{grade}:{given.count(grade)}" for grade in GRADES if grade in given)


def named_apart(paths: Sequence[Path]) -> list[str]:
    """Return a name of a person for each file: its stem, or the whole path where stems are equal.

    Example:
        >>> named_apart([Path("a/grades.csv"), Path("b/grades.csv"), Path("anna.csv")])
        ['a/grades.csv', 'b/grades.csv', 'anna']
    """
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
