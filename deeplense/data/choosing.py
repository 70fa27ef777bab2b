"""Which of the user's own images are packed, of which class each is, which numbers go with it, and which belong
together."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import numpy as np

from deeplense.data.conditions import holds, is_missing, number, parse_condition, split_classes
from deeplense.data.groups import groups_of_values, groups_on_sky, united
from deeplense.data.records import Layout, few
from deeplense.data.shards import GROUP, GROUP_UNIT

WHOLE = re.compile(r"([+-]?\d+)\.0*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of a layout is packed.

    `label_key` is the column of the labels. `classes` are labels in the order of their numbers, all by default; or
    NAME:CONDITION each. `where` are conditions that must hold. `unlabelled` packs images without labels. `targets` are
    columns of numbers, with their units. Images with the same value in the column `group`, and those within some arcsec
    of each other by the columns of `sky` (right ascension and declination, degrees), are one group.
    """

    label_key: str = "label"
    classes: Sequence[str] = ()
    where: Sequence[str] = ()
    unlabelled: bool = False
    targets: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    sky: tuple[str, str, float] | None = None


def choose(layout: Layout, choice: Choice) -> Layout:
    """The images of a layout that a choice is of, with their classes, numbers and groups. Raises ValueError, naming the
    image, where one has no label, number or group, and for what does not fit."""
    chosen = only_where(layout, choice.where)
    if layout.classes:
        chosen = only_classes(chosen, choice.classes)
    elif any(":" in entry for entry in choice.classes):
        chosen = by_conditions(chosen, choice.classes)
    elif choice.unlabelled:
        chosen = noted(chosen, "no image gets a label, as asked for")
    elif not layout.columns and not layout.unfit:
        chosen = noted(chosen, f"no image gets a label: {layout.source} has nothing but images")
    else:
        chosen = by_labels(chosen, choice.label_key, choice.classes)
    chosen = with_groups(with_targets(chosen, choice), choice)
    refuse_names(chosen)
    return chosen


def noted(layout: Layout, *notes: str) -> Layout:
    """A layout with more notes."""
    return replace(layout, notes=[*layout.notes, *notes])


def only(layout: Layout, kept: np.ndarray) -> Layout:
    """The images of a layout where a mask (N,) is true."""
    records = [record for record, keep in zip(layout.records, kept.tolist(), strict=True) if keep]
    return replace(layout, records=records, columns={name: cells[kept] for name, cells in layout.columns.items()})


def pick(layout: Layout, name: str) -> np.ndarray:
    """The column of a name, texts (N,). Raises ValueError, naming those there are, where there is none."""
    if name in layout.columns:
        return layout.columns[name]
    if name in layout.unfit:
        raise ValueError(
            f"{layout.source}: {name!r} has the shape {layout.unfit[name]} where one value for each of the images (N,) "
            "or (N, 1), or one-hot rows (N, K), are expected."
        )
    if not layout.columns:
        raise ValueError(
            f"{layout.source} has no {name!r}; it has nothing beside the images. Give --catalog CSV with a column "
            f"{name!r}."
        )
    raise ValueError(f"{layout.catalog or layout.source}: has no {name!r}; it has {sorted(layout.columns)}.")


def mask_of(layout: Layout, condition: str) -> np.ndarray:
    """For which images a condition holds, (N,)."""
    return holds(condition, pick(layout, parse_condition(condition)[0]))


def only_where(layout: Layout, where: Sequence[str]) -> Layout:
    """The images that all conditions hold for. Raises ValueError where there is none."""
    if not where:
        return layout
    kept = np.all([mask_of(layout, condition) for condition in where], axis=0)
    told = " and ".join(where)
    if not kept.any():
        raise ValueError(f"{layout.source}: no image is left of {len(kept)} where {told}.")
    return noted(only(layout, kept), f"{kept.sum()} of {len(kept)} images are taken: {told}")


def only_classes(layout: Layout, classes: Sequence[str]) -> Layout:
    """The images of some of the classes that a layout has, numbered as they are given. Raises ValueError for what is no
    class of it, and where one has no image."""
    if not classes:
        return layout
    wrong = [name for name in classes if name not in layout.classes]
    if wrong or len(set(classes)) != len(classes):
        raise ValueError(f"--classes {','.join(classes)}: give some of {', '.join(layout.classes)}, each once.")
    numbers = {layout.classes.index(name): k for k, name in enumerate(classes)}
    kept = np.array([record.label in numbers for record in layout.records], dtype=bool)
    rest = Counter(layout.classes[record.label] for record in layout.records if record.label not in numbers)
    chosen = only(layout, kept)
    records = [replace(record, label=numbers[record.label]) for record in chosen.records]
    notes = [f"left out, not among --classes: {count} {name}" for name, count in rest.items()]
    return noted(require_images(replace(chosen, records=records, classes=tuple(classes))), *notes)


def require_images(layout: Layout) -> Layout:
    """The same layout. Raises ValueError where one of its classes has no image."""
    counts = Counter(record.label for record in layout.records)
    empty = [name for k, name in enumerate(layout.classes) if not counts[k]]
    if empty:
        raise ValueError(
            f"{layout.catalog or layout.source}: no image is of the class {few(empty)}; leave it out of --classes, or "
            "correct it."
        )
    return layout


def by_conditions(layout: Layout, entries: Sequence[str]) -> Layout:
    """The images for which the condition of a class holds. Raises ValueError, naming the first, where one is of two
    classes, and where a class has no image."""
    conditions = split_classes(list(entries))
    masks = np.stack([mask_of(layout, condition) for condition in conditions.values()])
    several = masks.sum(axis=0) > 1
    if several.any():
        place = int(np.argmax(several))
        of = [name for name, mask in zip(conditions, masks, strict=True) if mask[place]]
        raise ValueError(
            f"{layout.source}: {layout.told(place)} is of the classes {of}; give conditions that exclude one another."
        )
    labels, kept = masks.argmax(axis=0), np.asarray(masks.any(axis=0))
    chosen = labelled(layout, labels, tuple(conditions), kept)
    return (
        noted(chosen, f"{(~kept).sum()} of {len(kept)} images are of no class and left out")
        if (~kept).any()
        else chosen
    )


def labelled(layout: Layout, labels: np.ndarray, classes: tuple[str, ...], kept: np.ndarray) -> Layout:
    """The images that are kept (N,), with the numbers of their classes (N,)."""
    chosen = only(layout, kept)
    strange = [name for name in classes if not name.isprintable()]
    if strange:
        raise ValueError(
            f"{layout.catalog or layout.source}: the class {strange[0]!r} has signs that cannot be written."
        )
    pairs = zip(chosen.records, labels[kept].tolist(), strict=True)
    records = [replace(record, label=label) for record, label in pairs]
    return require_images(replace(chosen, records=records, classes=classes))


def by_labels(layout: Layout, key: str, given: Sequence[str]) -> Layout:
    """All images, with the classes that a column names. Raises ValueError, naming the image, where one has no label, or
    one that is no class."""
    if key not in layout.columns and key not in layout.unfit:
        raise ValueError(
            f"{layout.catalog or layout.source}: has no {key!r}; it has {sorted(layout.columns)}. Give the column of "
            "the labels by --label_key, or --unlabelled 1 to pack without labels."
        )
    labels = [plain_label(cell) for cell in pick(layout, key).tolist()]
    classes = tuple(plain_label(name) for name in given)
    if len(set(classes)) != len(classes):
        raise ValueError(f"--classes {','.join(given)} names a class twice.")
    refuse_missing(layout, key, labels, classes)
    if not classes:
        classes = all_classes(layout, key, labels)
    numbers = {name: k for k, name in enumerate(classes)}
    for place, label in enumerate(labels):
        if label not in numbers:
            raise ValueError(
                f"{layout.source}: {layout.told(place)} has the label {label!r}, which is none of the classes "
                f"{list(classes)}. Name it in --classes, or leave such images out by --where '{key}!={label}'."
            )
    every = np.ones(len(labels), dtype=bool)
    return labelled(layout, np.array([numbers[label] for label in labels]), classes, every)


def plain_label(cell: str) -> str:
    """A label, with 1.0 written as 1."""
    whole = WHOLE.fullmatch(cell.strip())
    return whole[1] if whole else cell.strip()


def refuse_missing(layout: Layout, key: str, labels: Sequence[str], classes: Sequence[str]) -> None:
    """Raise ValueError, naming the first image, where labels are missing; what is given as a class is a label."""
    missing = is_missing(np.array(labels, dtype=object)) & ~np.isin(labels, list(classes))
    if missing.any():
        place = int(np.argmax(missing))
        raise ValueError(
            f"{layout.catalog or layout.source}: {layout.told(place)} has no label ({labels[place]!r} in {key!r}), "
            f"{missing.sum()} of {len(labels)} have none. Leave them out by --where '{key}!=', or pack all images "
            "without labels by --unlabelled 1."
        )


def all_classes(layout: Layout, key: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels, sorted, numbers as numbers. Raises ValueError where they are rather numbers to be learnt,
    or names, or -1 for none."""
    classes = sorted(set(labels))
    numbers = [number(label) for label in classes]
    origin = layout.catalog or layout.source
    for label, value in zip(classes, numbers, strict=True):
        place = labels.index(label)
        if value is not None and (not value.is_finite() or value != int(value)):
            raise ValueError(
                f"{origin}: {layout.told(place)} has the label {label} in {key!r}, which is not whole. Give "
                f"--targets {key} for a number to learn (and --unlabelled 1 where there are no labels beside it), or "
                "classes by conditions on it, --classes NAME:CONDITION,..."
            )
        if value is not None and value < 0:
            raise ValueError(
                f"{origin}: {layout.told(place)} has the label {label} in {key!r}; below 0 often means none. Leave "
                f"such images out by --where '{key}>=0', or give all labels by --classes={','.join(classes)}."
            )
    if len(classes) == len(labels) > 2:
        raise ValueError(
            f"{origin}: each image has a label of its own in {key!r}, such as {few(classes)}. Give --label_key COLUMN "
            "with classes, --targets for numbers to learn, or --unlabelled 1."
        )
    if all(value is not None for value in numbers):
        classes = sorted(classes, key=int)
    return tuple(classes)


def with_targets(layout: Layout, choice: Choice) -> Layout:
    """The images with the numbers that go with them. Raises ValueError, naming the image, for what is no number."""
    wanted = dict(choice.targets)
    if choice.sky:
        wanted = {**dict.fromkeys(choice.sky[:2], "deg"), **wanted}
    for name in wanted:
        known = [*layout.targets, GROUP]
        if name in known or not re.fullmatch(r"[\w+-][\w+. -]*", name):
            raise ValueError(f"--targets: {name!r} cannot be the name of a target here; rename the column.")
    columns = {name: numbers_of(layout, name) for name in wanted}
    rows = np.array([*columns.values()]).reshape(len(columns), len(layout.records)).T
    records = [replace(record, numbers=tuple(row)) for record, row in zip(layout.records, rows.tolist(), strict=True)]
    unknown = {name: int(np.isnan(column).sum()) for name, column in columns.items()}
    notes = [f"{count} of {len(records)} images have no {name}" for name, count in unknown.items() if count]
    return noted(replace(layout, records=records, numbers=wanted), *notes)


def numbers_of(layout: Layout, name: str) -> np.ndarray:
    """A column of numbers (N,), NaN where there is none. Raises ValueError, naming the image, for what is no finite
    number, or has more digits than float64 keeps of a whole one; and where all are missing."""
    cells = pick(layout, name)
    missing = is_missing(cells)
    if missing.all():
        raise ValueError(f"{layout.catalog or layout.source}: no image has a number in {name!r}.")
    found = np.full(len(cells), np.nan)
    for place in np.flatnonzero(~missing).tolist():
        value = number(cells[place])
        if value is None or not is_kept(value):
            raise ValueError(
                f"{layout.catalog or layout.source}: {layout.told(place)} has {cells[place][:60]!r} in {name!r}, which "
                "is no number that float64 can hold. Mend it, leave the cell empty, or leave the image out by --where."
            )
        found[place] = float(value)
    return found


def is_kept(value: Decimal) -> bool:
    """Whether float64 keeps a number: exactly where it is whole, else to 15 digits."""
    kept = float(value)
    if not np.isfinite(kept):
        return False
    lost = abs(Decimal(kept) - value)
    return lost == 0 if value == value.to_integral_value() else lost <= abs(value) * Decimal("1e-15")


def with_groups(layout: Layout, choice: Choice) -> Layout:
    """The images with their groups, of which the number is a target too. Raises ValueError, naming the image, where
    what makes the groups is missing, and where splits cut a group."""
    groupings = []
    if choice.group:
        cells = pick(layout, choice.group)
        refuse_unknown(layout, choice.group, is_missing(cells), "has nothing")
        numbers = [number(cell) for cell in cells.tolist()]
        groupings.append(groups_of_values([a if a is not None else b for a, b in zip(numbers, cells, strict=True)]))
    if choice.sky:
        groupings.append(groups_on_sky(*positions(layout, choice.sky), choice.sky[2]))
    if not groupings:
        return layout
    groups = united(groupings)
    refuse_cut(layout, groups)
    pairs = zip(layout.records, groups.tolist(), strict=True)
    records = [replace(record, group=group, numbers=(*record.numbers, float(group))) for record, group in pairs]
    sizes = np.bincount(groups)
    note = f"{len(sizes)} groups: {(sizes > 1).sum()} of several images, the largest of {sizes.max()}"
    return noted(replace(layout, records=records, numbers={**layout.numbers, GROUP: GROUP_UNIT}), note)


def refuse_unknown(layout: Layout, name: str, bad: np.ndarray, what: str) -> None:
    """Raise ValueError, naming the first image, where what a group needs is not known."""
    if bad.any():
        place = int(np.argmax(bad))
        raise ValueError(
            f"{layout.catalog or layout.source}: {layout.told(place)} {what} in {name!r}, {bad.sum()} of {len(bad)} "
            "are so; which group they are in cannot be told. Complete them, or leave them out by --where."
        )


def positions(layout: Layout, sky: tuple[str, str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Right ascensions and declinations (N,), degrees. Raises ValueError, naming the image, for those that are none."""
    ra, dec = (numbers_of(layout, name) for name in sky[:2])
    for name, values, limits in ((sky[0], ra, (-180, 360)), (sky[1], dec, (-90, 90))):
        inside = (values >= limits[0]) & (values <= limits[1])
        refuse_unknown(layout, name, ~inside, f"has no angle of {limits[0]} to {limits[1]} degrees")
    return ra, dec


def refuse_cut(layout: Layout, groups: np.ndarray) -> None:
    """Raise ValueError, naming an example, where splits that a layout has cut a group."""
    first: dict[int, int] = {}
    for place, group in enumerate(groups.tolist()):
        other = first.setdefault(group, place)
        here, there = layout.records[place], layout.records[other]
        if here.split != there.split:
            raise ValueError(
                f"{layout.source}: {there.name} of the split {there.split} and {here.name} of {here.split} belong to "
                "one group. Move all of a group into one split, or pack all images in one folder by fractions."
            )


def refuse_names(layout: Layout) -> None:
    """Raise ValueError where a name cannot be written, or where two images of a split have the same."""
    counts = Counter((record.split, record.name) for record in layout.records)
    for (_, name), count in counts.items():
        if not name.isprintable() or not name:
            raise ValueError(
                f"{layout.source}: the name {name!r} of an image has signs that cannot be written; rename it."
            )
        if count > 1:
            raise ValueError(f"{layout.source}: {count} images have the name {name!r}; rename all but one.")
