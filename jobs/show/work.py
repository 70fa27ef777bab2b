"""Show the content of a data set."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deeplense.data.dataset import Split
from deeplense.evaluation import plots
from deeplense.files import replacing
from jobs.console import say
from jobs.data.folders import find_dataset, splits_of
from jobs.settings import require
from jobs.show.settings import Settings

UNLABELLED = "unlabelled"
PICTURE = 1.4
"""Width of an image in the figure, in inches."""
LONGEST_NAME = 20


def run(settings: Settings) -> int:
    """Print what a data set contains, and write a figure of its first images."""
    folder = find_dataset(settings.dataset, settings.data_root)
    names = splits_of(folder)
    shown = settings.split or ("train" if "train" in names else names[0])
    require(shown in names, f"{folder} has no split {shown!r}; it has {', '.join(names)}.")
    splits = {name: Split(folder / name) for name in names}
    for line in description(folder, splits[shown]):
        say(line)
    for line in [*counts(splits), *targets(splits[shown]), *columns(splits[shown])]:
        say(line)
    if settings.num_images:
        output = settings.output or Path(f"{folder.resolve().name}.png")
        draw_to(output, splits[shown], settings.num_images)
        say(f"\nfigure: {output}, the first images of each class of the split {shown}")
    return 0


def description(folder: Path, split: Split) -> Iterator[str]:
    """Yield lines on the properties that all images share."""
    schema = split.schema
    channels, height, width = schema.shape
    scale = "unknown" if schema.pixel_scale_arcsec is None else f"{schema.pixel_scale_arcsec:g} arcsec"
    yield f"{folder}: {split.schema.split} has the id {split.dataset_id[:16]}"
    bands = f"{channels} band{'s' if channels > 1 else ''}: {', '.join(schema.bands)}"
    yield f"  images      {height} x {width} pixels, {bands}"
    yield f"  pixels      {schema.dtype}, unit {schema.unit or 'unknown'}, pixel scale {scale}"
    compressed = "" if schema.compression == "none" else f", compressed by {schema.compression}"
    yield f"  made by     {schema.provenance.get('made_by', 'unknown')}{compressed}"


def counts(splits: dict[str, Split]) -> Iterator[str]:
    """Yield a table with the number of images by split and class."""
    classes = next(iter(splits.values())).schema.classes
    heads = ["split", "images", *classes, UNLABELLED]
    rows = [
        [name, len(split), *((split.labels == k).sum() for k in range(len(classes))), (split.labels < 0).sum()]
        for name, split in splits.items()
    ]
    yield from ("", *table(heads, rows))


def targets(split: Split) -> Iterator[str]:
    """Yield a table with the range of each target of a split."""
    if not split.schema.targets:
        return
    rows = []
    for name, unit in split.schema.targets.items():
        values = split.column(f"target/{name}")
        known = values[np.isfinite(values)]
        ends = [f"{value:.4g}" for value in np.quantile(known, [0, 0.5, 1])] if len(known) else ["", "", ""]
        rows.append([name, unit or "none", len(known), *ends])
    yield from ("", *table([f"target of {split.schema.split}", "unit", "known", "lowest", "median", "highest"], rows))


def columns(split: Split) -> Iterator[str]:
    """Yield a table of the columns of a split: how many values are known, and the first of them."""
    if not split.schema.columns:
        return
    rows = []
    for name, unit in split.schema.columns.items():
        values = split.column(f"column/{name}")
        known = values[np.isfinite(values)] if values.dtype.kind == "f" else values[values != ""]
        rows.append([name, unit or "none", len(known), str(known[0])[:30] if len(known) else ""])
    yield from ("", *table([f"column of {split.schema.split}", "unit", "known", "first"], rows))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; the first column is flush left, the others flush right."""
    cells = [list(map(str, row)) for row in [heads, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *others = (
            f"{cell:<{width}}" if k == 0 else f"{cell:>{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join([first, *others])


def draw_to(output: Path, split: Split, num_images: int) -> None:
    """Write a figure of the first images of each class, and of those without a label, with their names."""
    require(output.parent.is_dir(), f"the folder {output.parent} of output={output} does not exist; create it.")
    classes = {**dict(enumerate(split.schema.classes)), -1: UNLABELLED}
    chosen = {label: np.flatnonzero(split.labels == label)[:num_images] for label in classes}
    rows = {label: found for label, found in chosen.items() if len(found)}
    indices = np.concatenate(
        [np.pad(found, (0, num_images - len(found)), constant_values=-1) for found in rows.values()]
    )
    labels = np.repeat([*rows], num_images)
    images = np.zeros((len(indices), *split.schema.shape), dtype=np.float32)
    images[indices >= 0] = split.images(indices[indices >= 0])
    titles = [
        f"{classes[label]}\n{shortened(split.ids[index])}" if index >= 0 else ""
        for index, label in zip(indices, labels, strict=True)
    ]
    draw = partial(plots.gallery, images=images, titles=titles, columns=num_images)
    size = PICTURE * num_images, PICTURE * len(rows) * (plots.GAP + 2 * plots.TITLE_LINE)
    with replacing(output) as temporary, temporary.open("wb") as file:
        plots.figure(file, draw, size=size)


def shortened(name: str) -> str:
    """Return a name that fits above an image: its end is kept, where names differ.

    Example:
        >>> shortened("a_name_of_more_than_20_letters")
        '..._than_20_letters'
    """
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"
