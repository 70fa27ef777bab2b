"""Conditions on the columns of a catalogue, as users write them: `grade>=2`, `type!=star`."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
WRITTEN = re.compile(r"\s*(?P<column>[^=!<>]+?)\s*(?P<sign>!=|<=|>=|=|<|>)\s*(?P<value>.*?)\s*")


def parse_condition(text: str) -> tuple[str, str, str]:
    """Column, sign and value. Raises ValueError where the text is no condition, or compares with what is no number."""
    found = WRITTEN.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no condition; COLUMN=VALUE, or !=, <, <=, >, >= in place of =, would be one.")
    column, sign, value = found["column"], found["sign"], found["value"]
    if sign in ("=", "!="):
        return column, sign, value
    try:
        float(value)
    except ValueError as error:
        raise ValueError(f"{text!r} compares with {value!r}, which is no number.") from error
    return column, sign, value


def holds(text: str, column: np.ndarray) -> np.ndarray:
    """For which rows a condition holds, (N,), given its column as strings. Numbers are compared with <, <=, >, >=; what
    is no number, such as an empty cell, fails these."""
    _, sign, value = parse_condition(text)
    if sign in ("=", "!="):
        return COMPARISONS[sign](column, value)
    return COMPARISONS[sign](np.array([number(cell) for cell in column]), float(value))


def number(cell: str) -> float:
    """The number in a cell, NaN where there is none."""
    try:
        return float(cell)
    except ValueError:
        return np.nan


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
    return {name.strip(): condition for name, _, condition in told}
