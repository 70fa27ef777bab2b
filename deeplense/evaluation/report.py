"""The report of an evaluation: a folder with report.json, figures, and one HTML page that needs no other file."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deeplense.evaluation.plots import figure
from deeplense.files import finite, replacing

PREDICTIONS = "predictions.npz"
METHOD = (
    "Intervals are percentiles of 1000 bootstrap resamples of the images; where a score is exactly 1, the lower end is "
    "that of Clopper and Pearson. The calibration error (ece) is freed of what chance adds to it, and its interval "
    "comes from simulated labels (test inversion). Intervals hold for new images of this kind and this one trained "
    "model; they do not hold the spread between trainings with other seeds."
)


@dataclass(frozen=True)
class Plot:
    """One figure: its file name without ending, what it shows, how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.6, 4.2)
    wide: bool = False


def name_undefined(
    metrics: Mapping[str, Mapping[str, Any]], labels: NDArray[np.integer], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The same metrics of a classifier, each that has no value with the reason beside it, under `undefined`.

    Args:
        metrics: value, low and high of each.
        labels: numbers of the true classes, (N,).
        classes: their names.
    """
    counts = np.bincount(labels, minlength=len(classes))
    present = [name for name, count in zip(classes, counts, strict=True) if count]
    absent = [name for name in classes if name not in present]
    why = f"only class {present[0]}" if len(present) == 1 else f"no image of class {', '.join(absent)}"
    return {name: {**value, **({} if is_defined(value) else {"undefined": why})} for name, value in metrics.items()}


def is_defined(metric: Mapping[str, Any]) -> bool:
    """Whether a metric has a value."""
    return metric["value"] is not None and bool(np.isfinite(metric["value"]))


def metric_in_words(metric: Mapping[str, Any]) -> str:
    """A metric with its interval, or that it is undefined, and why."""
    value, interval = cells_of(metric)
    return f"{value} [{interval.replace(' to ', ', ')}]" if interval else value


def cells_of(metric: Mapping[str, Any]) -> tuple[str, str]:
    """A metric and its interval as texts; the interval is empty where there is none."""
    if not is_defined(metric):
        why = metric.get("undefined")
        return f"undefined ({why})" if why else "undefined", ""
    ends = [metric["low"], metric["high"]]
    known = all(end is not None and np.isfinite(end) for end in ends)
    return f"{metric['value']:.4f}", " to ".join(f"{end:.4f}" for end in ends) if known else ""


def write_report(
    folder: Path,
    *,
    title: str,
    lead: str,
    content: Mapping[str, Any],
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    plots: Sequence[Plot],
    arrays: Mapping[str, Any] | None = None,
) -> None:
    """Write `index.html`, `report.json` and a PNG file for each plot; the old report goes when the new one is whole.

    Args:
        folder: where to.
        title: what was evaluated, in a line.
        lead: on what, in a line.
        content: what goes into report.json; its `metrics` are shown as a table.
        facts: names and values that say what was evaluated.
        settings: those of the run.
        plots: the figures.
        arrays: what the numbers were computed from, for `predictions.npz`.
    """
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for plot in plots:
            figure(temporary / f"{plot.name}.png", plot.draw, size=plot.size)
        if arrays:
            np.savez(temporary / PREDICTIONS, **arrays)
        document = {"title": title, **content, "facts": dict(facts), "settings": dict(settings)}
        (temporary / "report.json").write_text(json.dumps(finite(document), indent=2, allow_nan=False) + "\n")
        template = Environment(autoescape=True).from_string(
            resources.files("deeplense.evaluation").joinpath("report.html").read_text()
        )
        embedded = [
            {
                "caption": plot.caption,
                "wide": plot.wide,
                "png": base64.b64encode((temporary / f"{plot.name}.png").read_bytes()).decode(),
            }
            for plot in plots
        ]
        page = template.render(
            title=title,
            lead=lead,
            metrics={name: cells_of(value) for name, value in content["metrics"].items()},
            method=METHOD,
            figures=embedded,
            facts=facts,
            settings=settings,
        )
        (temporary / "index.html").write_text(page)
