"""Layouts of files from other programs and surveys. Each is a function that lists the samples of a folder or file, and
how to load one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deeplense.choices import require_choice
from deeplense.data import file_layouts
from deeplense.data.archives import AXES, Axes, band_names, channels_first, text_columns
from deeplense.data.catalogues import NAME_COLUMNS, first_known
from deeplense.data.conditions import is_missing
from deeplense.data.facts import with_facts
from deeplense.data.folders import (
    LENSES,
    SPLITS,
    SYNONYMS,
    class_records,
    listed_names,
    meaning,
)
from deeplense.data.foreign import read_npy, read_npz, read_pickle
from deeplense.data.image_files import Reading
from deeplense.data.records import UNLABELLED, Layout, Loaded, Record, few, number_kind

SUBSTRUCTURE = tuple(SYNONYMS)
INDEX = "indices.pkl"


def deeplense(source: Path) -> Layout:
    """Return the layout `{axion,cdm,no_sub}/*.npy` of DeepLenseSim: 2-D images; axion files are pickled [image, mass in
    eV]."""
    records, notes = class_records(source, SYNONYMS)
    targets = {"log10_axion_mass": "log10(eV)"}
    return Layout(source, records, load_deeplense, SUBSTRUCTURE, bands=("intensity",), targets=targets, notes=notes)


def load_deeplense(record: Record) -> Loaded:
    """Return an image (1, H, W) and the log10 of its axion mass (NaN without one)."""
    array = read_npy(record.path)
    if array.dtype != object:
        return Loaded(one_band(record.path, array), {"log10_axion_mass": np.nan})
    if array.shape != (2,):
        raise ValueError(
            f"{record.path}: {array.shape} objects instead of [image, axion mass]; correct or remove the file."
        )
    try:
        image = np.asarray(array[0])
        image = image.astype(np.float64) if image.dtype == object or number_kind(image.dtype) else image
        mass = float(array[1])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{record.path}: not [image, axion mass] ({error}); correct or remove the file.") from error
    if not (mass > 0 and np.isfinite(mass)):
        raise ValueError(f"{record.path}: the axion mass is {mass} eV; it must be above 0 and finite.")
    return Loaded(one_band(record.path, image), {"log10_axion_mass": float(np.log10(mass))})


def gsoc(source: Path) -> Layout:
    """Return the layout `{train,val}/{no,sphere,vort}/*.npy` of the tests of ML4SCI, images (1, H, W)
    between 0 and 1."""
    records, notes = class_records(source, SYNONYMS)
    return Layout(source, records, load_gsoc, SUBSTRUCTURE, bands=("intensity",), notes=notes)


def load_gsoc(record: Record) -> Loaded:
    """Return an image (1, H, W)."""
    return Loaded(one_band(record.path, read_npy(record.path)), {})


def one_band(path: Path, array: np.ndarray) -> np.ndarray:
    """Return an image (H, W) or (1, H, W) as (1, H, W).

    Args:
        path: file of the image, for messages.
        array: the image.

    Raises:
        ValueError: the array is something else.

    Example:
        >>> one_band(Path("a.npy"), np.zeros((8, 8))).shape
        (1, 8, 8)
    """
    image = array[None] if array.ndim == 2 else array
    if image.ndim != 3 or image.shape[0] != 1 or image.dtype.kind not in "fiu" or image.size == 0:
        raise ValueError(f"{path}: {array.dtype} of shape {array.shape}; one image (H, W) of real numbers is expected.")
    return image


def lens_finding(source: Path) -> Layout:
    """Return the layout `{lenses,nonlenses}/*.npy`, (3, H, W) in g, r, i, of any size; an optional `indices.pkl` lists
    the files of each split."""
    pickles = [path.name for path in source.glob("*.pkl")]
    records, notes = class_records(source, LENSES, also=pickles)
    if INDEX in pickles:
        records, left = by_index(source / INDEX, records)
        notes += left
    notes += (
        [f"ignored, not an index of splits: {few(sorted(set(pickles) - {INDEX}))}"] if set(pickles) - {INDEX} else []
    )
    return Layout(source, records, load_three_bands, tuple(LENSES), bands=("g", "r", "i"), notes=notes)


def by_index(path: Path, records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records that an index file lists, with its splits, and a note on the others.

    Args:
        path: index file.
        records: records of all files.

    Raises:
        ValueError: it lists missing files, or there are split folders already.
    """
    if any(record.split for record in records):
        raise ValueError(f"{path} and folders both define the splits; remove one of the two.")
    known = {f"{record.path.parent.name}/{record.path.name}": record for record in records}
    splits = read_splits(path, known)
    rest = [name for name in known if name not in splits]
    chosen = [Record(known[name].path, known[name].name, known[name].label, split) for name, split in splits.items()]
    return chosen, [f"ignored, not listed in {INDEX}: {few(rest)}"] if rest else []


def read_splits(path: Path, files: Mapping[str, Record]) -> dict[str, str]:
    """Return the split of each file in `indices.pkl`: {split: {lenses: [...], nonlenses: [...]}}.

    Args:
        path: index file.
        files: record of each file by folder and name.

    Raises:
        ValueError: the file has another form, or lists missing files or one file in two splits.
    """
    content = read_pickle(path)
    try:
        named = [(name, str(split)) for split, folders in content.items() for name in files_in(folders)]
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}: not {{split: {{lenses: names, nonlenses: names}}}} ({error}); correct or remove the file."
        ) from error
    splits: dict[str, str] = {}
    for name, written in named:
        if name not in files:
            raise ValueError(f"{path}: lists {name}, which does not exist. Add the file, or remove the index file.")
        split = meaning(written, SPLITS)
        if split is None:
            raise ValueError(f"{path}: unknown split {written!r}; known splits are {listed_names(SPLITS)}.")
        if splits.setdefault(name, split) != split:
            raise ValueError(
                f"{path}: {name} is in two splits, so test images would be trained on; keep it in one split."
            )
    return splits


def files_in(folders: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the files in {lenses: names, nonlenses: names}, with their folders.

    Example:
        >>> files_in({"lenses": ["a.npy"], "nonlenses": ["b.npy"]})
        ['lenses/a.npy', 'nonlenses/b.npy']
    """
    return [f"{folder}/{name}" for folder, names in folders.items() for name in names]


def read_names(path: Path) -> list[str]:
    """Return the unique sample names in a file: one per line, or, in a pickle, {lenses: names, nonlenses: names} as
    DeepLense_SSL publishes its subsets of labels. Raises ValueError if it has another form, or no names."""
    try:
        files = files_in(read_pickle(path)) if path.suffix == ".pkl" else path.read_text().split("\n")
    except (AttributeError, TypeError, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: neither one name per line nor a pickle of {{lenses: names, nonlenses: names}} ({error})."
        ) from error
    names = dict.fromkeys(name.strip().removesuffix(".npy") for name in files if name.strip())
    if not names:
        raise ValueError(f"{path}: contains no names; add them, or remove the file.")
    return list(names)


def load_three_bands(record: Record) -> Loaded:
    """Return an image (3, H, W)."""
    image = read_npy(record.path)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype.kind not in "fiu" or image.size == 0:
        raise ValueError(f"{record.path}: {image.dtype} of shape {image.shape}; real numbers (3, H, W) are expected.")
    return Loaded(image, {})


def files(source: Path, *, axes: Axes = "auto", bands: Sequence[str] = ()) -> Layout:
    """Return the layout of images in one folder, (H, W), (C, H, W) or (H, W, C), without classes; a catalogue may
    describe them.

    Args:
        source: the folder.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        bands: names of the bands; empty for those of the files.

    Raises:
        ValueError: there are no images, or an image has another form.
    """
    require_choice("axes", axes, AXES)
    return with_facts(file_layouts.files(source, Reading(axes=axes, bands=bands)), bands=bands)


def npz(
    source: Path, *, image_key: str = "images", name_key: str = "", axes: Axes = "auto", bands: Sequence[str] = ()
) -> Layout:
    """Return the layout of one file with an array of images, (N, C, H, W), (N, H, W, C) or (N, H, W), and columns
    beside them.

    Args:
        source: the .npz file.
        image_key: name of the array of images.
        name_key: name of the array of image names; "" for the first with a usual name.
        axes: `NCHW`, `NHWC`, or `auto` to decide by the shape.
        bands: names of the bands; empty to number them.

    Raises:
        ValueError: an array is missing, or has another form.
    """
    require_choice("axes", axes, AXES)
    arrays = read_npz(source)
    if image_key not in arrays:
        raise ValueError(f"{source}: no array {image_key!r}; the arrays are {sorted(arrays)}. Give --image_key ARRAY.")
    images, note = channels_first(source, arrays.pop(image_key), axes)
    columns, unfit = text_columns(source, arrays, len(images))
    names, notes = image_names(source, columns, len(images), name_key)
    records = [Record(source, name, UNLABELLED, "", row) for row, name in enumerate(names)]
    return Layout(
        source,
        records,
        lambda record: Loaded(images[record.row], {}),
        (),
        band_names(source, images.shape[1], bands),
        columns=columns,
        unfit=unfit,
        notes=[note, *notes],
        named=not notes,
    )


def image_names(
    source: Path, columns: Mapping[str, np.ndarray], count: int, name_key: str
) -> tuple[list[str], list[str]]:
    """Return the names of the images of an archive; or, with a note why, names made from their places.

    Args:
        source: the archive.
        columns: texts (N,) by array.
        count: N.
        name_key: name of the array of image names; "" for the first with a usual name.

    Raises:
        ValueError: there is no such array, or its names are not unique.
    """
    made = [f"{source.stem}-{row:06d}" for row in range(count)]
    key = name_key or first_known(list(columns), NAME_COLUMNS)
    if key not in columns:
        if name_key:
            raise ValueError(
                f"{source}: no array {name_key!r} with one name per image; the arrays are {sorted(columns)}."
            )
        return made, ["images are named by their index: the archive has no array of names"]
    names = columns[key].tolist()
    if len(set(names)) == count and not is_missing(columns[key]).any():
        return names, []
    if name_key:
        raise ValueError(
            f"{source}: {name_key!r} does not have one name per image, or some names are missing; complete it."
        )
    return made, [f"images are named by their index: the names in {key!r} are not unique, or some are missing"]
