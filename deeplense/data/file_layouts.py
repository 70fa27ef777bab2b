"""Layouts of images in files: a folder for each class, one folder, files that a table names, a file for each band."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deeplense.data.catalogues import NAME_COLUMNS, Catalogue, first_known
from deeplense.data.conditions import is_missing
from deeplense.data.folders import Leftovers, entries, images_in, no_images, notes_on, split_folders, visible
from deeplense.data.image_files import SUFFIXES, Reading, load_image, stem_of, suffix_of
from deeplense.data.records import UNLABELLED, Layout, Record, few

FILE_COLUMNS = ("file", "filename", "file_name", "path", "file_path", "image", "image_file", "image_path", "location")
"""Usual names of columns with files, the most likely first."""
WHOLE = re.compile(r"^(\d+)\.0*$", re.ASCII)
"""Whole numbers that are written as 3.0."""
ID, BAND = "{id}", "{band}"


def files(source: Path, reading: Reading, *, pattern: str = "", beside: Sequence[Path | None] = ()) -> Layout:
    """Return the layout of images in one folder, below `train`, `val` and `test`, or of one file, without classes; a
    catalogue may describe them.

    Args:
        source: the folder or file.
        reading: how files are read.
        pattern: names of the files of one band; "" if each file has all bands.
        beside: tables that may lie among the images.

    Raises:
        ValueError: there are no images.
    """
    leftovers: Leftovers = {}
    asked = reading
    if source.is_file():
        records = [Record(source, stem_of(source.name), UNLABELLED, "")]
    elif pattern:
        records, reading, left = by_pattern(source, source, pattern, reading)
        leftovers |= left
    else:
        found = [
            (path, split)
            for split, root in split_folders(source, leftovers).items()
            for path in images_in(root, leftovers, SUFFIXES)
        ]
        tables = {path.resolve() for path in beside if path is not None}
        leftovers |= {path: "a table" for path, _ in found if tables and path.resolve() in tables}
        records = [
            Record(path, stem_of(path.name), UNLABELLED, split) for path, split in found if path not in leftovers
        ]
    if not records:
        raise ValueError(f"{source} contains no .npy files or other images; give a folder of images.")
    notes = notes_on(source, leftovers) if source.is_dir() else []
    return layout_of(source, records, reading, notes=[*notes, *order_note(pattern, asked, reading)])


def order_note(pattern: str, asked: Reading, reading: Reading) -> list[str]:
    """Return a note on the order of the bands if only the names of the files say them.

    Args:
        pattern: names of the files of one band; "" if each file has all bands.
        asked: how files are read, as the user asks.
        reading: the same, with the bands.
    """
    if not pattern or asked.bands:
        return []
    return [f"the bands are in alphabetical order, {', '.join(reading.bands)}; --bands gives another"]


def layout_of(
    source: Path,
    records: Sequence[Record],
    reading: Reading,
    *,
    classes: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> Layout:
    """Return the layout of images in files.

    Args:
        source: folder or file of the data set.
        records: a record per image.
        reading: how files are read.
        classes: names of the classes.
        notes: notes for the user.
    """
    return Layout(source, records, lambda record: load_image(record, reading), classes, (), notes=notes)


def folders(source: Path, reading: Reading, *, pattern: str = "") -> Layout:
    """Return the layout `{class}/*` or `{split}/{class}/*`, with any names of the classes; case makes no difference.

    Args:
        source: the folder.
        reading: how files are read.
        pattern: names of the files of one band within the folder of a class; "" if each file has all bands.

    Raises:
        ValueError: there are no images, a class has none, or the content is not understood.
    """
    leftovers: Leftovers = {}
    asked = reading
    names: dict[str, str] = {}
    found: list[tuple[Path, str, str]] = []
    for split, root in split_folders(source, leftovers).items():
        found += [(folder, split, class_called(folder, names)) for folder in folders_of_classes(root, leftovers)]
    refuse_twins(found)
    classes = tuple(sorted(names.values(), key=str.casefold))
    records: list[Record] = []
    empty: dict[Path, str] = {}
    for folder, split, name in found:
        images, reading = images_of(folder, reading, pattern, leftovers)
        label = classes.index(name)
        records += [replace(each, name=f"{folder.name}/{each.name}", label=label, split=split) for each in images]
        empty |= {} if images else {folder: name}
    if not records:
        raise ValueError(
            f"{source} contains no .npy files or other images in folders named by class; make a folder for each class."
        )
    there = {record.label for record in records}
    for folder, name in empty.items():
        if classes.index(name) not in there:
            raise ValueError(f"{folder}, the folder of the class {name}, has no image. Add images, or remove it.")
    leftovers |= dict.fromkeys(empty, "an empty folder")
    notes = [*notes_on(source, leftovers), *order_note(pattern, asked, reading)]
    return layout_of(source, records, reading, classes=classes, notes=notes)


def images_of(folder: Path, reading: Reading, pattern: str, leftovers: Leftovers) -> tuple[list[Record], Reading]:
    """Return the images of a class, and how they are read, with the names of the bands if the files have them.

    Args:
        folder: folder of the class.
        reading: how files are read.
        pattern: names of the files of one band; "" if each file has all bands.
        leftovers: reason by ignored path, extended in place.
    """
    if pattern and any(folder.iterdir()):
        records, reading, left = by_pattern(folder, folder, pattern, reading)
        leftovers |= left
        return records, reading
    paths = images_in(folder, leftovers, SUFFIXES)
    return [Record(path, stem_of(path.name), UNLABELLED, "") for path in paths], reading


def folders_of_classes(root: Path, leftovers: Leftovers) -> list[Path]:
    """Return the folders in a folder; files beside them that may be images are refused.

    Args:
        root: folder of the data set, or of a split.
        leftovers: reason by ignored path, extended in place.
    """
    content = entries(root)
    hidden = [path for path in content if path.name.startswith(".") or not path.is_dir()]
    found = [path for path in content if path not in hidden and path.name.lower() != "__macosx"]
    no_images(root, list(visible([path for path in content if path not in found], leftovers)))
    return found


def class_called(folder: Path, names: dict[str, str]) -> str:
    """Return the class of a folder, as it is written first.

    Args:
        folder: folder of the class.
        names: name of each class by its name in lower case, extended in place.
    """
    return names.setdefault(folder.name.casefold(), folder.name)


def refuse_twins(found: Sequence[tuple[Path, str, str]]) -> None:
    """Raise an error if two folders of a split are of one class.

    Args:
        found: folder, split and class.

    Raises:
        ValueError: there are such folders; the message names them.
    """
    first: dict[tuple[str, str], Path] = {}
    for folder, split, name in found:
        other = first.setdefault((split, name), folder)
        if other != folder:
            raise ValueError(f"{other} and {folder} differ in upper and lower case only; rename or merge them.")


def by_pattern(source: Path, folder: Path, pattern: str, reading: Reading) -> tuple[list[Record], Reading, Leftovers]:
    """Return a record for each object whose bands are in files of their own, and how they are read.

    Args:
        source: folder of the data set, for messages.
        folder: folder with the files.
        pattern: relative path of a file, with `{id}` and `{band}`.
        reading: how files are read; its bands, if any, are those of the files, in order.

    Returns:
        The records, how they are read, and what was ignored.

    Raises:
        ValueError: a band of an object is missing, or a file does not fit the pattern; the message names it.
    """
    entries(folder)
    expression, found, leftovers = matcher(pattern, reading.bands), {}, {}
    strange: list[Path] = []
    generic = matcher(pattern, ())
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        fits = expression.fullmatch(name)
        if fits:
            bands = found.setdefault(fits["id"], {})
            if fits["band"] in bands:
                raise ValueError(f"{bands[fits['band']]} and {path} are the same band of {fits['id']}; remove one.")
            bands[fits["band"]] = path
        elif generic.fullmatch(name) and reading.bands:
            leftovers[path] = f"of another band than {', '.join(reading.bands)}"
        else:
            strange.append(path)
    if rest := list(visible(strange, leftovers)):
        told = few(str(path.relative_to(folder)) for path in rest)
        raise ValueError(
            f"{folder}: {told} does not fit --pattern {pattern}; move it elsewhere, or correct the pattern."
        )
    names = list(reading.bands) or sorted({band for bands in found.values() for band in bands})
    records = [complete(name, bands, names) for name, bands in found.items()]
    return records, replace(reading, bands=tuple(names)), leftovers


def complete(name: str, files: Mapping[str, Path], bands: Sequence[str]) -> Record:
    """Return the record of an object.

    Args:
        name: its name.
        files: its file of each band.
        bands: all bands, in order.

    Raises:
        ValueError: a band is missing.
    """
    missing = [band for band in bands if band not in files]
    if missing:
        there = next(iter(files.values()))
        raise ValueError(
            f"{there.parent}: {name} has no file of the band {few(missing)}; it has {', '.join(files)}. Add the file, "
            "name the bands that all objects have with --bands, or move its other files elsewhere."
        )
    first, *more = (files[band] for band in bands)
    return Record(first, name, UNLABELLED, "", more=tuple(more))


def matcher(pattern: str, bands: Sequence[str]) -> re.Pattern[str]:
    """Return the regular expression of a pattern; case makes no difference outside names and bands.

    Args:
        pattern: with `{id}` and `{band}`.
        bands: names of the bands; empty for any.

    Raises:
        ValueError: the pattern lacks one of them.

    Example:
        >>> matcher("{id}_{band}.fits", ["g"]).fullmatch("lens_1_g.FITS")["id"]
        'lens_1'
    """
    if pattern.count(BAND) != 1 or ID not in pattern:
        raise ValueError(f"pattern={pattern!r} must contain {ID} and one {BAND}, such as {{id}}_{{band}}.fits.")
    any_band = "|".join(sorted(map(re.escape, bands), key=len, reverse=True)) or "[^/_.]+"
    pieces = re.split(r"(\{id\}|\{band\})", pattern)
    written, seen = "", False
    for piece in pieces:
        if piece == ID:
            written, seen = written + ("(?P=id)" if seen else "(?P<id>.+)"), True
        else:
            written += f"(?P<band>{any_band})" if piece == BAND else f"(?i:{re.escape(piece)})"
    return re.compile(written)


def by_catalogue(
    catalogue: Catalogue,
    folder: Path,
    reading: Reading,
    *,
    file_column: str = "",
    hdu_column: str = "",
    name_column: str = "",
    leave_out: bool = False,
) -> Layout:
    """Return the layout of files that a table names.

    Args:
        catalogue: the table.
        folder: folder of the files; paths that are not absolute begin there and must not leave it.
        reading: how files are read.
        file_column: column of the files; "" for the most likely one.
        hdu_column: column of the extension of a FITS file; "" for none.
        name_column: column of the names of the images; "" for the most likely one.
        leave_out: whether to leave out lines whose file does not exist; otherwise they are an error.

    Raises:
        ValueError: a column or a file is missing, or a path leaves the folder; the message names the line.
    """
    column = file_column or first_known(list(catalogue.columns), FILE_COLUMNS)
    if not column:
        raise ValueError(
            f"{catalogue.path} has no column of files; its columns are {sorted(catalogue.columns)}. Give --file_column."
        )
    paths = [path_of(catalogue, row, cell, folder) for row, cell in enumerate(catalogue.column(column).tolist())]
    there = existing(catalogue, paths, leave_out=leave_out)
    catalogue, paths = catalogue.only(there), [path for path, kept in zip(paths, there.tolist(), strict=True) if kept]
    cells = catalogue.column(column).tolist()
    hdus = [WHOLE.sub(r"\1", cell) for cell in catalogue.column(hdu_column)] if hdu_column else [""] * len(cells)
    names, notes = names_of(catalogue, cells, hdus, name_column, file_column=column)
    notes += [] if there.all() else [f"ignored: {(~there).sum()} lines whose files do not exist"]
    every = zip(paths, names, hdus, strict=True)
    records = [Record(path, name, UNLABELLED, "", row, hdu=hdu) for row, (path, name, hdu) in enumerate(every)]
    layout = layout_of(folder, records, reading, notes=notes)
    return replace(
        layout, columns=catalogue.columns, units=catalogue.units, catalog=catalogue.path, unfit=catalogue.unfit
    )


def existing(catalogue: Catalogue, paths: Sequence[Path], *, leave_out: bool) -> np.ndarray:
    """Return for which lines the file exists, (N,) bool.

    Args:
        catalogue: the table, N lines.
        paths: the file of each line.
        leave_out: whether lines without a file are left out; otherwise they are an error.

    Raises:
        ValueError: a file is missing, or all are; the message names the first.
    """
    there = np.array([path.is_file() for path in paths], dtype=bool)
    if there.all() or (leave_out and there.any()):
        return there
    lost = int(np.argmin(there))
    raise ValueError(
        f"{catalogue.path}: {catalogue.called(lost)} names {paths[lost]}, which does not exist; {(~there).sum()} of "
        f"{len(there)} files are missing; give --source FOLDER, the folder of the files, or --unmatched leave_out to "
        "ignore such lines."
    )


def path_of(catalogue: Catalogue, row: int, cell: str, folder: Path) -> Path:
    """Return the file of a line.

    Args:
        catalogue: the table.
        row: row of the line.
        cell: its cell with the file.
        folder: folder of the files.

    Raises:
        ValueError: the cell is empty or no image, or the path leaves the folder.
    """
    told = f"{catalogue.path}: {catalogue.called(row)}"
    if cell in ("", ".") or not cell.isprintable() or is_missing(np.array([cell], dtype=object))[0]:
        raise ValueError(f"{told} names no file; add it, or exclude the line.")
    path = Path(cell) if Path(cell).is_absolute() else folder / cell
    if not Path(cell).is_absolute() and ".." in Path(cell).parts:
        raise ValueError(
            f"{told} names {cell}, which leaves {folder}; give --source FOLDER, the folder that contains all files, "
            "and paths within it."
        )
    if not suffix_of(path.name):
        raise ValueError(
            f"{told} names {cell}, which is not an image; known endings are {', '.join(sorted(SUFFIXES))}."
        )
    return path


def names_of(
    catalogue: Catalogue, cells: Sequence[str], hdus: Sequence[str], name_column: str, *, file_column: str
) -> tuple[list[str], list[str]]:
    """Return the names of the images, and a note on where they come from.

    Args:
        catalogue: the table.
        cells: files as the table names them.
        hdus: extension of each image; "" for none.
        name_column: column of the names; "" for the most likely one.
        file_column: column of the files.

    Raises:
        ValueError: two lines have the same name.
    """
    likely = [name for name in catalogue.columns if first_known([name], NAME_COLUMNS) and name != file_column]
    column = name_column or first_known(likely, NAME_COLUMNS)
    if column:
        names = catalogue.column(column).tolist()
        if len(set(names)) == len(names) and not is_missing(catalogue.column(column)).any():
            return names, [f"images are named by the column {column!r}"]
        if name_column:
            raise ValueError(f"{catalogue.path}: the column {column!r} has no name of its own for each image.")
    names = [f"{stem_of(cell)}-{hdu}" if hdu else stem_of(cell) for cell, hdu in zip(cells, hdus, strict=True)]
    return names, [f"images are named by the column {file_column!r}"]
