"""What users write about the columns of a catalogue: conditions such as `grade>=2` and `type!=star`, and lists."""

import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

MISSING = ("", "nan", "NaN", "-nan", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "<NA>", "--")
"""How a cell says that it holds nothing, as pandas and astropy write and read it."""
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d{1,6})?|inf|Inf|infinity|Infinity)", re.ASCII)

COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
WRITTEN = re.compile(r"\s*(?P<column>[^=!<>]+?)\s*(?P<sign>!=|<=|>=|=|<|>)\s*(?P<value>.*?)\s*")


def listed(text: str) -> list[str]:
    """The items of a list with commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def read_targets(text: str) -> dict[str, str]:
    """Columns with their units, "" for none, from `COLUMN:UNIT,COLUMN,...`. Raises ValueError where one is given
    twice."""
    pairs = [(name.strip(), unit.strip()) for name, _, unit in (item.partition(":") for item in listed(text))]
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"targets={text!r} names a column twice.")
    return dict(pairs)


def read_sky(text: str) -> tuple[str, str, float] | None:
    """Columns of right ascension and declination, and a radius in arcsec, from `RA,DEC,ARCSEC`; None for nothing.
    Raises ValueError where it is something else."""
    if not text:
        return None
    items = listed(text)
    radius = number(items[2]) if len(items) == 3 else None
    if radius is None or not 0 < radius <= 180 * 3600:
        raise ValueError(
            f"sky={text!r} must be RA,DEC,ARCSEC: two columns in degrees, and how near images of one group are, such "
            "as ra,dec,5."
        )
    return items[0], items[1], float(radius)


def parse_condition(text: str) -> tuple[str, str, str]:
    """Column, sign and value. Raises ValueError where the text is no condition, or compares with what is no number."""
    found = WRITTEN.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no condition; COLUMN=VALUE, or !=, <, <=, >, >= in place of =, would be one.")
    column, sign, value = found["column"], found["sign"], found["value"]
    if sign not in ("=", "!=") and number(value) is None:
        raise ValueError(f"{text!r} compares with {value!r}, which is no number.")
    return column, sign, value


def holds(text: str, column: np.ndarray) -> np.ndarray:
    """For which rows a condition holds, (N,), given its column as strings.

    Two numbers are compared as numbers, to all their digits: `grade=2` holds for 2.0. With <, <=, >, >= what is no
    number, such as an empty cell, fails. `COLUMN=` holds for cells that hold nothing, `COLUMN!=` for all others.
    """
    _, sign, value = parse_condition(text)
    compare = COMPARISONS[sign]
    if value in MISSING:
        return compare(is_missing(column), True)
    asked = number(value)
    found = [number(cell) for cell in column.tolist()]
    if sign not in ("=", "!="):
        return np.array([cell is not None and bool(compare(cell, asked)) for cell in found], dtype=bool)
    pairs = zip(column.tolist(), found, strict=True)
    equal = [cell == asked if None not in (cell, asked) else text.strip() == value for text, cell in pairs]
    return compare(np.array(equal, dtype=bool), True)


def is_missing(column: np.ndarray) -> np.ndarray:
    """Which cells hold nothing, (N,)."""
    return np.array([cell.strip() in MISSING for cell in column.tolist()], dtype=bool)


def number(cell: str) -> Decimal | None:
    """The number in a cell, to all its digits, None where there is none."""
    text = cell.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else None


def split_classes(entries: list[str]) -> dict[str, str]:
    """Classes that are told by conditions, NAME:CONDITION, as names with their conditions; empty where the entries are
    plain labels. Raises ValueError where they are mixed."""
    told = [entry.partition(":") for entry in entries]
    with_condition = [bool(colon) for _, colon, _ in told]
    if not any(with_condition):
        return {}
    if not all(with_condition):
        raise ValueError(f"classes {entries}: give all of them as NAME:CONDITION, or none.")
    for _, _, condition in told:
        parse_condition(condition)
    named = {name.strip(): condition for name, _, condition in told}
    if len(named) != len(told) or "" in named:
        raise ValueError(f"classes {entries}: give each class one name of its own, and one condition.")
    return named
