"""Catalogues: CSV files with a line for each image, and which line belongs to which image."""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.conditions import is_missing
from deeplense.data.folders import IMAGE_SUFFIX, plain_name
from deeplense.data.records import Layout, Record, few

NAME_COLUMNS = ("name", "names", "id", "ids", "object_id", "objid", "image", "image_name", "file", "filename", "path")
"""How columns and arrays that name images are called, the likeliest first."""
PLACE_COLUMNS = ("index", "row", "number")
"""How columns that count images are called."""

Join = Literal["name", "order"]
JOINS = get_args(Join)


@dataclass(frozen=True)
class Catalogue:
    """The cells of a CSV file by column, texts (N,) without blanks around them, and the line of each row (N,)."""

    path: Path
    columns: Mapping[str, np.ndarray]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> np.ndarray:
        """A column. Raises ValueError, naming those there are, where it is not there."""
        if name not in self.columns:
            raise ValueError(f"{self.path}: has no column {name!r}; it has {sorted(self.columns)}.")
        return self.columns[name]


def read_catalogue(path: Path) -> Catalogue:
    """Read a CSV file with a header. Raises ValueError, naming the file and the line, where it is unreadable, or where
    a line has more or fewer cells than the header."""
    (_, first), *rows = read_rows(path) or [(0, [])]
    if not rows:
        raise ValueError(f"{path}: is a CSV file without lines.")
    header = checked_header(path, first)
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}: line {line} has {len(row)} cells where the header has {len(header)} columns. Mend the line; "
                "a comma within a cell needs quotes around the cell."
            )
    columns = {
        name: np.array([row[k].strip() for _, row in rows], dtype=object) for k, name in enumerate(header) if name
    }
    return Catalogue(path, columns, [line for line, _ in rows])


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, each with the number of its (last) line. Raises ValueError, naming
    file and line."""
    rows, line = [], 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                line = reader.line_num
                rows += [(line, row)] if row else []
    except csv.Error as error:
        raise ValueError(
            f"{path}: after line {line} is no readable CSV ({error}); most often a quote is not closed."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no readable CSV file in UTF-8 ({error}).") from error
    return rows


def checked_header(path: Path, header: Sequence[str]) -> list[str]:
    """The names of the columns. Raises ValueError where one is there twice, or where no commas separate them."""
    names = [name.strip() for name in header]
    if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
        raise ValueError(f"{path}: its columns are not separated by commas ({names[0][:60]!r}). Save it with commas.")
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path}: has several columns of the name {few(twice)}. Rename them; one would be lost.")
    return names


def first_known(names: Sequence[str], known: Sequence[str]) -> str:
    """The first of some known names that is there, however it is written; "" where none is."""
    written = {plain_name(name): name for name in reversed(names)}
    return next((written[plain_name(name)] for name in known if plain_name(name) in written), "")


def attach(
    layout: Layout, catalogue: Catalogue, *, join: Join = "name", name_column: str = "", leave_out: bool = False
) -> Layout:
    """The images of a layout with the cells of their lines of a catalogue.

    Args:
        layout: the images.
        catalogue: the lines.
        join: whether images and lines belong together by name, or line k and image k.
        name_column: the column that names images; by default the first that is called so.
        leave_out: leave out images without a line, and lines without an image; they are an error otherwise.

    Raises:
        ValueError: what belongs together cannot be told, or some have no counterpart.
    """
    require_choice("join", join, JOINS)
    if join == "order" or (not layout.named and not name_column):
        rows, notes = in_order(layout, catalogue, asked=join == "order")
    else:
        rows, notes = by_name(layout, catalogue, name_column, leave_out=leave_out)
    kept = rows >= 0
    own = {name: column[kept] for name, column in layout.columns.items()}
    cells = {name: column[rows[kept]] for name, column in catalogue.columns.items()}
    return replace(
        layout,
        records=[record for record, keep in zip(layout.records, kept.tolist(), strict=True) if keep],
        columns=own | cells,
        catalog=catalogue.path,
        notes=[*layout.notes, *notes],
    )


def in_order(layout: Layout, catalogue: Catalogue, *, asked: bool) -> tuple[np.ndarray, list[str]]:
    """The row of each image (N,) where they are in the same order. Raises ValueError where their numbers differ; and,
    unless it is asked for, where a column of names or places contradicts it."""
    path, count, images = catalogue.path, len(catalogue), len(layout.records)
    known = [name for name in catalogue.columns if first_known([name], (*NAME_COLUMNS, *PLACE_COLUMNS))]
    if not asked and known and not any(counts_up(catalogue.columns[name]) for name in known):
        raise ValueError(
            f"{path} names its lines ({few(known)}), but the images of {layout.source} have no names to find their "
            "lines by. Give --name_key ARRAY for an array of names in the archive, --name_column COLUMN for a column "
            "with the place of each image from 0 on, or --join order where line k belongs to image k."
        )
    if count != images:
        raise ValueError(f"{path}: has {count} labels for {images} images, one line for each is needed in this order.")
    why = "as asked for" if asked else "neither names images, or the lines are counted in this order"
    return np.arange(images), [f"line k of {path} was taken for image k, {why}"]


def counts_up(column: np.ndarray) -> bool:
    """Whether the cells of a column are 0, 1, 2, ... or 1, 2, 3, ..."""
    return any(column.tolist() == [str(k) for k in range(first, first + len(column))] for first in (0, 1))


def by_name(layout: Layout, catalogue: Catalogue, name_column: str, *, leave_out: bool) -> tuple[np.ndarray, list[str]]:
    """The row of each image (N,), -1 for none, found by name. Raises ValueError where a name is missing or there twice,
    and, unless they are left out, where images or lines have no counterpart."""
    column = name_column or likeliest(layout, catalogue)
    if not column:
        raise ValueError(
            f"{catalogue.path} has no column of names; it has {sorted(catalogue.columns)}. Give --name_column COLUMN, "
            f"or --join order where line k belongs to image k of {layout.source}."
        )
    cells = catalogue.column(column)
    places = unique_names(catalogue, column, [bare(name) for name in cells.tolist()])
    keys = best_keys(layout, places)
    rows = np.array([places.get(key, -1) for key in keys], dtype=np.int64)
    unused = sorted(set(range(len(cells))) - set(rows.tolist()))
    told = {
        "images have no line": [layout.told(int(k)) for k in np.flatnonzero(rows < 0)],
        "lines have no image": [f"line {catalogue.lines[k]} ({cells[k]})" for k in unused],
    }
    notes = [f"lines of {catalogue.path} were found by name, in the column {column!r}"]
    return rows, notes + counterparts(layout, catalogue, column, told, leave_out=leave_out)


def likeliest(layout: Layout, catalogue: Catalogue) -> str:
    """Of the columns that are called as if they named images, the one that names most of these; "" where there is
    none."""
    known = [name for name in catalogue.columns if first_known([name], NAME_COLUMNS)]
    ranked = sorted(known, key=lambda name: [plain_name(other) for other in NAME_COLUMNS].index(plain_name(name)))

    def matches(name: str) -> int:
        cells = set(map(bare, catalogue.columns[name].tolist()))
        return max(sum(key in cells for key in keys) for keys in ways_to_name(layout))

    return max(ranked, key=matches, default="")


def ways_to_name(layout: Layout) -> list[list[str]]:
    """The names of the images in each way that a catalogue may write them."""
    ways: list[Callable[[Record], str]] = [
        lambda record: record.name,
        lambda record: f"{record.split}/{record.name}",
        lambda record: record.name.rpartition("/")[2],
    ]
    if not layout.named:
        ways = [lambda record: str(record.row)]
    return [[bare(way(record)) for record in layout.records] for way in ways]


def counterparts(
    layout: Layout, catalogue: Catalogue, column: str, told: Mapping[str, Sequence[str]], *, leave_out: bool
) -> list[str]:
    """Notes on images and lines that are left out. Raises ValueError where there are some and that is not asked for,
    and where none is left."""
    wrong = [f"{len(names)} {what}: {few(names)}" for what, names in told.items() if names]
    none = len(told["images have no line"]) == len(layout.records)
    if none or (wrong and not leave_out):
        remedy = (
            "Give another --name_column, or --join order where line k belongs to image k."
            if none
            else "Complete them, or give --unmatched leave_out."
        )
        raise ValueError(
            f"{catalogue.path}: by the names in its column {column!r}, {'; '.join(wrong)}, of {len(layout.records)} "
            f"images of {layout.source}. {remedy}"
        )
    return [f"left out, {text}" for text in wrong]


def bare(name: str) -> str:
    """A name without blanks and without the ending of a file."""
    name = name.strip().removeprefix("./")
    return name[: -len(IMAGE_SUFFIX)] if name.lower().endswith(IMAGE_SUFFIX) else name


def unique_names(catalogue: Catalogue, column: str, names: Sequence[str]) -> dict[str, int]:
    """The row of each name. Raises ValueError, naming the lines, where one is missing or there twice."""
    places: dict[str, int] = {}
    missing = is_missing(np.array(names, dtype=object))
    for row, name in enumerate(names):
        if missing[row]:
            raise ValueError(f"{catalogue.path}: line {catalogue.lines[row]} has no name in its column {column!r}.")
        if name in places:
            lines = f"{catalogue.lines[places[name]]} and {catalogue.lines[row]}"
            raise ValueError(f"{catalogue.path}: lines {lines} have the same name {name!r} in the column {column!r}.")
        places[name] = row
    return places


def best_keys(layout: Layout, places: Mapping[str, int]) -> list[str]:
    """The names of the images, written as most of them are in a catalogue. Raises ValueError where two images have the
    same, which is in it."""
    written = ways_to_name(layout)
    keys = max(written, key=lambda keys: sum(key in places for key in keys))
    twice = [key for key, count in Counter(keys).items() if count > 1 and key in places]
    if twice:
        raise ValueError(f"{layout.source}: several images have the name {few(twice)}, which has one line only.")
    return keys
