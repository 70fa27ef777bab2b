"""Merge the grades of several people and print how well they agree."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from deeplense.candidates.agreement import MISSING, Agreement, cohen_kappa, krippendorff_alpha
from deeplense.candidates.merging import (
    GRADES,
    Graded,
    Merged,
    latest,
    merge,
    named_apart,
    read_grades,
    table_of,
    write_merged,
)
from jobs.console import say
from jobs.grades.settings import Settings
from jobs.settings import require


def run(settings: Settings) -> int:
    """Write the merged grades; print the counts and the agreement."""
    output, paths = settings.output, [Path(file) for file in settings.files]
    require(output.parent.is_dir(), f"the folder {output.parent} of output={output} does not exist; create it.")
    grades = [
        each for path, name in zip(paths, named_apart(paths), strict=True) for each in read_grades(path, grader=name)
    ]
    require(any(each.grade for each in grades), "the files have no grades; grade images first.")
    merged = merge(grades, rule=settings.rule)
    for line in [*persons(grades), *agreements(merged), *summary(merged, settings.rule)]:
        say(line)
    write_merged(output, merged)
    say(f"file: {output}, a line for each of {len(merged)} images")
    return 0


def graders_of(merged: Sequence[Merged]) -> list[str]:
    """Return the names of all people, sorted."""
    return sorted({name for each in merged for name in each.grades})


def persons(grades: Sequence[Graded]) -> Iterator[str]:
    """Yield a line per person with the number of each grade, and how many lines a later one replaces."""
    last = latest(grades)
    for name in sorted({each.grader for each in last}):
        counts = Counter(each.grade for each in last if each.grader == name and each.grade)
        replaced = sum(each.grader == name for each in grades) - sum(each.grader == name for each in last)
        more = f"; {replaced} earlier lines are replaced by later ones" if replaced else ""
        yield f"{name}: {counts.total()} images, {in_words(counts)}{more}"


def in_words(counts: Counter[str]) -> str:
    """Return the number of each grade as text."""
    return ", ".join(f"{grade} {counts[grade]}" for grade in GRADES)


def agreements(merged: Sequence[Merged]) -> Iterator[str]:
    """Yield how well people agree: all together, and each pair."""
    graders = graders_of(merged)
    if len(graders) < 2:
        yield "One person: there is no agreement to measure."
        return
    table = table_of(merged, graders)
    shared = int(((table != MISSING).sum(axis=1) > 1).sum())
    yield f"{shared} of {len(merged)} images have grades of two or more people"
    yield f"agreement: {alpha_in_words(krippendorff_alpha(table, len(GRADES)))}"
    for one, other in combinations(range(len(graders)), 2):
        yield pair_in_words(table[:, one], table[:, other], f"{graders[one]} and {graders[other]}")


def alpha_in_words(alpha: Agreement) -> str:
    """Return Krippendorff's alpha as text."""
    name = "Krippendorff's alpha"
    if np.isnan(alpha.value):
        return f"{name} is undefined, because no image has two grades or all grades are equal"
    if np.isnan(alpha.low):
        return f"{name} {alpha.value:.3f}"
    return f"{name} {alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}]"


def pair_in_words(first: np.ndarray, second: np.ndarray, names: str) -> str:
    """Return how well two people agree, as text."""
    both = (first != MISSING) & (second != MISSING)
    if not both.any():
        return f"  {names}: no common image"
    kappa = cohen_kappa(first, second, len(GRADES))
    told = "undefined" if np.isnan(kappa) else f"{kappa:.3f}"
    same = np.mean(first[both] == second[both])
    return f"  {names}: {both.sum()} common images, {same:.0%} with the same grade, Cohen's kappa {told}"


def summary(merged: Sequence[Merged], rule: str) -> Iterator[str]:
    """Yield the number of images with each merged grade."""
    counts = Counter(each.grade for each in merged if each.grade)
    yield f"merged by {rule}: {in_words(counts)}"
