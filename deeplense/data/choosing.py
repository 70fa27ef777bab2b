"""The selection from the user's own images: which are packed, their classes, their targets, and their groups."""

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
    """The selection from a layout.

    Args:
        label_key: column of the labels.
        classes: labels in the order of their numbers (all by default), or NAME:CONDITION each.
        where: conditions that must hold.
        unlabelled: whether images are packed without labels.
        optional: whether images are packed without labels if there is no column `label_key`.
        targets: columns of target values, with their units.
        group: column whose equal values make a group; "" for none.
        sky: columns of right ascension and declination in degrees, and a radius in arcsec within which images are one
            group.
    """

    label_key: str = "label"
    classes: Sequence[str] = ()
    where: Sequence[str] = ()
    unlabelled: bool = False
    optional: bool = False
    targets: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    sky: tuple[str, str, float] | None = None


def choose(layout: Layout, choice: Choice) -> Layout:
    """Return the selected images of a layout, with their classes, targets and groups.

    Args:
        layout: content of the data set.
        choice: the selection.

    Raises:
        ValueError: an image has no label, target or group (the message names it), or the selection does not fit the
            layout.
    """
    chosen = only_where(layout, choice.where)
    if layout.classes:
        chosen = only_classes(chosen, choice.classes)
    elif any(":" in entry for entry in choice.classes):
        chosen = by_conditions(chosen, choice.classes)
    elif choice.unlabelled:
        chosen = noted(chosen, "images are unlabelled, as --unlabelled requests")
    elif not layout.columns and not layout.unfit:
        chosen = noted(chosen, f"images are unlabelled: {layout.source} contains only images")
    elif choice.optional and choice.label_key not in {*layout.columns, *layout.unfit} and not choice.classes:
        told = f"there is no column {choice.label_key!r}; --label_key COLUMN names another"
        chosen = noted(chosen, f"images are unlabelled: {told}")
    else:
        chosen = by_labels(chosen, choice.label_key, choice.classes)
    chosen = with_groups(with_targets(chosen, choice), choice)
    refuse_names(chosen)
    return chosen


def noted(layout: Layout, *notes: str) -> Layout:
    """Return a layout with more notes.

    Args:
        layout: content of the data set.
        *notes: notes for the user.
    """
    return replace(layout, notes=[*layout.notes, *notes])


def only(layout: Layout, kept: np.ndarray) -> Layout:
    """Return the images of a layout for which a mask is true.

    Args:
        layout: content of the data set, N images.
        kept: (N,) bool.
    """
    records = [record for record, keep in zip(layout.records, kept.tolist(), strict=True) if keep]
    return replace(layout, records=records, columns={name: cells[kept] for name, cells in layout.columns.items()})


def pick(layout: Layout, name: str) -> np.ndarray:
    """Return a column as texts (N,).

    Args:
        layout: content of the data set.
        name: name of the column.

    Raises:
        ValueError: there is no such column; the message lists those that exist.
    """
    if name in layout.columns:
        return layout.columns[name]
    if name in layout.unfit:
        raise ValueError(
            f"{layout.source}: {name!r} has the shape {layout.unfit[name]}; give one value per image, (N,) or (N, 1), "
            "or one-hot rows (N, K)."
        )
    if not layout.columns:
        raise ValueError(
            f"{layout.source} has no {name!r}; it contains only images. Give --catalog CSV with a column {name!r}."
        )
    raise ValueError(
        f"{layout.catalog or layout.source}: no column {name!r}; the columns are {sorted(layout.columns)}."
    )


def mask_of(layout: Layout, condition: str) -> np.ndarray:
    """Return for which images a condition holds, (N,) bool.

    Args:
        layout: content of the data set.
        condition: condition on a column, such as `grade>=2`.
    """
    return holds(condition, pick(layout, parse_condition(condition)[0]))


def only_where(layout: Layout, where: Sequence[str]) -> Layout:
    """Return the images for which all conditions hold.

    Args:
        layout: content of the data set.
        where: conditions on columns.

    Raises:
        ValueError: no image is left.
    """
    if not where:
        return layout
    kept = np.all([mask_of(layout, condition) for condition in where], axis=0)
    told = " and ".join(where)
    if not kept.any():
        raise ValueError(f"{layout.source}: none of {len(kept)} images satisfies {told}; change --where.")
    return noted(only(layout, kept), f"{kept.sum()} of {len(kept)} images satisfy {told}")


def only_classes(layout: Layout, classes: Sequence[str]) -> Layout:
    """Return the images of some of the classes of a layout, renumbered in the given order.

    Args:
        layout: content of the data set.
        classes: names of classes; empty for all.

    Raises:
        ValueError: unknown class, or a class without images.
    """
    if not classes:
        return layout
    wrong = [name for name in classes if name not in layout.classes]
    if wrong or len(set(classes)) != len(classes):
        raise ValueError(f"--classes {','.join(classes)}: choose from {', '.join(layout.classes)}, each at most once.")
    numbers = {layout.classes.index(name): k for k, name in enumerate(classes)}
    kept = np.array([record.label in numbers for record in layout.records], dtype=bool)
    rest = Counter(layout.classes[record.label] for record in layout.records if record.label not in numbers)
    chosen = only(layout, kept)
    records = [replace(record, label=numbers[record.label]) for record in chosen.records]
    notes = [f"ignored, not in --classes: {count} {name}" for name, count in rest.items()]
    return noted(require_images(replace(chosen, records=records, classes=tuple(classes))), *notes)


def require_images(layout: Layout) -> Layout:
    """Return the same layout. Raises ValueError if one of its classes has no image."""
    counts = Counter(record.label for record in layout.records)
    empty = [name for k, name in enumerate(layout.classes) if not counts[k]]
    if empty:
        raise ValueError(
            f"{layout.catalog or layout.source}: no image has the class {few(empty)}; remove it from --classes, or "
            "correct its name or condition."
        )
    return layout


def by_conditions(layout: Layout, entries: Sequence[str]) -> Layout:
    """Return the images for which the condition of a class holds.

    Args:
        layout: content of the data set.
        entries: NAME:CONDITION of each class.

    Raises:
        ValueError: an image is of two classes (the message names the first), or a class has no image.
    """
    conditions = split_classes(list(entries))
    masks = np.stack([mask_of(layout, condition) for condition in conditions.values()])
    several = masks.sum(axis=0) > 1
    if several.any():
        place = int(np.argmax(several))
        of = [name for name, mask in zip(conditions, masks, strict=True) if mask[place]]
        raise ValueError(
            f"{layout.source}: {layout.told(place)} satisfies the conditions of several classes, {of}; give "
            "mutually exclusive conditions."
        )
    labels, kept = masks.argmax(axis=0), np.asarray(masks.any(axis=0))
    chosen = labelled(layout, labels, tuple(conditions), kept)
    return (
        noted(chosen, f"{(~kept).sum()} of {len(kept)} images satisfy the condition of no class and are ignored")
        if (~kept).any()
        else chosen
    )


def labelled(layout: Layout, labels: np.ndarray, classes: tuple[str, ...], kept: np.ndarray) -> Layout:
    """Return the kept images with their classes.

    Args:
        layout: content of the data set, N images.
        labels: number of the class of each image, (N,).
        classes: names of the classes.
        kept: images that are kept, (N,) bool.

    Raises:
        ValueError: a class has no image, or its name is not printable.
    """
    chosen = only(layout, kept)
    strange = [name for name in classes if not name.isprintable()]
    if strange:
        raise ValueError(
            f"{layout.catalog or layout.source}: the class name {strange[0]!r} has characters that cannot be "
            "encoded; rename it."
        )
    pairs = zip(chosen.records, labels[kept].tolist(), strict=True)
    records = [replace(record, label=label) for record, label in pairs]
    return require_images(replace(chosen, records=records, classes=classes))


def by_labels(layout: Layout, key: str, given: Sequence[str]) -> Layout:
    """Return all images, with the classes from a column.

    Args:
        layout: content of the data set.
        key: column of the labels.
        given: names of the classes in the order of their numbers; empty for all labels, sorted.

    Raises:
        ValueError: an image has no label, or a label that is not a class; the message names the image.
    """
    if key not in layout.columns and key not in layout.unfit:
        raise ValueError(
            f"{layout.catalog or layout.source}: no column {key!r}; the columns are {sorted(layout.columns)}. "
            "Give the column of "
            "labels with --label_key, or --unlabelled 1 to pack without labels."
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
                f"{layout.source}: {layout.told(place)} has the label {label!r}, which is not among the classes "
                f"{list(classes)}. Add it to --classes, or exclude such images with --where '{key}!={label}'."
            )
    every = np.ones(len(labels), dtype=bool)
    return labelled(layout, np.array([numbers[label] for label in labels]), classes, every)


def plain_label(cell: str) -> str:
    """Return a label without surrounding spaces, with 1.0 written as 1.

    Example:
        >>> plain_label(" 1.0")
        '1'
    """
    whole = WHOLE.fullmatch(cell.strip())
    return whole[1] if whole else cell.strip()


def refuse_missing(layout: Layout, key: str, labels: Sequence[str], classes: Sequence[str]) -> None:
    """Raise an error, naming the first image, if labels are missing.

    Args:
        layout: content of the data set.
        key: column of the labels.
        labels: label of each image.
        classes: names of the classes; a name that looks like an empty cell is a label.

    Raises:
        ValueError: a label is missing.
    """
    missing = is_missing(np.array(labels, dtype=object)) & ~np.isin(labels, list(classes))
    if missing.any():
        place = int(np.argmax(missing))
        raise ValueError(
            f"{layout.catalog or layout.source}: {layout.told(place)} has no label ({labels[place]!r} in {key!r}); "
            f"{missing.sum()} of {len(labels)} images have none. Exclude them with --where '{key}!=', or pack all "
            "images without labels with --unlabelled 1."
        )


def all_classes(layout: Layout, key: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the different labels, sorted, numbers by value.

    Args:
        layout: content of the data set.
        key: column of the labels.
        labels: label of each image.

    Raises:
        ValueError: the labels look like target values, names, or -1 for none.
    """
    classes = sorted(set(labels))
    numbers = [number(label) for label in classes]
    origin = layout.catalog or layout.source
    for label, value in zip(classes, numbers, strict=True):
        place = labels.index(label)
        if value is not None and (not value.is_finite() or value != int(value)):
            raise ValueError(
                f"{origin}: {layout.told(place)} has the label {label} in {key!r}, which is not an integer. Give "
                f"--targets {key} for a regression target (and --unlabelled 1 if there are no other labels), or "
                "define classes by conditions on it, --classes NAME:CONDITION,..."
            )
        if value is not None and value < 0:
            raise ValueError(
                f"{origin}: {layout.told(place)} has the label {label} in {key!r}; negative labels often mean "
                "unlabelled. "
                f"Exclude such images with --where '{key}>=0', or list all labels: --classes={','.join(classes)}."
            )
    if len(classes) == len(labels) > 2:
        raise ValueError(
            f"{origin}: each image has a different label in {key!r}, such as {few(classes)}. Give --label_key COLUMN "
            "for a column of classes, --targets for regression targets, or --unlabelled 1."
        )
    if all(value is not None for value in numbers):
        classes = sorted(classes, key=int)
    return tuple(classes)


def with_targets(layout: Layout, choice: Choice) -> Layout:
    """Return the images with their target values.

    Args:
        layout: content of the data set.
        choice: the selection, with the columns of the targets.

    Raises:
        ValueError: a cell is not a number (the message names the image), or a name is not allowed.
    """
    wanted = {name: unit or layout.units.get(name, "") for name, unit in choice.targets.items()}
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
    notes = [f"{count} of {len(records)} images have no value of {name}" for name, count in unknown.items() if count]
    return noted(replace(layout, records=records, numbers=wanted), *notes)


def numbers_of(layout: Layout, name: str) -> np.ndarray:
    """Return a column of numbers (N,), NaN for empty cells.

    Args:
        layout: content of the data set.
        name: name of the column.

    Raises:
        ValueError: a cell is not a finite number or an integer with more digits than float64 keeps (the message names
            the image), or all cells are empty.
    """
    cells = pick(layout, name)
    missing = is_missing(cells)
    if missing.all():
        raise ValueError(
            f"{layout.catalog or layout.source}: no image has a number in {name!r}; give a column of numbers."
        )
    found = np.full(len(cells), np.nan)
    for place in np.flatnonzero(~missing).tolist():
        value = number(cells[place])
        if value is None or not is_kept(value):
            raise ValueError(
                f"{layout.catalog or layout.source}: {layout.told(place)} has {cells[place][:60]!r} in {name!r}, which "
                "is not a float64 number. Correct it, leave the cell empty, or exclude the image with --where."
            )
        found[place] = float(value)
    return found


def is_kept(value: Decimal) -> bool:
    """Whether float64 keeps a number: exactly for integers, otherwise to 15 digits."""
    kept = float(value)
    if not np.isfinite(kept):
        return False
    lost = abs(Decimal(kept) - value)
    return lost == 0 if value == value.to_integral_value() else lost <= abs(value) * Decimal("1e-15")


def with_groups(layout: Layout, choice: Choice) -> Layout:
    """Return the images with their groups, whose number is a target, too.

    Args:
        layout: content of the data set.
        choice: the selection, with the column or sky radius of the groups.

    Raises:
        ValueError: the group of an image is unknown (the message names it), or splits cut a group.
    """
    groupings = []
    if choice.group:
        cells = pick(layout, choice.group)
        refuse_unknown(layout, choice.group, is_missing(cells), "has no value")
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
    note = f"{len(sizes)} groups: {(sizes > 1).sum()} with several images, the largest with {sizes.max()}"
    return noted(replace(layout, records=records, numbers={**layout.numbers, GROUP: GROUP_UNIT}), note)


def refuse_unknown(layout: Layout, name: str, bad: np.ndarray, what: str) -> None:
    """Raise an error, naming the first image, if what decides a group is unknown.

    Args:
        layout: content of the data set, N images.
        name: name of the column.
        bad: images without a valid value, (N,) bool.
        what: what is wrong with them, in words.

    Raises:
        ValueError: an image has no valid value.
    """
    if bad.any():
        place = int(np.argmax(bad))
        raise ValueError(
            f"{layout.catalog or layout.source}: {layout.told(place)} {what} in {name!r} ({bad.sum()} of "
            f"{len(bad)} images), "
            "so its group is unknown. Add the values, or exclude these images with --where."
        )


def positions(layout: Layout, sky: tuple[str, str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascensions and declinations in degrees, (N,) each.

    Args:
        layout: content of the data set.
        sky: the two columns, and a radius that is not used.

    Raises:
        ValueError: a position is missing or out of range; the message names the image.
    """
    ra, dec = (numbers_of(layout, name) for name in sky[:2])
    for name, values, limits in ((sky[0], ra, (-180, 360)), (sky[1], dec, (-90, 90))):
        inside = (values >= limits[0]) & (values <= limits[1])
        refuse_unknown(layout, name, ~inside, f"has no angle from {limits[0]} to {limits[1]} degrees")
    return ra, dec


def refuse_cut(layout: Layout, groups: np.ndarray) -> None:
    """Raise an error, naming an example, if splits of the layout cut a group.

    Args:
        layout: content of the data set, N images.
        groups: number of the group of each image, (N,).

    Raises:
        ValueError: a group is in two splits.
    """
    first: dict[int, int] = {}
    for place, group in enumerate(groups.tolist()):
        other = first.setdefault(group, place)
        here, there = layout.records[place], layout.records[other]
        if here.split != there.split:
            raise ValueError(
                f"{layout.source}: {there.name} in the split {there.split} and {here.name} in {here.split} "
                "belong to the "
                "same group. Move each group into one split, or pack one folder of all images with fractions."
            )


def refuse_names(layout: Layout) -> None:
    """Raise ValueError if a name is not printable, or two images of a split have the same name."""
    counts = Counter((record.split, record.name) for record in layout.records)
    for (_, name), count in counts.items():
        if not name.isprintable() or not name:
            raise ValueError(f"{layout.source}: the image name {name!r} has unprintable characters; rename it.")
        if count > 1:
            raise ValueError(f"{layout.source}: {count} images have the name {name!r}; give each a unique name.")
