"""Folders with a folder for each class: which images they hold, of which class and split, and what they hold
besides."""

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
TEXT_NAMES = ("readme", "license", "licence", "copying", "changelog", "provenance", "makefile")

Leftovers = dict[Path, str]


def meaning(name: str, names: Names) -> str | None:
    """What a name stands for, None where it is not known; case, blanks, - and _ make no difference."""
    plain = plain_name(name)
    return next((key for key, written in names.items() if plain in map(plain_name, written)), None)


def plain_name(name: str) -> str:
    """A name in lower case, without blanks, - and _."""
    return re.sub(r"[\s_-]+", "", name.lower())


def listed_names(names: Names) -> str:
    """The names that are understood, for a message."""
    return ", ".join("|".join(written) for written in names.values())


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted. Raises ValueError where it is no folder, or may not be read."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the folder that holds the images.")
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}).") from error


def harmless(path: Path) -> str | None:
    """Why a file or folder beside images can be left out, None where it may hold some."""
    name = path.name.lower()
    if name.startswith(".") or name in JUNK:
        return "hidden or made by the system"
    if path.is_dir():
        return None if any(path.rglob("*")) else "an empty folder"
    is_text = path.suffix.lower() in TEXTS or (not path.suffix and name in TEXT_NAMES)
    return "no image" if is_text else None


def visible(paths: Iterable[Path], leftovers: Leftovers) -> Iterator[Path]:
    """Those paths that may hold images; the others are noted with the reason."""
    for path in paths:
        if why := harmless(path):
            leftovers[path] = why
        else:
            yield path


def images_in(folder: Path, leftovers: Leftovers) -> list[Path]:
    """The .npy files directly in a folder. Raises ValueError, naming it, for anything else that may be an image."""
    images, strange = [], []
    for path in visible(entries(folder), leftovers):
        good = path.suffix.lower() == IMAGE_SUFFIX and path.is_file()
        (images if good else strange).append(path)
    if strange:
        told = few(f"{path.name}/" if path.is_dir() else path.name for path in strange)
        raise ValueError(
            f"{folder}: {told} is not understood. Images are .npy files directly in this folder; bring these into that "
            "form, or move them away."
        )
    return images


def split_folders(source: Path, leftovers: Leftovers) -> dict[str, Path]:
    """The folder of each split, or {"": source} where there are none. Raises ValueError where other folders are beside
    splits, and where two folders are one split."""
    folders = [path for path in visible(entries(source), {}) if path.is_dir()]
    known = [(meaning(path.name, SPLITS), path) for path in folders]
    splits = {split: path for split, path in known if split}
    if not splits:
        return {"": source}
    strange = [path.name for split, path in known if split is None or splits[split] != path]
    if strange:
        raise ValueError(
            f"{source} holds splits ({few(path.name for path in splits.values())}), and also {few(strange)}. Give each "
            f"split one folder ({listed_names(SPLITS)}), and move other folders away."
        )
    no_images(source, [path for path in visible(entries(source), leftovers) if path not in folders])
    return {split: splits[split] for split in SPLITS if split in splits}


def no_images(folder: Path, files: Sequence[Path]) -> None:
    """Raise ValueError where files lie beside the folders that should hold them."""
    if files:
        raise ValueError(
            f"{folder}: {few(path.name for path in files)} lies beside the folders that images belong in. Move it into "
            "one, or away."
        )


def class_folders(folder: Path, names: Names, leftovers: Leftovers, *, also: Sequence[str] = ()) -> dict[Path, str]:
    """The folders of classes in a folder, with the class of each. Raises ValueError, naming what would be understood,
    where there is another folder, or a file beside them that may be an image; files of the names `also` are known."""
    content = [path for path in entries(folder) if path.name not in also]
    classes = {path: name for path in content if path.is_dir() and (name := meaning(path.name, names))}
    strange = list(visible([path for path in content if path not in classes], leftovers))
    no_images(folder, [path for path in strange if not path.is_dir()])
    if strange:
        raise ValueError(
            f"{folder} holds the folders {few(path.name for path in strange)}, which are no class. Understood are "
            f"{listed_names(names)}; rename them, or move them away."
        )
    return classes


def class_records(source: Path, names: Names, *, also: Sequence[str] = ()) -> tuple[list[Record], list[str]]:
    """A record for each .npy file below the class folders of `source`, or of its splits, and notes on what else is
    there. Raises ValueError where there is none, where the folders of a class are empty, and for what is not
    understood."""
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
        raise ValueError(f"{source} holds no .npy files in folders named by class ({listed_names(names)}).")
    there = {record.label for record in records}
    for folder, name in empty.items():
        if numbers[name] not in there:
            raise ValueError(f"{folder} is there for the class {name}, but holds no .npy files. Fill it, or remove it.")
    return records, notes_on(source, leftovers | dict.fromkeys(empty, "an empty folder"))


def notes_on(source: Path, leftovers: Leftovers) -> list[str]:
    """What was left out and why, a line for each reason."""
    reasons = dict.fromkeys(leftovers.values())
    return [
        f"left out, {reason}: {few(str(path.relative_to(source)) for path, why in leftovers.items() if why == reason)}"
        for reason in reasons
    ]
