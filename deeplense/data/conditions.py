"""Conditions on columns of a catalogue, such as `grade>=2` and `type!=star`, and lists in settings."""

import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

MISSING = ("", "nan", "NaN", "-nan", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "<NA>", "--")
"""Cells that count as empty, as pandas and astropy write and read them."""
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
    """Return the items of a comma-separated list.

    Example:
        >>> listed("a, b,")
        ['a', 'b']
    """
    return [item.strip() for item in text.split(",") if item.strip()]


def read_targets(text: str, *, setting: str = "targets") -> dict[str, str]:
    """Return columns with their units, "" for none, from `COLUMN:UNIT,COLUMN,...`.

    Args:
        text: the list.
        setting: name of the setting, for messages.

    Raises:
        ValueError: a column comes twice.

    Example:
        >>> read_targets("theta_E:arcsec,z")
        {'theta_E': 'arcsec', 'z': ''}
    """
    pairs = [(name.strip(), unit.strip()) for name, _, unit in (item.partition(":") for item in listed(text))]
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"{setting}={text!r} names a column twice.")
    return dict(pairs)


def read_sky(text: str) -> tuple[str, str, float] | None:
    """Return the columns of right ascension and declination and a radius in arcsec, from `RA,DEC,ARCSEC`; None for "".

    Raises:
        ValueError: the text is something else.

    Example:
        >>> read_sky("ra,dec,5")
        ('ra', 'dec', 5.0)
    """
    if not text:
        return None
    items = listed(text)
    radius = number(items[2]) if len(items) == 3 else None
    if radius is None or not 0 < radius <= 180 * 3600:
        raise ValueError(
            f"sky={text!r} must be RA,DEC,ARCSEC: two columns in degrees and the largest separation within a "
            "group, such "
            "as ra,dec,5."
        )
    return items[0], items[1], float(radius)


def parse_condition(text: str) -> tuple[str, str, str]:
    """Return column, operator and value of a condition. Raises ValueError if it is not a condition.

    Example:
        >>> parse_condition("grade >= 2")
        ('grade', '>=', '2')
    """
    found = WRITTEN.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a condition; give COLUMN=VALUE, or use !=, <, <=, > or >= instead of =.")
    column, sign, value = found["column"], found["sign"], found["value"]
    if sign not in ("=", "!=") and number(value) is None:
        raise ValueError(f"{text!r} compares with {value!r}, which is not a number; give a number.")
    return column, sign, value


def holds(text: str, column: np.ndarray) -> np.ndarray:
    """Return for which rows a condition holds, (N,) bool.

    Two numbers are compared as numbers, with all their digits: `grade=2` holds for 2.0. With <, <=, >, >= cells that
    are not numbers, such as empty ones, fail. `COLUMN=` holds for empty cells, `COLUMN!=` for all others.

    Args:
        text: condition: a column, one of =, !=, <, <=, >, >=, and a value.
        column: cells of that column as strings, (N,).

    Raises:
        ValueError: the text is not a condition.

    Example:
        >>> holds("grade>=2", np.array(["1", "2.0", ""])).tolist()
        [False, True, False]
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
    """Return which cells are empty, (N,) bool."""
    return np.array([cell.strip() in MISSING for cell in column.tolist()], dtype=bool)


def number(cell: str) -> Decimal | None:
    """Return the number in a cell, with all its digits, or None."""
    text = cell.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else None


def split_classes(entries: list[str]) -> dict[str, str]:
    """Return classes defined by conditions, NAME:CONDITION, as conditions by name; empty if the entries are plain
    labels.

    Raises:
        ValueError: plain labels and conditions are mixed, or a name comes twice.

    Example:
        >>> split_classes(["lens:grade>=2", "other:grade<2"])
        {'lens': 'grade>=2', 'other': 'grade<2'}
    """
    told = [entry.partition(":") for entry in entries]
    with_condition = [bool(colon) for _, colon, _ in told]
    if not any(with_condition):
        return {}
    if not all(with_condition):
        raise ValueError(f"classes {entries}: give all classes as NAME:CONDITION, or none.")
    for _, _, condition in told:
        parse_condition(condition)
    named = {name.strip(): condition for name, _, condition in told}
    if len(named) != len(told) or "" in named:
        raise ValueError(f"classes {entries}: give each class a unique name and one condition.")
    return named
