"""The doors for foreign data: each layout is a function that lists the samples of a folder or file, and says how to
load one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deeplense.choices import require_choice
from deeplense.data.archives import AXES, Axes, band_axis, channels_first, text_columns
from deeplense.data.catalogues import NAME_COLUMNS, first_known
from deeplense.data.conditions import is_missing
from deeplense.data.folders import (
    LENSES,
    SPLITS,
    SYNONYMS,
    class_records,
    images_in,
    listed_names,
    meaning,
    notes_on,
)
from deeplense.data.foreign import read_npy, read_npz, read_pickle
from deeplense.data.records import UNLABELLED, Layout, Loaded, Record, few, number_kind

SUBSTRUCTURE = tuple(SYNONYMS)
INDEX = "indices.pkl"


def deeplense(source: Path) -> Layout:
    """`{axion,cdm,no_sub}/*.npy`, as DeepLenseSim writes it: 2-D images; axion files are pickled [image, mass in
    eV]."""
    records, notes = class_records(source, SYNONYMS)
    targets = {"log10_axion_mass": "log10(eV)"}
    return Layout(source, records, load_deeplense, SUBSTRUCTURE, bands=("intensity",), targets=targets, notes=notes)


def load_deeplense(record: Record) -> Loaded:
    """One image (1, H, W) and the logarithm of its axion mass (NaN where there is none)."""
    array = read_npy(record.path)
    if array.dtype != object:
        return one_band(record.path, array), {"log10_axion_mass": np.nan}
    if array.shape != (2,):
        raise ValueError(f"{record.path}: holds {array.shape} objects where [image, axion mass] is expected.")
    try:
        image = np.asarray(array[0])
        image = image.astype(np.float64) if image.dtype == object or number_kind(image.dtype) else image
        mass = float(array[1])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{record.path}: is not [image, axion mass] ({error}).") from error
    if not (mass > 0 and np.isfinite(mass)):
        raise ValueError(f"{record.path}: has the axion mass {mass} eV; it must be above 0 and finite.")
    return one_band(record.path, image), {"log10_axion_mass": float(np.log10(mass))}


def gsoc(source: Path) -> Layout:
    """`{train,val}/{no,sphere,vort}/*.npy`, images (1, H, W) between 0 and 1, as in the tests of ML4SCI."""
    records, notes = class_records(source, SYNONYMS)
    return Layout(source, records, load_gsoc, SUBSTRUCTURE, bands=("intensity",), notes=notes)


def load_gsoc(record: Record) -> Loaded:
    """One image (1, H, W)."""
    return one_band(record.path, read_npy(record.path)), {}


def one_band(path: Path, array: np.ndarray) -> np.ndarray:
    """An image (H, W) or (1, H, W) as (1, H, W). Raises ValueError for anything else."""
    image = array[None] if array.ndim == 2 else array
    if image.ndim != 3 or image.shape[0] != 1 or image.dtype.kind not in "fiu" or image.size == 0:
        raise ValueError(
            f"{path}: is {array.dtype} of shape {array.shape} where one image (H, W) of real numbers is expected."
        )
    return image


def lens_finding(source: Path) -> Layout:
    """`{lenses,nonlenses}/*.npy`, (3, H, W) in g, r, i, of any size; `indices.pkl` beside them, if any, names the
    files of each split."""
    pickles = [path.name for path in source.glob("*.pkl")]
    records, notes = class_records(source, LENSES, also=pickles)
    if INDEX in pickles:
        records, left = by_index(source / INDEX, records)
        notes += left
    notes += [f"left out, no index of splits: {few(sorted(set(pickles) - {INDEX}))}"] if set(pickles) - {INDEX} else []
    return Layout(source, records, load_three_bands, tuple(LENSES), bands=("g", "r", "i"), notes=notes)


def by_index(path: Path, records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records that an index file names, with its splits, and a note on the others. Raises ValueError where it names
    what is not there, or where folders make splits already."""
    if any(record.split for record in records):
        raise ValueError(f"{path} and folders both tell the splits; remove one of them.")
    known = {f"{record.path.parent.name}/{record.path.name}": record for record in records}
    splits = read_splits(path, known)
    rest = [name for name in known if name not in splits]
    chosen = [Record(known[name].path, known[name].name, known[name].label, split) for name, split in splits.items()]
    return chosen, [f"left out, not named by {INDEX}: {few(rest)}"] if rest else []


def read_splits(path: Path, files: Mapping[str, Record]) -> dict[str, str]:
    """The split of each file that `indices.pkl` names: {split: {lenses: [...], nonlenses: [...]}}."""
    content = read_pickle(path)
    try:
        named = [(name, str(split)) for split, folders in content.items() for name in files_in(folders)]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: is not {{split: {{lenses: names, nonlenses: names}}}} ({error}).") from error
    splits: dict[str, str] = {}
    for name, written in named:
        if name not in files:
            raise ValueError(
                f"{path}: names {name}, which is not there. Complete the folder, or remove the index file."
            )
        split = meaning(written, SPLITS)
        if split is None:
            raise ValueError(f"{path}: names the split {written!r}; understood are {listed_names(SPLITS)}.")
        if splits.setdefault(name, split) != split:
            raise ValueError(f"{path}: names {name} in two splits; the test would be of images that are trained on.")
    return splits


def files_in(folders: Mapping[str, Sequence[str]]) -> list[str]:
    """The files that {lenses: names, nonlenses: names} names, with their folders."""
    return [f"{folder}/{name}" for folder, names in folders.items() for name in names]


def read_names(path: Path) -> list[str]:
    """The names of samples that a file holds, each once: one a line, or, in a pickle, {lenses: names, nonlenses: names}
    as DeepLense_SSL publishes its subsets of labels. Raises ValueError where it is neither, or holds none."""
    try:
        files = files_in(read_pickle(path)) if path.suffix == ".pkl" else path.read_text().split("\n")
    except (AttributeError, TypeError, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: is no file of names, one a line, and no pickle of {{lenses: names, nonlenses: names}} ({error})."
        ) from error
    names = dict.fromkeys(name.strip().removesuffix(".npy") for name in files if name.strip())
    if not names:
        raise ValueError(f"{path}: holds no names.")
    return list(names)


def load_three_bands(record: Record) -> Loaded:
    """One image (3, H, W)."""
    image = read_npy(record.path)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype.kind not in "fiu" or image.size == 0:
        raise ValueError(
            f"{record.path}: is {image.dtype} of shape {image.shape} where real numbers (3, H, W) are expected."
        )
    return image, {}


def files(source: Path, *, axes: Axes = "auto", bands: Sequence[str] = ()) -> Layout:
    """`*.npy` in one folder, images (H, W), (C, H, W) or (H, W, C) without classes; what is known of them is in a
    catalogue."""
    require_choice("axes", axes, AXES)
    leftovers: dict[Path, str] = {}
    records = [Record(path, path.stem, UNLABELLED, "") for path in images_in(source, leftovers)]
    if not records:
        raise ValueError(f"{source} holds no .npy files.")
    first = load_file(records[0], axes)[0]
    notes = [f"images were read as {len(first)} bands of {first.shape[1]} x {first.shape[2]} pixels"]
    names = band_names(source, len(first), bands)
    return Layout(
        source, records, lambda record: load_file(record, axes), (), names, notes=[*notes, *notes_on(source, leftovers)]
    )


def load_file(record: Record, axes: Axes) -> Loaded:
    """One image (C, H, W)."""
    require_choice("axes", axes, AXES)
    image = read_npy(record.path)
    if image.ndim == 2:
        return one_band(record.path, image), {}
    if image.ndim != 3 or not number_kind(image.dtype) or image.size == 0:
        raise ValueError(
            f"{record.path}: is {image.dtype} of shape {image.shape} where real numbers (H, W), (C, H, W) or (H, W, C) "
            "are expected."
        )
    return np.moveaxis(image, band_axis(record.path, image.shape, axes), 0), {}


def npz(
    source: Path, *, image_key: str = "images", name_key: str = "", axes: Axes = "auto", bands: Sequence[str] = ()
) -> Layout:
    """One file with an array of images, (N, C, H, W), (N, H, W, C) or (N, H, W), and columns beside them.

    Args:
        source: the .npz file.
        image_key: name of the images in it.
        name_key: name of the array that names images; by default the first that is called so.
        axes: which axis of the images is the bands, where their shape does not tell.
        bands: names of the bands; numbered if empty.
    """
    require_choice("axes", axes, AXES)
    arrays = read_npz(source)
    if image_key not in arrays:
        raise ValueError(f"{source}: has no {image_key!r}; it has {sorted(arrays)}. Give --image_key ARRAY.")
    images, note = channels_first(source, arrays.pop(image_key), axes)
    columns, unfit = text_columns(source, arrays, len(images))
    names, notes = image_names(source, columns, len(images), name_key)
    records = [Record(source, name, UNLABELLED, "", row) for row, name in enumerate(names)]
    return Layout(
        source,
        records,
        lambda record: (images[record.row], {}),
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
    """The names of the images of an archive; or, with a note that says why, names made of their places. Raises
    ValueError where an array of names is asked for that is none."""
    made = [f"{source.stem}-{row:06d}" for row in range(count)]
    key = name_key or first_known(list(columns), NAME_COLUMNS)
    if key not in columns:
        if name_key:
            raise ValueError(
                f"{source}: has no array {name_key!r} with a name for each image; it has {sorted(columns)}."
            )
        return made, ["images are named by their place: the archive has no array of names"]
    names = columns[key].tolist()
    if len(set(names)) == count and not is_missing(columns[key]).any():
        return names, []
    if name_key:
        raise ValueError(f"{source}: the names in {name_key!r} are not one for each image, or some are missing.")
    return made, [f"images are named by their place: the names in {key!r} are not different, or some are missing"]


def band_names(source: Path, count: int, given: Sequence[str]) -> tuple[str, ...]:
    """The names of so many bands. Raises ValueError where others are given."""
    names = tuple(given) or tuple(f"band{k}" for k in range(count))
    if len(names) != count:
        raise ValueError(f"{source}: has {count} bands; --bands names {list(names)}.")
    if len(set(names)) != count:
        raise ValueError(f"--bands names {list(names)}; give each band a name of its own.")
    return names
