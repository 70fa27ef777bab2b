"""Tables of other programs as columns of texts: ECSV, FITS and Parquet, with the units of their columns."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.foreign import one_line, require_package

ECSV, FITS, PARQUET = (".ecsv",), (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz"), (".parquet", ".pq")
Columns = dict[str, np.ndarray]
"""Texts (N,) by column, "" for missing values."""
Shapes = dict[str, tuple[int, ...]]
"""Shapes of columns with several values in a cell, by name."""


def read_table(path: Path) -> tuple[Columns, dict[str, str], Shapes]:
    """Return the columns of a table as texts, the units of some, and the shapes of those with several values in a cell.

    Args:
        path: ECSV, FITS or Parquet file.

    Raises:
        ValueError: it is unreadable, or no table; the message names it.
    """
    name = path.name.lower()
    package = "pyarrow" if name.endswith(PARQUET) else "astropy"
    require_package(package, package, f"tables like {path}")
    try:
        columns, units = from_parquet(path) if name.endswith(PARQUET) else from_astropy(path, ecsv=name.endswith(ECSV))
    except Exception as error:  # a torn file may raise anything
        raise ValueError(f"{path}: not a readable table ({one_line(error)}); correct it, or save it as CSV.") from error
    shapes = {name: column.shape for name, column in columns.items() if column.ndim > 1}
    return {name: column for name, column in columns.items() if name not in shapes}, units, shapes


def from_astropy(path: Path, *, ecsv: bool) -> tuple[Columns, dict[str, str]]:
    """Return the columns of an ECSV or FITS table, and their units.

    Args:
        path: the file.
        ecsv: whether it is ECSV.
    """
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table.read(path, format="ascii.ecsv") if ecsv else Table.read(path, format="fits", hdu=table_in(path))
    units = {str(name): str(table[name].unit) for name in table.colnames if getattr(table[name], "unit", None)}
    return {str(name): texts_of(table[name]) for name in table.colnames}, units


def table_in(path: Path) -> int:
    """Return the number of the only table in a FITS file. Raises ValueError if there is none, or several."""
    from astropy.io import fits

    with fits.open(path, memmap=False) as file:
        tables = [k for k, part in enumerate(file) if isinstance(part, fits.BinTableHDU | fits.TableHDU)]
    if len(tables) != 1:
        raise ValueError(f"it has {len(tables)} tables instead of one")
    return tables[0]


def texts_of(column: Any) -> np.ndarray:
    """Return a column of a table as texts (N,), or (N, ...) if cells hold several values; masked cells are "".

    Args:
        column: column of astropy.
    """
    missing = np.asarray(getattr(column, "mask", False))
    values = np.asarray(getattr(column, "filled", lambda: column)() if missing.ndim else column)
    if values.ndim != 1:
        return values
    texts = np.array(
        [text_of(value) for value in values.tolist()] if values.dtype.kind not in "f" else floats(values), dtype=object
    )
    return np.where(np.broadcast_to(missing, texts.shape), "", texts).astype(object)


def floats(values: np.ndarray) -> list[str]:
    """Return real numbers as the shortest texts that give them again in their own precision.

    Args:
        values: (N,).

    Example:
        >>> floats(np.array([0.1, 2.0], dtype=np.float32))
        ['0.1', '2.0']
    """
    native = values.astype(values.dtype.newbyteorder("="))
    return [str(value) for value in native]


def text_of(value: object) -> str:
    """Return a cell as text; "" for None and NaN.

    Example:
        >>> [text_of(value) for value in (b" arc ", 3, None, float("nan"))]
        ['arc', '3', '', '']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8").strip()
    return str(value).strip()


def from_parquet(path: Path) -> tuple[Columns, dict[str, str]]:
    """Return the columns of a Parquet table with one value in a cell; units are not stored in such files.

    Args:
        path: the file.
    """
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        return arrow_columns(
            file.read(columns=scalar_names(file.schema_arrow)).columns, scalar_names(file.schema_arrow)
        ), {}


def scalar_names(schema: Any) -> list[str]:
    """Return the columns of an Arrow schema whose cells hold one number or text."""
    import pyarrow.types as types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    kinds = (*kinds, types.is_decimal, types.is_temporal, types.is_dictionary)
    return [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]


def arrow_columns(columns: Sequence[Any], names: Sequence[str]) -> Columns:
    """Return columns of Arrow as texts (N,); "" for null.

    Args:
        columns: the columns.
        names: their names.
    """
    import pyarrow.types as types

    found = {}
    for name, column in zip(names, columns, strict=True):
        if types.is_floating(column.type):
            values = column.to_numpy()
            texts = ["" if math.isnan(value) else text for value, text in zip(values, floats(values), strict=True)]
            found[name] = np.array(texts, dtype=object)
        else:
            found[name] = np.array([text_of(value) for value in column.to_pylist()], dtype=object)
    return found
