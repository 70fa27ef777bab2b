"""Catalogues: tables with a line per image, and which line belongs to which image."""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.conditions import is_missing
from deeplense.data.folders import plain_name
from deeplense.data.image_files import stem_of
from deeplense.data.records import Layout, Record, few
from deeplense.data.tables import ECSV, FITS, PARQUET, read_table

NAME_COLUMNS = ("name", "names", "id", "ids", "object_id", "objid", "image", "image_name", "file", "filename", "path")
"""Usual names of columns and arrays with image names, the most likely first."""
BLANKS, TABS = (".txt", ".dat"), (".tsv", ".tab")
"""Endings of tables whose columns are separated by spaces, if no comma is in the first line, and by tabs."""
PLACE_COLUMNS = ("index", "row", "number")
"""Usual names of columns that count images."""

Join = Literal["name", "order"]
JOINS = get_args(Join)


@dataclass(frozen=True)
class Catalogue:
    """The cells of a table.

    Args:
        path: the file.
        columns: texts without surrounding spaces by column, (N,) each.
        lines: number of the line of each row, (N,); in files that are no text, of the row, from 0.
        units: units of some columns.
        unfit: shapes of columns with several values in a cell.
        word: what messages call a line.
    """

    path: Path
    columns: Mapping[str, np.ndarray]
    lines: Sequence[int]
    units: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    word: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def called(self, row: int) -> str:
        """Return how messages name a row."""
        return f"{self.word} {self.lines[row]}"

    def only(self, kept: np.ndarray) -> "Catalogue":
        """Return the rows for which a mask (N,) is true."""
        lines = [line for line, keep in zip(self.lines, kept.tolist(), strict=True) if keep]
        return replace(self, columns={name: cells[kept] for name, cells in self.columns.items()}, lines=lines)

    def column(self, name: str) -> np.ndarray:
        """Return a column. Raises ValueError, with the existing ones, if it is missing."""
        if name not in self.columns:
            raise ValueError(f"{self.path}: no column {name!r}; the columns are {sorted(self.columns)}.")
        return self.columns[name]


def read_catalogue(path: Path) -> Catalogue:
    """Read a table: .ecsv, .fits, .parquet, or text with a header, separated by commas (.csv), spaces (.txt) or tabs
    (.tsv).

    Raises:
        ValueError: it is unreadable, has no rows, or a line of a text has more or fewer cells than the header; the
            message names the file and the line.
    """
    if path.name.lower().endswith((*ECSV, *FITS, *PARQUET)):
        columns, units, unfit = read_table(path)
        count = len(next(iter(columns.values()), []))
        if not count:
            raise ValueError(f"{path}: the table has no rows; give a table with one row per image.")
        return Catalogue(path, columns, range(count), units, unfit, word="row")
    (_, first), *rows = read_rows(path) or [(0, [])]
    if not rows:
        raise ValueError(f"{path}: the CSV file has no lines; give a file with a header and one line per image.")
    header = checked_header(path, first)
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}: line {line} has {len(row)} cells, but the header has {len(header)} columns. Correct "
                "the line; "
                "a cell that contains a comma must be quoted."
            )
    columns = {
        name: np.array([row[k].strip() for _, row in rows], dtype=object) for k, name in enumerate(header) if name
    }
    return Catalogue(path, columns, [line for line, _ in rows])


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the non-empty rows of a CSV file, each with the number of its (last) line. Raises ValueError, naming file
    and line."""
    rows, line = [], 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            if path.suffix.lower() in BLANKS and "," not in stream.readline():
                stream.seek(0)
                return [(line, text.split()) for line, text in enumerate(stream, 1) if text.strip("# \t\r\n")]
            stream.seek(0)
            reader = csv.reader(stream, strict=True, delimiter="\t" if path.suffix.lower() in TABS else ",")
            for row in reader:
                line = reader.line_num
                rows += [(line, row)] if row else []
    except csv.Error as error:
        raise ValueError(
            f"{path}: the CSV cannot be read after line {line} ({error}); check for a quote that is not closed."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a readable CSV file in UTF-8 ({error}); save it as CSV with UTF-8 encoding."
        ) from error
    return rows


def checked_header(path: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns.

    Args:
        path: the file, for messages.
        header: first row.

    Raises:
        ValueError: a name comes twice, or the columns are not separated by commas.
    """
    names = [name.strip() for name in header]
    if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
        raise ValueError(
            f"{path}: the columns are not separated by commas ({names[0][:60]!r}). Save the file with commas as "
            "separators."
        )
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(
            f"{path}: several columns have the name {few(twice)}. Rename them so that each name is unique."
        )
    return names


def first_known(names: Sequence[str], known: Sequence[str]) -> str:
    """Return the first of some known names that exists, in whatever spelling; "" for none.

    Args:
        names: existing names.
        known: known names, the most likely first.

    Example:
        >>> first_known(["ra", "Object ID"], ["name", "object_id"])
        'Object ID'
    """
    written = {plain_name(name): name for name in reversed(names)}
    return next((written[plain_name(name)] for name in known if plain_name(name) in written), "")


def attach(
    layout: Layout, catalogue: Catalogue, *, join: Join = "name", name_column: str = "", leave_out: bool = False
) -> Layout:
    """Return the images of a layout with the cells of their lines in a catalogue.

    Args:
        layout: the images.
        catalogue: the lines.
        join: `name`, or `order` for line k and image k.
        name_column: column of image names; "" for the most likely one.
        leave_out: whether to leave out images without a line, and lines without an image; otherwise they are an error.

    Raises:
        ValueError: the correspondence is unknown, or some have no counterpart.
    """
    require_choice("join", join, JOINS)
    if join == "order" or (not layout.named and not name_column):
        rows, notes = in_order(layout, catalogue, asked=join == "order")
    else:
        rows, notes = by_name(layout, catalogue, name_column, leave_out=leave_out)
    kept = rows >= 0
    own = {name: column[kept] for name, column in layout.columns.items()}
    cells = {name: column[rows[kept]] for name, column in catalogue.columns.items()}
    unfit = {name: shape for name, shape in layout.unfit.items() if name not in cells}
    return replace(
        layout,
        records=[record for record, keep in zip(layout.records, kept.tolist(), strict=True) if keep],
        columns=own | cells,
        units={**layout.units, **catalogue.units},
        unfit=unfit | dict(catalogue.unfit),
        catalog=catalogue.path,
        notes=[*layout.notes, *notes],
    )


def in_order(layout: Layout, catalogue: Catalogue, *, asked: bool) -> tuple[np.ndarray, list[str]]:
    """Return the row of each image, (N,), if both are in the same order, and notes.

    Args:
        layout: the images.
        catalogue: the lines.
        asked: whether the user asked for this; if not, a column of names or places must not contradict it.

    Raises:
        ValueError: the numbers of lines and images differ, or a column contradicts the order.
    """
    path, count, images = catalogue.path, len(catalogue), len(layout.records)
    known = [name for name in catalogue.columns if first_known([name], (*NAME_COLUMNS, *PLACE_COLUMNS))]
    if not asked and known and not any(counts_up(catalogue.columns[name]) for name in known):
        raise ValueError(
            f"{path} has image names ({few(known)}), but the images of {layout.source} have no names to match. "
            "Give --name_key ARRAY for an array of names in the archive, --name_column COLUMN for a column "
            "with the index of each image from 0, or --join order if line k belongs to image k."
        )
    if count != images:
        raise ValueError(
            f"{path}: {count} lines for {images} images; give exactly one line per image, in the same order."
        )
    why = (
        "as --join requests"
        if asked
        else "because neither file names the images, or the lines are numbered in this order"
    )
    return np.arange(images), [f"line k of {path} is used for image k, {why}"]


def counts_up(column: np.ndarray) -> bool:
    """Whether the cells of a column are 0, 1, 2, ... or 1, 2, 3, ..."""
    return any(column.tolist() == [str(k) for k in range(first, first + len(column))] for first in (0, 1))


def by_name(layout: Layout, catalogue: Catalogue, name_column: str, *, leave_out: bool) -> tuple[np.ndarray, list[str]]:
    """Return the row of each image, (N,), by name, -1 for none, and notes.

    Args:
        layout: the images.
        catalogue: the lines.
        name_column: column of image names; "" for the most likely one.
        leave_out: whether to leave out images and lines without a counterpart.

    Raises:
        ValueError: a name is missing or comes twice, or there is no counterpart.
    """
    column = name_column or likeliest(layout, catalogue)
    if not column:
        raise ValueError(
            f"{catalogue.path} has no column of image names; its columns are {sorted(catalogue.columns)}. Give "
            "--name_column "
            f"COLUMN, or --join order if line k belongs to image k of {layout.source}."
        )
    cells = catalogue.column(column)
    if not layout.named and cells.tolist() == [str(k) for k in range(1, len(cells) + 1)]:
        raise ValueError(
            f"{catalogue.path}: the column {column!r} counts from 1, but images without names are numbered from 0. "
            f"Give --join order if {catalogue.word} k belongs to image k, or number them from 0."
        )
    places = unique_names(catalogue, column, [bare(name) for name in cells.tolist()])
    keys = best_keys(layout, places)
    rows = np.array([places.get(key, -1) for key in keys], dtype=np.int64)
    unused = sorted(set(range(len(cells))) - set(rows.tolist()))
    told = {
        "images have no line": [layout.told(int(k)) for k in np.flatnonzero(rows < 0)],
        "lines have no image": [f"{catalogue.called(k)} ({cells[k]})" for k in unused],
    }
    notes = [f"lines of {catalogue.path} are matched to images by the names in the column {column!r}"]
    return rows, notes + counterparts(layout, catalogue, column, told, leave_out=leave_out)


def likeliest(layout: Layout, catalogue: Catalogue) -> str:
    """Return the column with a usual name that matches most images; "" for none.

    Args:
        layout: the images.
        catalogue: the lines.
    """
    known = [name for name in catalogue.columns if first_known([name], NAME_COLUMNS)]
    ranked = sorted(known, key=lambda name: [plain_name(other) for other in NAME_COLUMNS].index(plain_name(name)))

    def matches(name: str) -> int:
        cells = set(map(bare, catalogue.columns[name].tolist()))
        return max(sum(key in cells for key in keys) for keys in ways_to_name(layout))

    return max(ranked, key=matches, default="")


def ways_to_name(layout: Layout) -> list[list[str]]:
    """Return the names of the images in each spelling that a catalogue may use."""
    ways: list[Callable[[Record], str]] = [
        lambda record: record.name,
        lambda record: f"{record.split}/{record.name}",
        lambda record: record.name.rpartition("/")[2],
    ]
    if not layout.named:
        ways = [lambda record: str(record.row), lambda record: record.name]
    return [[bare(way(record)) for record in layout.records] for way in ways]


def counterparts(
    layout: Layout, catalogue: Catalogue, column: str, told: Mapping[str, Sequence[str]], *, leave_out: bool
) -> list[str]:
    """Return notes on images and lines that are left out.

    Args:
        layout: the images.
        catalogue: the lines.
        column: column of image names.
        told: names of images without a line, and of lines without an image.
        leave_out: whether to leave them out.

    Raises:
        ValueError: there are some and `leave_out` is False, or no image is left.
    """
    wrong = [f"{len(names)} {what}: {few(names)}" for what, names in told.items() if names]
    none = len(told["images have no line"]) == len(layout.records)
    if none or (wrong and not leave_out):
        remedy = (
            "Give another --name_column, or --join order if line k belongs to image k."
            if none
            else "Add what is missing, or give --unmatched leave_out to ignore these."
        )
        raise ValueError(
            f"{catalogue.path}: matched by the names in the column {column!r} to the {len(layout.records)} "
            f"images of {layout.source}, {'; '.join(wrong)}. {remedy}"
        )
    return [f"ignored: {text}" for text in wrong]


def bare(name: str) -> str:
    """Return a name without surrounding spaces and the ending of an image.

    Example:
        >>> bare(" ./a.npy ")
        'a'
    """
    return stem_of(name.strip().removeprefix("./"))


def unique_names(catalogue: Catalogue, column: str, names: Sequence[str]) -> dict[str, int]:
    """Return the row of each name.

    Args:
        catalogue: the lines.
        column: column of the names, for messages.
        names: the name of each line.

    Raises:
        ValueError: a name is missing or comes twice; the message names the lines.
    """
    places: dict[str, int] = {}
    missing = is_missing(np.array(names, dtype=object))
    for row, name in enumerate(names):
        if missing[row]:
            raise ValueError(
                f"{catalogue.path}: {catalogue.called(row)} has no name in the column {column!r}; add the "
                "name or remove the line."
            )
        if name in places:
            lines = f"{catalogue.lines[places[name]]} and {catalogue.lines[row]}"
            raise ValueError(
                f"{catalogue.path}: {catalogue.word}s {lines} have the same name {name!r} in the column {column!r}; "
                "keep one of them."
            )
        places[name] = row
    return places


def best_keys(layout: Layout, places: Mapping[str, int]) -> list[str]:
    """Return the names of the images in the spelling that most matches a catalogue.

    Args:
        layout: the images.
        places: row of each name in the catalogue.

    Raises:
        ValueError: two images share a name that is in the catalogue.
    """
    written = ways_to_name(layout)
    keys = max(written, key=lambda keys: sum(key in places for key in keys))
    twice = [key for key, count in Counter(keys).items() if count > 1 and key in places]
    if twice:
        raise ValueError(
            f"{layout.source}: several images have the name {few(twice)}, but the catalogue has only one line "
            "for it; rename the images."
        )
    return keys
