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
            metrics=content["metrics"],
            method=METHOD,
            figures=embedded,
            facts=facts,
            settings=settings,
        )
        (temporary / "index.html").write_text(page)
