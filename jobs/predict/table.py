"""The table of predictions: its columns, and the rows of a range of images. n images, K classes, D features."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

LARGEST = float(np.finfo(np.float16).max)
FACTS = b"deeplense"
"""Key of the facts about all files, in the metadata of each file."""

PROBLEM = "problem"
"""Column that says why an image has no prediction."""


def class_columns(
    classes: Sequence[str], *, logits: np.ndarray, probabilities: np.ndarray, spread: np.ndarray | None
) -> dict[str, pa.Array]:
    """Return the columns of a classification.

    Args:
        classes: names of the classes.
        logits: (n, K).
        probabilities: (n, K).
        spread: standard deviation of the probabilities of the runs, (n, K); None for one run.
    """
    kinds = {"probability": probabilities, "logit": logits} | ({} if spread is None else {"spread": spread})
    return {
        f"{kind}_{name}": pa.array(values[:, k].astype(np.float32))
        for kind, values in kinds.items()
        for k, name in enumerate(classes)
    }


def set_columns(classes: Sequence[str], sets: np.ndarray | None) -> dict[str, pa.Array]:
    """Return the columns that say which classes are in the set of each image, bool.

    Args:
        classes: names of the classes.
        sets: (n, K) bool; None if there are none.
    """
    return {} if sets is None else {f"in_set_{name}": pa.array(sets[:, k]) for k, name in enumerate(classes)}


def known_columns(known: Mapping[str, np.ndarray], rows: range, seen: np.ndarray) -> dict[str, pa.Array]:
    """Return the columns that identify the images.

    Args:
        known: `id`, `source` and, where known, `ra` and `dec`, (n,) each.
        rows: numbers of the images.
        seen: whether the images were used in the training of a run, (n,) bool.
    """
    texts = {name: pa.array(known[name].tolist(), pa.string()) for name in ("id", "source")}
    more = {name: pa.array(values) for name, values in known.items() if name not in texts}
    return texts | {"index": pa.array(np.arange(rows.start, rows.stop))} | more | {"seen": pa.array(seen)}


def embedding_column(features: np.ndarray, problems: Sequence[str | None]) -> pa.Array:
    """Return features (n, D) as a column of lists of float16; larger numbers become the largest float16. An image with
    a problem has NaN: some programs cannot read a table in which such a list is missing."""
    halves = np.clip(features, -LARGEST, LARGEST).astype(np.float16)
    halves[[problem is not None for problem in problems]] = np.nan
    return pa.FixedSizeListArray.from_arrays(pa.array(halves.ravel()), features.shape[1])


def without(columns: Mapping[str, pa.Array], problems: Sequence[str | None]) -> dict[str, pa.Array]:
    """Return columns (n,) with no value where an image has a problem."""
    rows = pa.array([k if problem is None else None for k, problem in enumerate(problems)], pa.int64())
    return {name: values.take(rows) for name, values in columns.items()}


def make_table(columns: Mapping[str, pa.Array], facts: Mapping[str, Any]) -> pa.Table:
    """Return a table with the facts in its metadata."""
    return pa.table(dict(columns), metadata={FACTS: kept_facts(facts)})


def kept_facts(facts: Mapping[str, Any]) -> bytes:
    """Return the facts in each file: those of the plan without the calibration of cross-conformal sets, which may be
    large."""
    return json.dumps({name: value for name, value in facts.items() if name != "cross"}).encode()
