"""Folders with a folder per class: the images in them, their classes and splits, and what else is there."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from deeplense.data.records import Record, few

Names = Mapping[str, Sequence[str]]
SPLITS: Names = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SYNONYMS: Names = {
    "no_sub": ("no_sub", "no", "nosub", "no_substructure"),
    "cdm": ("cdm", "sphere", "subhalo"),
    "axion": ("axion", "vort", "vortex"),
}
LENSES: Names = {
    "lens": ("lens", "lenses", "lensed"),
    "nonlens": ("nonlens", "nonlenses", "nonlensed", "no_lens", "no_lenses"),
}
IMAGE_SUFFIX = ".npy"
JUNK = ("__macosx", "thumbs.db", "desktop.ini")
TEXTS = (".txt", ".md", ".rst", ".csv", ".json", ".yaml", ".yml", ".log", ".html", ".pdf", ".py", ".ipynb", ".sh")
TEXTS += (".ecsv", ".tsv", ".dat", ".toml", ".cfg", ".ini", ".xml", ".tex", ".bib")
TEXT_NAMES = ("readme", "license", "licence", "copying", "changelog", "provenance", "makefile")

Leftovers = dict[Path, str]


def meaning(name: str, names: Names) -> str | None:
    """Return what a name stands for, None if it is unknown; case, spaces, - and _ make no difference.

    Args:
        name: name of a folder.
        names: spellings of each known name.

    Example:
        >>> meaning("No-Sub", SYNONYMS), meaning("other", SYNONYMS)
        ('no_sub', None)
    """
    plain = plain_name(name)
    return next((key for key, written in names.items() if plain in map(plain_name, written)), None)


def plain_name(name: str) -> str:
    """Return a name in lower case, without spaces, - and _."""
    return re.sub(r"[\s_-]+", "", name.lower())


def listed_names(names: Names) -> str:
    """Return the known names, for a message."""
    return ", ".join("|".join(written) for written in names.values())


def entries(folder: Path) -> list[Path]:
    """Return the sorted content of a folder. Raises ValueError if it is not a folder, or cannot be read."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that contains the images.")
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}).") from error


def harmless(path: Path) -> str | None:
    """Return why a file or folder beside images can be ignored, None if it may hold images."""
    name = path.name.lower()
    if name.startswith(".") or name in JUNK:
        return "hidden or system files"
    if path.is_dir():
        return None if any(path.rglob("*")) else "an empty folder"
    is_text = path.suffix.lower() in TEXTS or (not path.suffix and name in TEXT_NAMES)
    return "not an image" if is_text else None


def visible(paths: Iterable[Path], leftovers: Leftovers) -> Iterator[Path]:
    """Yield the paths that may hold images; the others are recorded with the reason.

    Args:
        paths: files and folders.
        leftovers: reason by ignored path, extended in place.
    """
    for path in paths:
        if why := harmless(path):
            leftovers[path] = why
        else:
            yield path


def images_in(folder: Path, leftovers: Leftovers, endings: Sequence[str] = (IMAGE_SUFFIX,)) -> list[Path]:
    """Return the images directly in a folder.

    Args:
        folder: the folder.
        leftovers: reason by ignored path, extended in place.
        endings: endings of images, in lower case.

    Raises:
        ValueError: there is something else that may be an image; the message names it.
    """
    images, strange = [], []
    for path in visible(entries(folder), leftovers):
        good = path.name.lower().endswith(tuple(endings)) and path.is_file()
        (images if good else strange).append(path)
    if strange:
        told = few(f"{path.name}/" if path.is_dir() else path.name for path in strange)
        kinds = ", ".join(sorted(endings))
        raise ValueError(
            f"{folder}: unexpected {told}. Images must be {kinds} files directly in this folder; convert these files, "
            "or move them elsewhere."
        )
    return images


def split_folders(source: Path, leftovers: Leftovers) -> dict[str, Path]:
    """Return the folder of each split, or {"": source} without splits.

    Args:
        source: folder of the data set.
        leftovers: reason by ignored path, extended in place.

    Raises:
        ValueError: there are other folders beside splits, or two folders of one split.
    """
    folders = [path for path in visible(entries(source), {}) if path.is_dir()]
    known = [(meaning(path.name, SPLITS), path) for path in folders]
    splits = {split: path for split, path in known if split}
    if not splits:
        return {"": source}
    strange = [path.name for split, path in known if split is None or splits[split] != path]
    if strange:
        raise ValueError(
            f"{source} contains splits ({few(path.name for path in splits.values())}), but also {few(strange)}. "
            "Use one "
            f"folder per split ({listed_names(SPLITS)}), and move other folders elsewhere."
        )
    no_images(source, [path for path in visible(entries(source), leftovers) if path not in folders])
    return {split: splits[split] for split in SPLITS if split in splits}


def no_images(folder: Path, files: Sequence[Path]) -> None:
    """Raise an error if files lie beside the folders of images.

    Args:
        folder: the folder, for messages.
        files: files in it.

    Raises:
        ValueError: there are such files.
    """
    if files:
        raise ValueError(
            f"{folder}: {few(path.name for path in files)} is next to the folders of images. Move it into "
            "one of them, or elsewhere."
        )


def class_folders(folder: Path, names: Names, leftovers: Leftovers, *, also: Sequence[str] = ()) -> dict[Path, str]:
    """Return the class of each class folder in a folder.

    Args:
        folder: the folder.
        names: spellings of each class.
        leftovers: reason by ignored path, extended in place.
        also: names of files that are expected beside them.

    Raises:
        ValueError: there is an unknown folder, or a file that may be an image.
    """
    content = [path for path in entries(folder) if path.name not in also]
    classes = {path: name for path in content if path.is_dir() and (name := meaning(path.name, names))}
    strange = list(visible([path for path in content if path not in classes], leftovers))
    no_images(folder, [path for path in strange if not path.is_dir()])
    if strange:
        raise ValueError(
            f"{folder} contains the folders {few(path.name for path in strange)}, which are not known classes. "
            "Known are "
            f"{listed_names(names)}; rename the folders, or move them elsewhere."
        )
    return classes


def class_records(source: Path, names: Names, *, also: Sequence[str] = ()) -> tuple[list[Record], list[str]]:
    """Return a record for each .npy file in the class folders of a data set, or of its splits, and notes on what else
    is there.

    Args:
        source: folder of the data set.
        names: spellings of each class.
        also: names of files that are expected beside the class folders.

    Raises:
        ValueError: there are no images, a class has none, or the content is not understood.
    """
    leftovers: Leftovers = {}
    numbers = {name: k for k, name in enumerate(names)}
    records: list[Record] = []
    empty: dict[Path, str] = {}
    for split, root in split_folders(source, leftovers).items():
        for folder, name in class_folders(root, names, leftovers, also=also).items():
            images = images_in(folder, leftovers)
            records += [Record(path, f"{folder.name}/{path.stem}", numbers[name], split) for path in images]
            empty |= {} if images else {folder: name}
    if not records:
        raise ValueError(f"{source} contains no .npy files in folders named by class ({listed_names(names)}).")
    there = {record.label for record in records}
    for folder, name in empty.items():
        if numbers[name] not in there:
            raise ValueError(
                f"{folder}, the folder of the class {name}, contains no .npy files. Add images, or remove the folder."
            )
    return records, notes_on(source, leftovers | dict.fromkeys(empty, "an empty folder"))


def notes_on(source: Path, leftovers: Leftovers) -> list[str]:
    """Return a note per reason for what was ignored.

    Args:
        source: folder of the data set.
        leftovers: reason by ignored path.
    """
    reasons = dict.fromkeys(leftovers.values())
    return [
        f"ignored, {reason}: {few(str(path.relative_to(source)) for path, why in leftovers.items() if why == reason)}"
        for reason in reasons
    ]
