"""The doors for foreign data: each layout is a function that lists the samples of a folder or file, and says how to
load one."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deeplense.data.conditions import holds, parse_condition, split_classes
from deeplense.data.foreign import read_npy, read_npz, read_pickle

SYNONYMS = {
    "no_sub": ("no_sub", "no", "nosub"),
    "cdm": ("cdm", "sphere", "subhalo"),
    "axion": ("axion", "vort", "vortex"),
}
SUBSTRUCTURE = tuple(SYNONYMS)
SPLIT_FOLDERS = ("train", "val", "test")

Loaded = tuple[np.ndarray, Mapping[str, float]]


@dataclass(frozen=True)
class Record:
    """One foreign sample: its file, name, the number of its class, its split ("" where the layout has none), and its
    row in the file."""

    path: Path
    name: str
    label: int
    split: str
    row: int = 0


@dataclass(frozen=True)
class Layout:
    """What a foreign data set holds. `load` gives the image (C, H, W) of a record and its targets by name."""

    records: Sequence[Record]
    load: Callable[[Record], Loaded]
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    unit: str
    targets: Mapping[str, str] = field(default_factory=dict)


def class_folders(folder: Path) -> dict[Path, int]:
    """The sub-folders that bear a name of one of the three classes of substructure, with its number."""
    number = {name: k for k, names in enumerate(SYNONYMS.values()) for name in names}
    return {path: number[path.name] for path in sorted(folder.iterdir()) if path.is_dir() and path.name in number}


def class_records(source: Path) -> list[Record]:
    """All .npy files below the class folders of `source`, or of its folders train, val and test. Raises ValueError
    where there are none."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; give the folder that holds one folder for each class.")
    roots = {name: source / name for name in SPLIT_FOLDERS if (source / name).is_dir()} or {"": source}
    records = [
        Record(path, f"{folder.name}/{path.stem}", label, split)
        for split, root in roots.items()
        for folder, label in class_folders(root).items()
        for path in sorted(folder.glob("*.npy"))
    ]
    if not records:
        names = ", ".join("|".join(names) for names in SYNONYMS.values())
        raise ValueError(f"{source} holds no .npy files in folders named by class ({names}).")
    return records


def deeplense(source: Path) -> Layout:
    """`{axion,cdm,no_sub}/*.npy`, as DeepLenseSim writes it: 2-D images; axion files are pickled [image, mass in
    eV]."""
    return Layout(
        class_records(source),
        load_deeplense,
        SUBSTRUCTURE,
        bands=("intensity",),
        unit="",
        targets={"log10_axion_mass": "log10(eV)"},
    )


def load_deeplense(record: Record) -> Loaded:
    """One image (1, H, W) and the logarithm of its axion mass (NaN where there is none)."""
    array = read_npy(record.path)
    if array.dtype != object:
        return one_band(record.path, array), {"log10_axion_mass": np.nan}
    if array.shape != (2,):
        raise ValueError(f"{record.path}: holds {array.shape} objects where [image, axion mass] is expected.")
    try:
        image, mass = np.asarray(array[0], dtype=np.float64), float(array[1])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{record.path}: is not [image, axion mass] ({error}).") from error
    if not mass > 0:
        raise ValueError(f"{record.path}: has the axion mass {mass} eV; it must be above 0.")
    return one_band(record.path, image), {"log10_axion_mass": float(np.log10(mass))}


def gsoc(source: Path) -> Layout:
    """`{train,val}/{no,sphere,vort}/*.npy`, images (1, H, W) between 0 and 1, as in the tests of ML4SCI."""
    return Layout(class_records(source), load_gsoc, SUBSTRUCTURE, bands=("intensity",), unit="")


def load_gsoc(record: Record) -> Loaded:
    """One image (1, H, W)."""
    return one_band(record.path, read_npy(record.path)), {}


def one_band(path: Path, array: np.ndarray) -> np.ndarray:
    """An image (H, W) or (1, H, W) as (1, H, W). Raises ValueError for anything else."""
    image = array[None] if array.ndim == 2 else array
    if image.ndim != 3 or image.shape[0] != 1 or image.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: is {array.dtype} of shape {array.shape} where one image (H, W) of numbers is expected."
        )
    return image


LENS_FINDING_FOLDERS = {"lens": "lenses", "nonlens": "nonlenses"}


def lens_finding(source: Path) -> Layout:
    """`{lenses,nonlenses}/*.npy`, (3, H, W) in g, r, i, of any size; `indices.pkl` beside them, if any, names the
    files of each split."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; give the folder that holds lenses/ and nonlenses/.")
    files = {
        path.relative_to(source).as_posix(): label
        for label, folder in enumerate(LENS_FINDING_FOLDERS.values())
        for path in sorted((source / folder).glob("*.npy"))
    }
    splits = (
        read_splits(source / "indices.pkl", files) if (source / "indices.pkl").exists() else dict.fromkeys(files, "")
    )
    records = [Record(source / name, name.removesuffix(".npy"), files[name], split) for name, split in splits.items()]
    if not records:
        raise ValueError(f"{source} holds no .npy files in lenses/ and nonlenses/.")
    return Layout(records, load_three_bands, tuple(LENS_FINDING_FOLDERS), bands=("g", "r", "i"), unit="")


def read_splits(path: Path, files: Mapping[str, int]) -> dict[str, str]:
    """The split of each file that `indices.pkl` names: {split: {lenses: [...], nonlenses: [...]}}."""
    content = read_pickle(path)
    try:
        named = [(name, str(split)) for split, folders in content.items() for name in files_in(folders)]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: is not {{split: {{lenses: names, nonlenses: names}}}} ({error}).") from error
    for name, _ in named:
        if name not in files:
            raise ValueError(
                f"{path}: names {name}, which is not there. Complete the folder, or remove the index file."
            )
    splits = dict(named)
    if len(splits) != len(named):
        raise ValueError(f"{path}: names a file in two splits; the test would be of images that were learnt.")
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
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype.kind not in "fiu":
        raise ValueError(
            f"{record.path}: is {image.dtype} of shape {image.shape} where numbers (3, H, W) are expected."
        )
    return image, {}


def npz(
    source: Path,
    *,
    image_key: str,
    label_key: str,
    catalog: Path | None,
    classes: Sequence[str],
    where: Sequence[str],
    bands: Sequence[str],
) -> Layout:
    """One file with an array of images, (N, C, H, W), (N, H, W, C) or (N, H, W), and a label for each.

    Args:
        source: the .npz file.
        image_key: name of the images in it.
        label_key: name of the labels in it, or of their column in the catalogue.
        catalog: a CSV file with one line for each image, or None.
        classes: the labels, in the order of their numbers; empty for all there are, sorted. Or NAME:CONDITION each, on
            the catalogue, for which no labels are needed; images that are of no class are left out.
        where: only samples for which these conditions on the catalogue hold.
        bands: names of the bands; numbered if empty.
    """
    arrays = read_npz(source)
    images = channels_first(source, pick(source, arrays, image_key))
    columns = (
        read_catalog(catalog)
        if catalog
        else {name: array.astype(str) for name, array in arrays.items() if array.ndim == 1}
    )
    by_condition = split_classes(list(classes))

    def rows_where(condition: str) -> np.ndarray:
        return holds(condition, pick(catalog or source, columns, parse_condition(condition)[0]))

    if by_condition:
        labels = labels_by(source, {name: rows_where(condition) for name, condition in by_condition.items()})
        classes = list(by_condition)
    else:
        labels = pick(catalog or source, columns, label_key)
    if len(labels) != len(images):
        raise ValueError(f"{catalog or source}: has {len(labels)} labels for {len(images)} images.")
    kept = labels != "" if by_condition else np.ones(len(images), dtype=bool)
    for condition in where:
        kept &= rows_where(condition)
    chosen = tuple(classes) or tuple(sorted(set(labels[kept])))
    records = [
        Record(source, f"{source.stem}-{row:06d}", class_number(source, row, labels[row], chosen), "", row)
        for row in np.flatnonzero(kept).tolist()
    ]
    if not records:
        raise ValueError(f"{source}: no image is left of {len(images)} where {' and '.join(where)}.")
    names = tuple(bands) or tuple(f"band{k}" for k in range(images.shape[1]))
    if len(names) != images.shape[1]:
        raise ValueError(f"{source}: has {images.shape[1]} bands; --bands names {list(names)}.")
    return Layout(records, lambda record: (images[record.row], {}), chosen, names, unit="")


def labels_by(source: Path, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """The class of each image (N,) as text, "" where it is of none. Raises ValueError, naming the first, where one is
    of two classes."""
    several = np.sum(list(masks.values()), axis=0) > 1
    if several.any():
        row = int(np.argmax(several))
        of = [name for name, mask in masks.items() if mask[row]]
        raise ValueError(f"{source}: image {row} is of the classes {of}; give conditions that exclude one another.")
    return np.select(list(masks.values()), list(masks), default="")


def class_number(source: Path, row: int, label: str, classes: Sequence[str]) -> int:
    """The number of a label. Raises ValueError, naming the row, where it is no class."""
    if label not in classes:
        raise ValueError(
            f"{source}: image {row} has the label {str(label)!r}, which is none of the classes {list(classes)}. "
            "Name it in --classes, or leave such images out by --where COLUMN!=VALUE."
        )
    return list(classes).index(label)


def read_catalog(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file with a header, as strings."""
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no readable CSV file ({error}).") from error
    if not rows:
        raise ValueError(f"{path}: is a CSV file without lines.")
    return {name: np.array([row[name] for row in rows], dtype=str) for name in rows[0]}


def pick(path: Path, columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A named array. Raises ValueError, naming those there are, where it is not there."""
    if name not in columns:
        raise ValueError(f"{path}: has no {name!r}; it has {sorted(columns)}.")
    return columns[name]


def channels_first(path: Path, images: np.ndarray) -> np.ndarray:
    """Images as (N, C, H, W); a last axis of up to 5 with none such before it is taken for the bands."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise ValueError(
            f"{path}: images have the shape {images.shape}; (N, C, H, W), (N, H, W, C) or (N, H, W) is expected."
        )
    return np.moveaxis(images, -1, 1) if images.shape[-1] <= 5 < images.shape[1] else images
