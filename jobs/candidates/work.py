"""Make a page with the images of the highest scores."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from deeplense.candidates.page import Candidate, Facts, write_page
from deeplense.candidates.similar import most_similar
from deeplense.candidates.stamps import Stamps, colour_bands, encode, middle, shrunk
from deeplense.files import read_json
from jobs.candidates.settings import Settings
from jobs.console import say
from jobs.data.predictions import ImageReader, Predictions, image_reader, positive_class, read_predictions
from jobs.settings import require

FORMAT = "deeplense-candidates/1"
RECORD = "candidates.json"
MOST_PIXELS = 200
"""Pixels a side of an image on the page; larger images are averaged down."""
ROWS = 256
Rows = dict[str, list[Any]]
COLUMNS = ("id", "source", "index", "ra", "dec")


def run(settings: Settings) -> int:
    """Write the page, and print how it is used."""
    refuse_other_content(settings.output)
    predictions = read_predictions(settings.predictions)
    class_name = score_class(predictions, settings.class_name)
    rows = best_rows(predictions, class_name, settings.top)
    reader = image_reader(predictions, settings.dataset)
    refuse_other_names(reader, rows)
    bands = colour_bands(reader.bands, settings.bands)
    stamps, factor = read_stamps(reader, rows["index"], bands, settings.crop)
    candidates, similar = candidates_of(rows), similar_of(rows, settings.similar)
    scale, count = reader.pixel_scale_arcsec, len(candidates)
    facts = Facts(
        title=f"Candidates: {class_name}",
        lead=f"The {count} highest scores of {predictions.num_images} images, from {reader.name}",
        key=key_of(predictions, class_name),
        score_name=f"probability of {class_name}",
        bands=[reader.bands[k] for k in bands],
        pixel_scale_arcsec=None if scale is None else scale * factor,
    )
    record = record_of(settings, predictions, facts)
    write_page(settings.output, facts=facts, candidates=candidates, stamps=stamps, similar=similar, record=record)
    say(f"page: {settings.output / 'index.html'}, {count} images with scores {span(rows['score'])}")
    if factor > 1:
        say(f"The images are large: {factor} x {factor} pixels are averaged for one. --crop N shows the middle.")
    if settings.similar and not similar:
        say("The predictions have no embeddings, so similar images are not shown.")
    say("Open it in a browser. To send it to others, copy the whole folder.")
    return 0


def best_rows(predictions: Predictions, class_name: str, count: int) -> Rows:
    """Return the rows with the highest scores, the highest first: `id`, `source`, `index` and `score`, and others that
    the predictions have. Of images with the same name and source only the first is kept, because their grades could not
    be told apart; the others are printed."""
    scores = predictions.scores(class_name)
    numbers = highest(predictions.ranking(class_name), count)
    require(len(numbers) > 0, f"{predictions.folder} has no image with a score.")
    rows = predictions.rows(numbers, [*COLUMNS, f"spread_{class_name}", "embedding"])
    lacking = [name for name in ("id", "index") if name not in rows]
    require(not lacking, f"{predictions.folder} has no column {' and '.join(lacking)}; write the predictions again.")
    default = str(predictions.document.get("dataset") or predictions.folder)
    sources = [default if source is None else str(source) for source in rows.get("source", [None] * len(numbers))]
    rows |= {"source": sources, "score": scores[numbers].tolist(), "spread": rows.get(f"spread_{class_name}", [])}
    kept = first_of_each(list(zip(sources, rows["id"], strict=True)))
    left = sorted({str(rows["id"][k]) for k in set(range(len(numbers))) - set(kept)})
    if left:
        count_left = len(numbers) - len(kept)
        say(f"left out, because an image with a higher score has the same name: {count_left} ({few(left)})")
    return {name: [values[k] for k in kept] for name, values in rows.items() if values}


def first_of_each(values: Sequence[Any]) -> list[int]:
    """Return the places of values that do not stand before.

    Example:
        >>> first_of_each(["a", "b", "a", "c"])
        [0, 1, 3]
    """
    return sorted({value: place for place, value in reversed(list(enumerate(values)))}.values())


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, as text."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def span(scores: Sequence[float]) -> str:
    """Return the highest and the lowest score, as text."""
    return f"from {scores[0]:.4g} to {scores[-1]:.4g}"


def score_class(predictions: Predictions, asked: str) -> str:
    """Return the class whose probability is the score. Raises ValueError if there is no such class, or if it is unclear
    which is meant."""
    classes = predictions.classes
    require(bool(classes), f"{predictions.folder} has no classes: it is of a regression, which gives no scores.")
    return positive_class(classes, asked, told="the score")


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of the highest scores, the highest first; of equal scores the earlier row first. Images
    without a score are left out.

    Example:
        >>> highest(np.array([0.1, 0.9, np.nan, 0.9, 0.5]), 3).tolist()
        [1, 3, 4]
    """
    known = np.flatnonzero(np.isfinite(scores))
    return known[np.argsort(-scores[known], kind="stable")[:count]]


def candidates_of(rows: Rows) -> list[Candidate]:
    """Return the candidates of rows."""
    count = len(rows["id"])
    spreads, ra, dec = (rows.get(name, [None] * count) for name in ("spread", "ra", "dec"))
    return [
        Candidate(
            name=str(rows["id"][k]),
            source=rows["source"][k],
            score=rows["score"][k],
            spread=known(spreads[k]),
            ra=known(ra[k]),
            dec=known(dec[k]),
        )
        for k in range(count)
    ]


def known(value: Any) -> float | None:
    """Return a number, or None if it is missing or not finite."""
    return float(value) if value is not None and np.isfinite(value) else None


def refuse_other_names(reader: ImageReader, rows: Rows) -> None:
    """Raise ValueError unless the images have the names that the predictions give."""
    if reader.ids is None:
        return
    names = reader.ids()
    for index, name in zip(rows["index"], rows["id"], strict=True):
        inside = 0 <= index < len(names)
        require(
            inside and names[index] == name,
            f"image {index} of {reader.name} is {names[index] if inside else 'missing'}, but the predictions call it "
            f"{name}; predict the images again.",
        )


def read_stamps(
    reader: ImageReader, indices: Sequence[int], bands: tuple[int, int, int], crop: int
) -> tuple[Stamps, int]:
    """Read and encode the images with these numbers. Returns them, and the number of pixels a side that were averaged
    for one."""
    used = sorted(set(bands))
    planes = (used.index(bands[0]), used.index(bands[1]), used.index(bands[2]))
    factors = set()

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(indices), ROWS):
            images = reader.read(indices[start : start + ROWS])[:, used]
            small, factor = shrunk(middle(images, crop or max(images.shape[-2:])), MOST_PIXELS)
            factors.add(factor)
            yield small

    return encode(parts(), planes=planes, is_stretched=reader.is_stretched), max(factors)


def similar_of(rows: Rows, count: int) -> list[list[tuple[int, float]]]:
    """Return the similar images of each, or none without embeddings."""
    found = rows.get("embedding")
    if not count or not found or any(each is None for each in found):
        return []
    return most_similar(np.array(found, dtype=np.float64), count)


def key_of(predictions: Predictions, class_name: str) -> str:
    """Return a text that identifies the images and the question, not the scores: grades stay when the same images are
    ranked again by another run."""
    document = predictions.document
    images = document.get("dataset_id") or [line.get("xxh3_128") or line["file"] for line in document["files"]]
    return xxhash.xxh3_128_hexdigest(repr([images, document.get("split"), class_name]).encode())


def record_of(settings: Settings, predictions: Predictions, facts: Facts) -> dict[str, Any]:
    """Return what `candidates.json` says of the page."""
    return {
        "format": FORMAT,
        "predictions": str(settings.predictions),
        "dataset_id": predictions.document.get("dataset_id"),
        "class": facts.score_name,
        "top": settings.top,
        "bands": list(facts.bands),
        "key": facts.key,
    }


def refuse_other_content(folder: Path) -> None:
    """Raise ValueError if a folder has anything but such a page, which may be replaced."""
    remedy = "give another --output, or remove it"
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; {remedy}.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    path = folder / RECORD
    there = read_json(path) if path.is_file() else None
    right = isinstance(there, dict) and there.get("format") == FORMAT
    require(right, f"{folder} is not empty and not a page of candidates, and would be overwritten; {remedy}.")
