"""Folders of predictions, written for tests as `deeplense predict` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from deeplense.files import checksum


def write_predictions(
    folder: Path,
    probabilities: np.ndarray,
    *,
    ids: Sequence[str],
    classes: Sequence[str] = ("lens", "other"),
    dataset: Path | None = None,
    dataset_id: str | None = None,
    split: str = "test",
    embeddings: np.ndarray | None = None,
    more: Mapping[str, Any] | None = None,
    num_files: int = 1,
) -> Path:
    """A folder of predictions for images with these names: probabilities (N, K), in so many files."""
    folder.mkdir(parents=True)
    count = len(ids)
    columns: dict[str, Any] = {
        "id": list(ids),
        "source": [str(dataset)] * count,
        "index": np.arange(count),
        **{f"probability_{name}": probabilities[:, k].astype(np.float32) for k, name in enumerate(classes)},
        **{f"logit_{name}": np.log(probabilities[:, k] + 1e-9).astype(np.float32) for k, name in enumerate(classes)},
        **(more or {}),
    }
    if embeddings is not None:
        flat = pyarrow.array(embeddings.astype(np.float16).ravel())
        columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    table = pyarrow.table(columns)
    lines = []
    for number, rows in enumerate(np.array_split(np.arange(count), num_files)):
        path = folder / f"predictions-{number:05d}.parquet"
        parquet.write_table(table.take(pyarrow.array(rows)), path)
        lines.append({"file": path.name, "num_images": len(rows), "xxh3_128": checksum(path)})
    document = {
        "format": "deeplense-predictions/1",
        "classes": list(classes),
        "dataset": None if dataset is None else str(dataset),
        "split": split,
        "dataset_id": dataset_id,
        "num_images": count,
        "files": lines,
        "runs": ["runs/a"],
    }
    (folder / "predictions.json").write_text(json.dumps(document))
    return folder
