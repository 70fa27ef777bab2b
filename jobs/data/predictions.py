"""Predictions of `deeplense predict`: a folder with `predictions.json` and Parquet files with a row per image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.files import checksum, inside, read_json
from jobs.data.source_settings import SourceSettings
from jobs.settings import from_plain, require

FORMAT = "deeplense-predictions/1"
DOCUMENT = "predictions.json"
PROBABILITY = "probability_"
LENSES = ("lens", "lenses", "lensed")
"""Names of the class that is looked for, if no other is given."""
ROWS = 65536
"""Rows that are read at once."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one or more runs for N images.

    Args:
        folder: folder of the predictions.
        document: content of predictions.json.
        files: the Parquet files, in order.
    """

    folder: Path
    document: Mapping[str, Any]
    files: Sequence[Path]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.document["classes"])

    @property
    def num_images(self) -> int:
        """N."""
        return int(self.document["num_images"])

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(opened(self.files[0]).schema_arrow.names) if self.files else []

    def scores(self, class_name: str) -> np.ndarray:
        """Return the probability of a class for each image, (N,) float64; NaN where it is unknown."""
        name = f"{PROBABILITY}{class_name}"
        require(name in self.columns, f"{self.folder} has no column {name}; it has {', '.join(self.columns)}.")
        parts = [as_array(batch.column(0)) for _, batch in batches(self.files, [name])]
        return np.concatenate(parts) if parts else np.zeros(0)

    def ranking(self, class_name: str) -> np.ndarray:
        """Return numbers that rank the images by the probability of a class, (N,) float64; NaN where it is unknown.
        These are its log odds, which still differ where probabilities are rounded to 1, if there are logits."""
        from deeplense.evaluation.metrics import log_odds

        names = [f"logit_{name}" for name in self.classes]
        if not set(names) <= set(self.columns):
            return self.scores(class_name)
        place, parts = self.classes.index(class_name), [np.zeros(0)]
        for _, batch in batches(self.files, names):
            logits = np.stack([as_array(batch.column(batch.schema.names.index(name))) for name in names], axis=1)
            known = np.asarray(np.isfinite(logits).all(axis=1))
            odds = log_odds(np.where(known[:, None], logits, 0))[:, place]
            parts.append(np.where(known, odds, np.nan))
        return np.concatenate(parts)

    def rows(self, numbers: np.ndarray, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return columns of some rows, in the order of `numbers`.

        Args:
            numbers: numbers of the rows, 0 to N - 1, (n,), each once.
            names: names of the columns; those that do not exist are left out.

        Example:
            >>> predictions.rows(np.array([5, 2]), ["id", "index"])  # doctest: +SKIP
            {'id': ['b', 'a'], 'index': [5, 2]}
        """
        known = [name for name in names if name in self.columns]
        order = np.argsort(numbers)
        found: dict[str, list[Any]] = {name: [] for name in known}
        for start, batch in batches(self.files, known):
            first, last = np.searchsorted(numbers[order], [start, start + len(batch)])
            chosen = batch.take(numbers[order][first:last] - start) if last > first else batch.slice(0, 0)
            for name in known:
                found[name] += as_list(chosen.column(name))
        place = np.argsort(order)
        return {name: [values[k] for k in place] for name, values in found.items()}


def positive_class(classes: Sequence[str], asked: str, *, told: str) -> str:
    """Return the class that is looked for: the one that is given, or the one called lens, lenses or lensed.

    Args:
        classes: names of all classes.
        asked: name of the class; "" if none is given.
        told: what the class is needed for, for messages.

    Raises:
        ValueError: there is no such class, or none is given and it is not clear.

    Example:
        >>> positive_class(["other", "lens"], "", told="the score")
        'lens'
    """
    every = ", ".join(classes)
    if asked:
        require(asked in classes, f"there is no class {asked!r}; --class_name must be one of {every}.")
        return asked
    found = [name for name in classes if name.casefold() in LENSES]
    require(len(found) == 1, f"it is unclear which class {told} is about; give --class_name, one of {every}.")
    return found[0]


def opened(path: Path) -> Any:
    """Return an open Parquet file. Raises ValueError if it is not one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("predictions need a package that is not installed: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file ({error}); write the predictions again.") from error


def batches(files: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield some columns of all files piece by piece, with the number of the first row of each piece."""
    start = 0
    for path in files:
        for batch in opened(path).iter_batches(ROWS, columns=list(names)):
            yield start, batch
            start += len(batch)


def as_list(column: Any) -> list[Any]:
    """Return a column as a list, None for null; embeddings as arrays."""
    size = getattr(column.type, "list_size", 0)
    if not size or column.null_count:
        return column.to_pylist()
    return list(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size))


def as_array(column: Any) -> np.ndarray:
    """Return a column of numbers as float64, NaN for null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def read_predictions(folder: Path) -> Predictions:
    """Open a folder of predictions and compare its files with what it says of them.

    Args:
        folder: folder that `deeplense predict` wrote.

    Raises:
        ValueError: it has no readable predictions.json, or a file is missing, damaged or of another size.
    """
    path = folder / DOCUMENT
    require(
        path.is_file(),
        f"{folder} has no {DOCUMENT}: it is not a finished folder of predictions. Give the folder that "
        "`deeplense predict` wrote, or run that command again to finish it.",
    )
    document = read_json(path)
    found = document.get("format") if isinstance(document, dict) else None
    require(found == FORMAT, f"{path} has the format {found!r}, but this version of deeplense reads only {FORMAT}.")
    refuse_other_types(path, document)
    files = [checked_file(folder, line, path) for line in document["files"]]
    total = sum(line["num_images"] for line in document["files"])
    told = document["num_images"]
    require(total == told, f"{path} says {told} images, but its files have {total}; write the predictions again.")
    return Predictions(folder, document, files)


def refuse_other_types(path: Path, document: Mapping[str, Any]) -> None:
    """Raise ValueError if predictions.json lacks a key or one has another type."""
    classes, files = document.get("classes"), document.get("files")
    texts = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(texts and len(set(classes)) == len(classes), f"{path} does not have a list of different classes.")  # type: ignore[arg-type]
    require(type(document.get("num_images")) is int, f"{path} does not have the number of images.")
    right = isinstance(files, list) and all(
        isinstance(line, dict) and isinstance(line.get("file"), str) and type(line.get("num_images")) is int
        for line in files
    )
    require(right, f"{path} does not list its files with their numbers of images; write the predictions again.")


def checked_file(folder: Path, line: Mapping[str, Any], document: Path) -> Path:
    """Return the path of one Parquet file. Raises ValueError if it is missing, damaged or of another size."""
    path = inside(folder, line["file"], record=document)
    again = "copy the folder again, or write the predictions again"
    require(path.is_file(), f"{document} lists {line['file']}, but there is no such file; {again}.")
    digest = line.get("xxh3_128")
    require(digest is None or digest == checksum(path), f"{path} is damaged: its checksum is another one; {again}.")
    found = opened(path).metadata.num_rows
    require(found == line["num_images"], f"{path} has {found} images instead of {line['num_images']}; {again}.")
    return path


@dataclass(frozen=True)
class ImageReader:
    """Access to the images that were predicted.

    Args:
        read: returns the images with these numbers (`index` of the predictions), (n, C, H, W) float32.
        name: what is read, for messages.
        bands: names of the bands, (C,).
        pixel_scale_arcsec: side of a pixel, in arcsec; None if unknown.
        is_stretched: whether the images are ready to be shown: whole numbers from 0 to 255.
        ids: returns the names of all images by number; None if the reader does not know them.
    """

    read: Callable[[Sequence[int]], np.ndarray]
    name: str
    bands: tuple[str, ...]
    pixel_scale_arcsec: float | None = None
    is_stretched: bool = False
    ids: Callable[[], Sequence[str]] | None = None


def image_reader(predictions: Predictions, dataset: Path | None = None) -> ImageReader:
    """Return access to the images of predictions: splits of a data set, or files.

    Args:
        predictions: the predictions.
        dataset: folder of the data set or of the files, if it is no longer where predictions.json says.

    Raises:
        ValueError: there are no such images, or they are others.
    """
    from jobs.data.images import ShardImages

    document = predictions.document
    given = dataset or (Path(document["dataset"]) if document.get("dataset") else None)
    require(given is not None, f"{predictions.folder} does not say where its images are; give --dataset.")
    assert given
    require(given.exists(), f"the images of {predictions.folder} are not at {given}; give --dataset.")
    images = opened_images(given, document)
    same = document.get("dataset_id") in (None, images.identity)
    require(same, f"{given} has other images than those that {predictions.folder} is about; give --dataset.")
    schema = images.split.schema if isinstance(images, ShardImages) else None
    return ImageReader(
        images.some,
        name=images.name,
        bands=images.bands or tuple(f"band{k}" for k in range(images.shape[0])),
        pixel_scale_arcsec=images.pixels[1],
        is_stretched=schema is not None and schema.dtype == "uint8" and (schema.scale, schema.zero) == (1.0, 0.0),
        ids=(lambda: images.split.ids) if isinstance(images, ShardImages) else None,
    )


def opened_images(place: Path, document: Mapping[str, Any]) -> Any:
    """Open the images that predictions.json describes, at this place."""
    from jobs.data.images import open_files, open_shards

    if not document.get("source"):
        splits = document.get("splits") or [str(document.get("split"))]
        return open_shards(place, splits)
    told = dict(document["source"]) | {"source": str(place)}
    return open_files(from_plain(SourceSettings, told))
