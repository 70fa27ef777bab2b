"""Layout of a data set of this package, to pack its images again: with other labels, cropped, or joined with others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deeplense.data.records import UNLABELLED, Facts, Layout, Loaded, Record
from deeplense.data.shards import MANIFEST

if TYPE_CHECKING:
    from deeplense.data.dataset import Split

LABEL, SET, TRAIN = "label", "set", "train"
"""Columns with the class of an image, and with the name of its data set if there are several; a split."""


class Stored(NamedTuple):
    """One split of a data set.

    Args:
        name: name of the data set; "" if there is one only.
        split: name of the split.
        content: its samples.
        targets: values of each target, (n,).
        columns: values of each column, (n,).
    """

    name: str
    split: str
    content: "Split"
    targets: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]


def dataset(source: Path, *, relabel: bool = False) -> Layout:
    """Return the layout of a data set, or of a folder of data sets, whose names are then the classes.

    Images, names, targets and columns stay as they are; integers that are stored with a scale become float32. Columns
    of texts are `label`, the class, `set`, the name of the data set if there are several, and all targets and columns.

    Args:
        source: the data set, or a folder of data sets.
        relabel: whether the classes come from elsewhere.

    Raises:
        ValueError: a shard is damaged, or the data sets differ in what they must have in common; the message names it.
    """
    found = stored_in(source)
    several = any(each.name for each in found)
    classes = tuple(dict.fromkeys(each.name for each in found)) if several else classes_of(found)
    targets, columns = (common_units(found, what) for what in ("targets", "columns"))
    units = {name: unit for name, (unit, _) in [*columns.items(), *targets.items()]}
    if several and any(each.content.schema.grouped for each in found):
        raise ValueError(
            f"{source}: data sets with groups cannot be joined; pack them again without --group and --sky."
        )
    records = [record for each in found for record in records_of(each, classes, columns)]
    if {record.split for record in records} == {TRAIN}:
        records = [replace(record, split="") for record in records]
    labels = np.array([classes[r.label] if r.label >= 0 else "" for r in records], dtype=object)
    texts = {LABEL: labels} if classes else {}
    texts |= {SET: np.repeat([each.name for each in found], [len(each.content) for each in found])} if several else {}
    beside = [{**each.targets, **each.columns} for each in found]
    sizes = [len(each.content) for each in found]
    texts |= {name: joined(name, beside, sizes) for name in (*targets, *columns) if name not in texts}
    by_folder = {each.content.folders[0]: each for each in found}
    load = partial(load_row, by_folder, tuple(targets))
    return Layout(
        source,
        records,
        load,
        () if relabel else classes,
        (),
        targets={name: units[name] for name in targets},
        kept={name: columns[name][0] for name in columns},
        columns=texts,
        units=units,
    )


def stored_in(source: Path) -> list[Stored]:
    """Return the splits of a data set, or of all data sets in a folder. Raises ValueError if there are none."""
    from deeplense.data.dataset import Split

    if not source.is_dir():
        raise ValueError(f"{source} is not a folder; give the folder of a data set.")
    alone = any(source.glob(f"*/{MANIFEST}"))
    paths = sorted(source.glob(f"*/{MANIFEST}") if alone else source.glob(f"*/*/{MANIFEST}"))
    if not paths:
        raise ValueError(f"{source} is not a data set of deeplense: no folder in it has a {MANIFEST}.")
    found = []
    for path in paths:
        split = Split(path.parent)
        targets = {name: split.column(f"target/{name}") for name in split.schema.targets}
        columns = {name: split.column(f"column/{name}") for name in split.schema.columns}
        name = "" if alone else path.parent.parent.name
        found.append(Stored(name, path.parent.name, split, targets, columns))
    return found


def classes_of(found: Sequence[Stored]) -> tuple[str, ...]:
    """Return the classes that all splits have. Raises ValueError, naming two, if they differ."""
    first = found[0].content
    for other in found[1:]:
        if other.content.schema.classes != first.schema.classes:
            raise ValueError(
                f"{first.name} has the classes {list(first.schema.classes)}, but {other.content.name} has "
                f"{list(other.content.schema.classes)}; make the data set again."
            )
    return first.schema.classes


def common_units(found: Sequence[Stored], what: str) -> dict[str, tuple[str, str]]:
    """Return the unit of each target or column of any split, and the kind of its values, as numpy names it.

    Args:
        found: the splits.
        what: `targets` or `columns`.

    Raises:
        ValueError: two splits have another unit or type for one name; the message names them.
    """
    units: dict[str, tuple[str, str, str]] = {}
    for each in found:
        for name, unit in getattr(each.content.schema, what).items():
            kind = getattr(each, what)[name].dtype.kind
            known = units.setdefault(name, (unit, kind, each.content.name))
            if known[:2] != (unit, kind):
                raise ValueError(f"{known[2]} and {each.content.name} have {name} in other units or types.")
    return {name: (unit, kind) for name, (unit, kind, _) in units.items()}


def records_of(each: Stored, classes: Sequence[str], columns: Mapping[str, tuple[str, str]]) -> list[Record]:
    """Return a record for each sample of a split.

    Args:
        each: the split.
        classes: names of the classes; those of the data sets if there are several.
        columns: unit and kind of all columns by name; a split that lacks one has no values.
    """
    content, count = each.content, len(each.content)
    names = [f"{each.name}/{name}" if each.name else name for name in content.ids]
    labels = [classes.index(each.name)] * count if each.name else content.labels.tolist()
    groups = content.groups()
    values = [
        each.columns[name].tolist() if name in each.columns else ["" if kind == "U" else np.nan] * count
        for name, (_, kind) in columns.items()
    ]
    kept = zip(*values, strict=True) if values else [()] * count
    numbers = groups.tolist() if groups is not None else [UNLABELLED] * count
    return [
        Record(content.folders[0], name, label, each.split, row, group=group, kept=tuple(cells))
        for row, (name, label, group, cells) in enumerate(zip(names, labels, numbers, kept, strict=True))
    ]


def joined(name: str, parts: Sequence[Mapping[str, np.ndarray]], sizes: Sequence[int]) -> np.ndarray:
    """Return a target or column of all splits as texts, (N,).

    Args:
        name: its name.
        parts: targets and columns of each split.
        sizes: number of samples of each split.
    """
    texts = [
        part[name].astype(str) if name in part else np.full(count, "") for part, count in zip(parts, sizes, strict=True)
    ]
    return np.concatenate(texts).astype(object)


def load_row(found: Mapping[Path, Stored], targets: Sequence[str], record: Record) -> Loaded:
    """Return an image as stored, or its values if they are scaled, and its targets.

    Args:
        found: each split by its folder.
        targets: names of all targets; NaN for those that a split lacks.
        record: record of the image.
    """
    each = found[record.path]
    schema, rows = each.content.schema, np.array([record.row])
    plain = (schema.scale, schema.zero) == (1, 0)
    image = each.content.stored.read(rows).cpu().numpy()[0] if plain else each.content.images(rows)[0]
    values = {name: float(each.targets[name][record.row]) if name in each.targets else np.nan for name in targets}
    return Loaded(image, values, Facts(schema.bands, schema.unit, schema.pixel_scale_arcsec))
