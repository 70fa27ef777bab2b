"""Layout of Parquet files with a column of images: arrays of bands with their names and pixel scales, as Multimodal
Universe stores them, encoded pictures, as Hugging Face stores them, or nested lists of numbers."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.archives import AXES, Axes, band_axis
from deeplense.data.folders import SPLITS, meaning, notes_on, visible
from deeplense.data.foreign import one_line, require_package
from deeplense.data.image_files import same_scale
from deeplense.data.layouts import image_names
from deeplense.data.pictures import read_picture
from deeplense.data.records import UNLABELLED, Facts, Layout, Loaded, Record, few
from deeplense.data.room import available_memory, control_group_rooms
from deeplense.data.tables import PARQUET, arrow_columns, scalar_names

IMAGE_KEYS = ("images", "image", "img", "cutout", "stamp", "picture", "rgb_image")
PIXELS = ("flux", "array", "data", "pixels")
"""Usual names of the pixels within a struct."""


def parquet(
    source: Path, *, image_key: str = IMAGE_KEYS[0], name_key: str = "", axes: Axes = "auto", bands: Sequence[str] = ()
) -> Layout:
    """Return the layout of one Parquet file, or of a folder of them; the images are held in memory as they are stored.

    Files below `train`, `val` and `test`, or whose names begin so, are splits.

    Args:
        source: file or folder.
        image_key: column of the images; if there is no `images`, the most likely one.
        name_key: column of image names; "" for the first with a usual name.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        bands: names of the bands; those of the files if they name them, in this order.

    Raises:
        ValueError: a file is unreadable, or has no such column; the message names it.
    """
    require_choice("axes", axes, AXES)
    require_package("pyarrow", "pyarrow", "Parquet files")
    leftovers: dict[Path, str] = {}
    paths = [source] if source.is_file() else parquet_files(source, leftovers)
    refuse_large(source, paths)
    tables = [read_file(path) for path in paths]
    key = image_column(paths[0], tables[0], image_key)
    columns = joined([columns_of(path, table, key) for path, table in zip(paths, tables, strict=True)])
    images = [table.column(key) for table in tables]
    counts = [len(table) for table in tables]
    names, notes = image_names(source, columns, sum(counts), name_key)
    places = [
        (path, split_of(path, source), row) for path, count in zip(paths, counts, strict=True) for row in range(count)
    ]
    records = [
        Record(path, name, UNLABELLED, split, row) for (path, split, row), name in zip(places, names, strict=True)
    ]
    load = partial(load_row, dict(zip(paths, images, strict=True)), axes, tuple(bands))
    notes = [f"images are in the column {key!r}", *notes, *(notes_on(source, leftovers) if source.is_dir() else [])]
    unfit = {name: () for name in tables[0].schema.names if name not in columns and name != key}
    return Layout(source, records, load, (), (), columns=columns, unfit=unfit, notes=notes, named=not made(notes))


def made(notes: Sequence[str]) -> bool:
    """Whether the names of the images are made from their places."""
    return any("named by their index" in note for note in notes)


def parquet_files(source: Path, leftovers: dict[Path, str]) -> list[Path]:
    """Return the Parquet files in a folder and its folders.

    Args:
        source: the folder.
        leftovers: reason by ignored path, extended in place.

    Raises:
        ValueError: there are none, or other files that may hold images.
    """
    every = sorted(path for path in source.rglob("*") if path.is_file())
    found = [path for path in every if path.name.lower().endswith(PARQUET)]
    strange = list(visible([path for path in every if path not in found], leftovers))
    if strange or not found:
        told = few(str(path.relative_to(source)) for path in strange)
        raise ValueError(f"{source} must contain Parquet files only; it has {told or 'none'}.")
    return found


def split_of(path: Path, source: Path) -> str:
    """Return the split of a file, by its folder or the beginning of its name; "" for none.

    Args:
        path: the file.
        source: file or folder of the data set.

    Example:
        >>> split_of(Path("data/train-00000-of-00002.parquet"), Path("data"))
        'train'
    """
    if path == source:
        return ""
    words = [*path.relative_to(source).parts[:-1], path.name.split("-")[0].split(".")[0]]
    return next((split for word in words if (split := meaning(word, SPLITS))), "")


def refuse_large(source: Path, paths: Sequence[Path]) -> None:
    """Raise ValueError, naming the source, if the files do not fit into the free memory."""
    needed, free = sum(path.stat().st_size for path in paths), min([available_memory(), *control_group_rooms()])
    if needed > free / 2:
        raise ValueError(
            f"{source}: {needed / 1e9:.1f} GB of Parquet files do not fit into the free memory ({free / 1e9:.1f} GB) "
            "twice; pack some files at a time."
        )


def read_file(path: Path) -> Any:
    """Return the table of a Parquet file. Raises ValueError, naming it, if it is unreadable or has no rows."""
    import pyarrow.parquet as reader

    try:
        with reader.ParquetFile(path) as file:
            table = file.read()
    except Exception as error:  # a torn file may raise anything
        raise ValueError(f"{path}: not a readable Parquet file ({one_line(error)}).") from error
    if not len(table):
        raise ValueError(f"{path}: the table has no rows; remove the file.")
    return table


def image_column(path: Path, table: Any, key: str) -> str:
    """Return the name of the column with the images.

    Args:
        path: the file, for messages.
        table: its table.
        key: name that the user gives, or the default, `images`.

    Raises:
        ValueError: there is no such column.
    """
    names = table.schema.names
    if key not in names and key == IMAGE_KEYS[0]:
        key = next((name for usual in IMAGE_KEYS for name in names if name.lower() == usual), key)
    if key not in names or key in scalar_names(table.schema):
        what = "does not hold images" if key in names else "does not exist"
        raise ValueError(f"{path}: the column {key!r} {what}; the columns are {names}. Give --image_key COLUMN.")
    return key


def columns_of(path: Path, table: Any, key: str) -> dict[str, np.ndarray]:
    """Return the columns with one value per image as texts (N,); labels that Hugging Face numbers get their names.

    Args:
        path: the file, for messages.
        table: its table.
        key: column of the images.
    """
    names = [name for name in scalar_names(table.schema) if name != key]
    try:
        columns = arrow_columns([table.column(name) for name in names], names)
    except Exception as error:
        raise ValueError(f"{path}: its columns cannot be read ({one_line(error)}).") from error
    for name, words in label_names(table.schema).items():
        if name in columns:
            columns[name] = np.array([words.get(cell, cell) for cell in columns[name].tolist()], dtype=object)
    return columns


def label_names(schema: Any) -> dict[str, dict[str, str]]:
    """Return the names of numbered labels that Hugging Face stores in a schema, by column and number."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        pairs = {name: feature["names"] for name, feature in features.items() if "names" in feature}
        return {name: {str(k): str(word) for k, word in enumerate(words)} for name, words in pairs.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the columns that all files have, one after the other.

    Args:
        parts: columns of each file.
    """
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def load_row(images: Mapping[Path, Any], axes: Axes, bands: tuple[str, ...], record: Record) -> Loaded:
    """Return an image (C, H, W).

    Args:
        images: column of the images of each file.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        bands: names of the bands; empty for those of the file.
        record: record of the image.

    Raises:
        ValueError: the cell holds something else; the message names file and row.
    """
    require_choice("axes", axes, AXES)
    told = Path(f"{record.path}: row {record.row}")
    try:
        cell = images[record.path].slice(record.row, 1).combine_chunks()
        return from_cell(told, cell, axes, bands)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(told)) else f"{told}: {error}.") from error
    except Exception as error:  # arrow raises errors of its own
        raise ValueError(f"{told}: the image cannot be read ({one_line(error)}).") from error


def from_cell(told: Path, cell: Any, axes: Axes, bands: tuple[str, ...]) -> Loaded:
    """Return the image of one cell.

    Args:
        told: file and row, for messages.
        cell: column of Arrow with this cell only.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        bands: names of the bands; empty for those of the file.
    """
    require_choice("axes", axes, AXES)
    import pyarrow as arrow
    import pyarrow.types as types

    if isinstance(cell, arrow.ChunkedArray):
        cell = arrow.concat_arrays(cell.chunks)
    if isinstance(cell, arrow.ExtensionArray):
        cell = cell.storage
    if cell.null_count:
        raise ValueError("it has no image")
    if types.is_binary(cell.type) or types.is_large_binary(cell.type):
        return picture(told, cell[0].as_py())
    if is_list(cell.type) and types.is_struct(cell.type.value_type):
        return from_bands(told, field_lists(cell), bands)
    if not types.is_struct(cell.type):
        return Loaded(as_image(told, nested(cell)[0], axes), {})
    fields = {field.name: cell.field(field.name) for field in cell.type}
    if "bytes" in fields:
        content = fields["bytes"][0].as_py()
        if content is None:
            raise ValueError("it names a file instead of holding the picture; embed the pictures in the table")
        return picture(told, content)
    return from_bands(told, {name: part for name, part in fields.items()}, bands)


def is_list(kind: Any) -> bool:
    """Whether a type of Arrow is a list."""
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def field_lists(cell: Any) -> dict[str, Any]:
    """Return a list of structs, one for each band, as one list for each field.

    Args:
        cell: column of Arrow with this cell only.
    """
    import pyarrow as arrow

    rows = cell.flatten()
    return {
        field.name: arrow.ListArray.from_arrays(arrow.array([0, len(rows)], arrow.int32()), rows.field(field.name))
        for field in rows.type
    }


def from_bands(told: Path, fields: Mapping[str, Any], bands: tuple[str, ...]) -> Loaded:
    """Return an image from a struct of lists: pixels, names and pixel scales of its bands.

    Args:
        told: file and row, for messages.
        fields: columns of Arrow with this cell only, by name.
        bands: names of the bands, in order; empty for those of the file.

    Raises:
        ValueError: there are no pixels, a band is missing, or their pixels differ.
    """
    key = next((name for name in PIXELS if name in fields), None)
    if key is None:
        raise ValueError(f"its image has the parts {', '.join(fields)}, of which none is {' or '.join(PIXELS)}")
    pixels = nested(fields[key])[0]
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    names = tuple(map(str, fields["band"][0].as_py() or ())) if "band" in fields else ()
    scales = [value for name in ("scale", "pixel_scale") if name in fields for value in listed(fields[name][0].as_py())]
    if any(not same_scale(scales[0], scale) for scale in scales[1:]):
        raise ValueError(f"its bands have pixels of {few(map(str, scales))} arcsec; rebin them first")
    if pixels.ndim != 3 or pixels.size == 0 or pixels.dtype.kind not in "biuf":
        raise ValueError(f"its image is {pixels.dtype} of shape {pixels.shape} instead of (C, H, W)")
    if names and len(names) != len(pixels):
        raise ValueError(f"it has {len(pixels)} bands, but names {len(names)}")
    if names and bands:
        lacking = [band for band in bands if band not in names]
        if lacking:
            raise ValueError(f"it has no band {few(lacking)}; its bands are {', '.join(names)}")
        pixels, names = pixels[[names.index(band) for band in bands]], bands
    return Loaded(pixels, {}, Facts(names, "", scales[0] if scales else None))


def listed(value: Any) -> list[float]:
    """Return a value, or a list of them, as a list without missing ones."""
    values = value if isinstance(value, list) else [value]
    return [float(each) for each in values if each is not None]


def nested(cell: Any) -> np.ndarray:
    """Return nested lists of equal lengths as an array, (n, ...).

    Args:
        cell: column of Arrow with n cells.

    Raises:
        ValueError: lists differ in length, or hold no numbers.
    """
    import pyarrow as arrow
    import pyarrow.compute as compute

    shape = [len(cell)]
    while True:
        if isinstance(cell, arrow.ExtensionArray):
            cell = cell.storage
        if not is_list(cell.type):
            break
        lengths = compute.call_function("unique", [compute.call_function("list_value_length", [cell])])
        if cell.null_count or len(lengths) != 1:
            raise ValueError("the rows of its image differ in length, or some are missing")
        shape.append(lengths[0].as_py())
        cell = cell.flatten()
    values = cell.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"its image holds {cell.type} instead of numbers")
    return values.reshape(shape)


def as_image(told: Path, pixels: np.ndarray, axes: Axes) -> np.ndarray:
    """Return an array (H, W), (C, H, W) or (H, W, C) as (C, H, W).

    Args:
        told: file and row, for messages.
        pixels: the array.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.

    Raises:
        ValueError: it has another form.
    """
    require_choice("axes", axes, AXES)
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(f"its image has the shape {pixels.shape} instead of (H, W), (C, H, W) or (H, W, C)")
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, band_axis(told, pixels.shape, axes), 0)


def picture(told: Path, content: bytes) -> Loaded:
    """Return an encoded picture, PNG, JPEG or TIFF, or an array as .npy.

    Args:
        told: file and row, for messages.
        content: its bytes.
    """
    if content.startswith(b"\x93NUMPY"):
        return Loaded(as_image(told, np.load(io.BytesIO(content), allow_pickle=False), "auto"), {})
    pixels, bands = read_picture(told, content)
    return Loaded(pixels if pixels.ndim == 3 else pixels[None], {}, Facts(bands))
