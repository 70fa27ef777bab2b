"""The logged metrics of a run as curves over the steps, and how they are arranged in panels of a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deeplense.evaluation.plots import Curve
from deeplense.records import read_lines
from deeplense.training.tracking import KINDS, METRICS

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
SETS = {"train": "training", "val": "validation"}
"""Prefixes of the names of metrics, and the images that they are of."""
KINDS_OF_PANELS = {"auc": "AUC", "loss": "loss", "mae": "error", "rmse": "error", "bias": "error"}
"""Axes of metrics by a word in their name; any other metric has an axis of its own."""
MAIN_AUC = "val/auc_macro"
LOGGED_BESIDE = ("step", "epoch")


def read_curves(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the logged metrics of a run by name, such as `train/loss`: steps (n,) and values (n,), NaN for a value
    that was not finite."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in read_lines(run / METRICS, KINDS).good.values():
        for name in line.keys() - {*LOGGED_BESIDE}:
            steps, values = curves.setdefault(name, ([], []))
            steps.append(line["step"])
            values.append(line[name])
    return {name: (np.array(steps), np.array(values, dtype=float)) for name, (steps, values) in sorted(curves.items())}


def axis_of(name: str) -> str:
    """Return the label of the axis of a metric.

    Example:
        >>> axis_of("val/auc_cdm"), axis_of("val/log_loss"), axis_of("lr"), axis_of("val/accuracy")
        ('AUC', 'loss', 'learning rate', 'accuracy')
    """
    if name == "lr":
        return "learning rate"
    last = name.rpartition("/")[2]
    return next((axis for word, axis in KINDS_OF_PANELS.items() if word in last.split("_")), last.replace("_", " "))


def title_of(name: str) -> str:
    """Return the name of a metric for a legend.

    Example:
        >>> title_of("val/auc_no_sub"), title_of("val/knn/auc_macro"), title_of("train/loss"), title_of("lr")
        ('validation AUC no_sub', 'validation knn AUC macro', 'training loss', 'learning rate')
    """
    if "/" not in name:
        return axis_of(name)
    of, *middle, last = name.split("/")
    words = f"AUC {last.removeprefix('auc_')}" if last.startswith("auc_") else last.replace("_", " ")
    return " ".join([SETS.get(of, of), *middle, words])


def panels_of(runs: Mapping[str, Curves], names: Sequence[str] = ()) -> dict[str, list[Curve]]:
    """Arrange the metrics of runs in panels: curves by the label of their axis. With several runs, each has a colour.

    Args:
        runs: metrics by the name of the run.
        names: names of the metrics to include; all by default, but with several runs only the mean AUC of the classes.

    Raises:
        ValueError: no run has such a metric.
    """
    known = sorted({name for curves in runs.values() for name in curves})
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no run has logged {', '.join(unknown)}; logged: {', '.join(known) or 'nothing yet'}.")
    wanted = list(names) or [name for name in known if len(runs) == 1 or axis_of(name) != "AUC" or name == MAIN_AUC]
    panels: dict[str, list[Curve]] = {}
    for name in sorted(wanted, key=order):
        curves = panels.setdefault(axis_of(name), [])
        for place, (run, metrics) in enumerate(runs.items()):
            if name in metrics:
                colour = place if len(runs) > 1 else len(curves)
                title = f"{run}: {title_of(name)}" if len(runs) > 1 else title_of(name)
                curves.append(Curve(title, *metrics[name], colour, dashed=len(runs) > 1 and name.startswith("val/")))
    return panels


def order(name: str) -> tuple[int, str]:
    """Return a key that sorts the loss first, then the AUC, and the learning rate last."""
    places = {"loss": 0, "AUC": 1, "error": 1, "learning rate": 3}
    return places.get(axis_of(name), 2), name
