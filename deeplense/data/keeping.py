"""Columns that are kept with images: as numbers where float64 keeps all digits, otherwise as texts."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from deeplense.data.choosing import is_kept, pick
from deeplense.data.conditions import is_missing, number
from deeplense.data.records import Layout
from deeplense.files import is_plain

CODE = re.compile(r"\s*[+-]?0\d", re.ASCII)
"""How texts begin that look like numbers, but are codes: with a zero before another digit."""
USUAL_UNITS = {"ra": "deg", "dec": "deg"}
"""Units of columns that mean the position on the sky by convention."""


def with_kept(layout: Layout, wanted: Mapping[str, str]) -> Layout:
    """Return the images with more columns that are kept: as numbers if float64 keeps all cells, else as texts.

    Args:
        layout: content of the data set.
        wanted: units of the columns by name; "" for that of the table.

    Raises:
        ValueError: there is no such column, or its name is not allowed.
    """
    for name in wanted:
        if not is_plain(name):
            raise ValueError(f"--keep: {name[:100]!r} cannot be the name of a column; rename it.")
    columns = [kept_values(pick(layout, name)) for name in wanted]
    rows = zip(*columns, strict=True) if columns else [()] * len(layout.records)
    before = [place for place, name in enumerate(layout.kept) if name not in wanted]
    records = [
        replace(record, kept=(*(record.kept[place] for place in before), *row))
        for record, row in zip(layout.records, rows, strict=True)
    ]
    units = {name: unit for name, unit in layout.kept.items() if name not in wanted}
    units |= {name: unit or layout.units.get(name, USUAL_UNITS.get(name, "")) for name, unit in wanted.items()}
    return replace(layout, records=records, kept=units)


def kept_values(cells: np.ndarray) -> list[float] | list[str]:
    """Return the cells of a column as numbers, NaN for empty cells, if all are numbers that float64 keeps, else as
    texts, "" for empty cells.

    Example:
        >>> kept_values(np.array(["1.5", ""])), kept_values(np.array(["007", "12"]))
        ([1.5, nan], ['007', '12'])
    """
    missing = is_missing(cells)
    found = [None if empty else number(cell) for cell, empty in zip(cells.tolist(), missing.tolist(), strict=True)]
    plain = [
        value is not None and is_kept(value) and not CODE.match(cell) for value, cell in zip(found, cells, strict=True)
    ]
    if missing.all() or not all(good or empty for good, empty in zip(plain, missing.tolist(), strict=True)):
        return ["" if empty else cell.strip() for cell, empty in zip(cells.tolist(), missing.tolist(), strict=True)]
    return [np.nan if value is None else float(value) for value in found]
