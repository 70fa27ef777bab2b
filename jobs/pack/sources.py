"""The input of `deeplense pack`: the selected images of a layout, their splits, and the printed summary."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.choosing import Choice, choose, noted
from deeplense.data.conditions import listed, read_sky, read_targets
from deeplense.data.records import Layout, Record, few
from deeplense.data.subsets import split_off
from deeplense.random.draws import permutation
from jobs.data.source import GRADE, open_source
from jobs.pack.settings import Settings
from jobs.settings import require

OPTIONAL = ("catalogue", "cubes", "hdf5", "parquet", "dataset")
"""Layouts whose images need no label although they have columns."""
MOST_CLASSES = 12
"""Maximum number of classes listed in the summary."""


def read_layout(settings: "Settings") -> Layout:
    """List the images to pack. Raises ValueError, naming the file, for input that cannot be read or does not fit."""
    named = settings.label_key != "label" or settings.label or ":" in settings.classes
    found = open_source(settings, relabel=bool(named or settings.grades), grades=settings.grades)
    if settings.label:
        found = with_label(found, settings.label, listed(settings.classes) or [settings.label])
    choice = Choice(
        label_key=GRADE if settings.grades else settings.label_key,
        classes=[] if settings.label else listed(settings.classes),
        unlabelled=bool(settings.unlabelled),
        optional=settings.label_key == "label" and (settings.layout in OPTIONAL or bool(settings.targets)),
        targets=read_targets(settings.targets),
        group=settings.group,
        sky=read_sky(settings.sky),
    )
    return choose(found, choice)


def with_label(layout: Layout, label: str, classes: Sequence[str]) -> Layout:
    """Return the images of a layout, all of one class."""
    number = classes.index(label)
    records = [replace(record, label=number) for record in layout.records]
    return noted(replace(layout, records=records, classes=tuple(classes)), f"all images have the class {label}")


def assign_splits(settings: "Settings", layout: Layout) -> dict[str, list[Record]]:
    """Assign the records to splits, in random order: by the layout's own splits, else by the fractions, else all to
    train."""
    records = layout.records
    names = np.array([record.split or "train" for record in records])
    if settings.val_fraction or settings.test_fraction:
        require(
            not any(record.split for record in records),
            f"{settings.origin} already has splits; leave out val_fraction and test_fraction.",
        )
        labels = np.array([record.label for record in records])
        groups = np.array([record.group for record in records]) if records[0].group >= 0 else None

        def part(rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
            kept, held = split_off(labels[rows], fraction, seed=seed, groups=None if groups is None else groups[rows])
            return rows[kept], rows[held]

        rest, test = part(np.arange(len(records)), settings.test_fraction, settings.seed)
        of_rest = settings.val_fraction / (1 - settings.test_fraction)
        names[test], names[part(rest, of_rest, settings.seed + 1)[1]] = "test", "val"
        require_each(settings, names)
    mixed = permutation(len(records), settings.seed, 0)
    return {str(name): [records[i] for i in mixed if names[i] == name] for name in sorted(set(names))}


def require_each(settings: "Settings", names: np.ndarray) -> None:
    """Raise ValueError if a fraction leads to an empty split, or leaves no images for train."""
    asked = {"train": 1.0, "val": settings.val_fraction, "test": settings.test_fraction}
    empty = [split for split, fraction in asked.items() if fraction and split not in names]
    require(
        not empty,
        f"val_fraction={settings.val_fraction} and test_fraction={settings.test_fraction} of {len(names)} images, "
        f"per class and with whole groups, leave none for {' and '.join(empty)}; give other fractions.",
    )


def summary(layout: Layout, splits: Mapping[str, Sequence[Record]], *, label: str = "") -> Iterator[str]:
    """Yield the summary of what is packed: one line per split and per note. `label` is the class of all images, if they
    were given one."""
    for split, records in splits.items():
        counts = Counter(record.label for record in records)
        if not layout.classes:
            yield f"{split}: {len(records)} images without labels"
            continue
        told = [f"{counts[k]} {name}" for k, name in enumerate(layout.classes)]
        more = f", and {len(told) - MOST_CLASSES} other classes" if len(told) > MOST_CLASSES else ""
        yield f"{split}: {len(records)} images: {', '.join(told[:MOST_CLASSES])}{more}"
        empty = [name for k, name in enumerate(layout.classes) if not counts[k]]
        if empty and not label:
            yield f"{split} has no image of {few(empty)}; give --classes to pack without a class"
    if layout.numbers or layout.targets:
        units = {**layout.targets, **layout.numbers}
        yield f"targets: {', '.join(f'{name} ({unit})' if unit else name for name, unit in units.items())}"
    if layout.headers or layout.kept:
        columns = {**layout.headers, **layout.kept}
        yield f"columns: {', '.join(f'{name} ({unit})' if unit else name for name, unit in columns.items())}"
    yield from layout.notes


def refuse_output(output: Path, splits: Mapping[str, Any]) -> None:
    """Raise ValueError if it can be seen beforehand that the data set cannot be written."""
    for folder in (output, *(output / split for split in splits)):
        try:
            found = next(path for path in (folder, *folder.parents) if path.exists())
        except OSError as error:
            raise ValueError(
                f"{str(folder)[:100]}... cannot be a folder ({error.strerror}); give another --output."
            ) from error
        require(found.is_dir(), f"{found} is a file, so the data set cannot be written there; give another --output.")
