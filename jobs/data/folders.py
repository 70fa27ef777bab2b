"""The folders of data sets, found without opening them: fast, and without torch."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from jobs.settings import require

MANIFEST = "manifest.json"


def splits_of(dataset: Path) -> Sequence[str]:
    """Return the sorted names of the complete splits of a data set.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "train").mkdir()
        ...     _ = (Path(folder) / "train" / "manifest.json").write_text("{}")
        ...     splits_of(Path(folder))
        ['train']
    """
    return sorted(path.parent.name for path in dataset.glob(f"*/{MANIFEST}"))


def find_datasets(names: str, data_root: Path) -> list[Path]:
    """Return the folders of one or more data sets, given as comma-separated paths or names below the data root. Raises
    ValueError if one does not exist."""
    return [find_dataset(name.strip(), data_root) for name in names.split(",")]


def find_dataset(dataset: str, data_root: Path) -> Path:
    """Return the folder of a data set, given as a path or a name below the data root. Raises ValueError, with the
    nearest one, if it does not exist."""
    places = (Path(dataset), data_root / dataset)
    for folder in places:
        if splits_of(folder):
            return folder
    for folder in places:
        is_split = (folder / MANIFEST).exists()
        require(not is_split, f"{folder} is one split of a data set; give the data set itself, {folder.parent}.")
    raise ValueError(
        f"no such data set {dataset!r}, neither as a folder nor below data_root={data_root}.{nearest(places)} Create "
        "it with `deeplense simulate` or `deeplense pack`; if it exists, `deeplense verify` reports what is missing."
    )


def nearest(places: Sequence[Path]) -> str:
    """Return a hint at data sets beside the given places: the one with the most similar name."""
    for place in places:
        beside = {path.name: path for path in sorted(place.parent.glob("*")) if path.is_dir() and splits_of(path)}
        for name in difflib.get_close_matches(place.name, beside, n=1, cutoff=0.5):
            return f" Did you mean {beside[name]}?"
    return ""
