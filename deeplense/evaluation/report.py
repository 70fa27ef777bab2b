"""The report of an evaluation: a folder with report.json, figures and one self-contained HTML page."""

import base64
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deeplense.evaluation.finding import in_words
from deeplense.evaluation.plots import figure
from deeplense.files import finite, replacing

PREDICTIONS = "predictions.npz"
METHOD = (
    "Intervals are percentiles of 1000 bootstrap resamples of the images; if a score is exactly 1, the lower end is "
    "that of Clopper and Pearson. The expected calibration error (ece) is corrected for its bias from finite samples, "
    "and its interval comes from simulated labels (test inversion). Intervals describe new images of this kind and "
    "this one trained model; they do not include the variation between trainings with different seeds."
)


@dataclass(frozen=True)
class Plot:
    """One figure: its file name without suffix, its caption, and the function that draws it."""

    name: str
    caption: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.6, 4.2)
    wide: bool = False


def name_undefined(
    metrics: Mapping[str, Mapping[str, Any]], labels: NDArray[np.integer], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the metrics of a classifier, with the reason under `undefined` for each that has no value.

    Args:
        metrics: value, low and high of each.
        labels: indices of the true classes, (N,).
        classes: names of the classes.
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
    """Format a metric with its interval, or as undefined with the reason."""
    value, interval = cells_of(metric)
    return f"{value} [{interval.replace(' to ', ', ')}]" if interval else value


def cells_of(metric: Mapping[str, Any]) -> tuple[str, str]:
    """Format a metric and its interval as two texts; the interval is empty if there is none."""
    if not is_defined(metric):
        why = metric.get("undefined")
        return f"undefined ({why})" if why else "undefined", ""
    ends = [metric["low"], metric["high"]]
    known = all(end is not None and np.isfinite(end) for end in ends)
    return f"{metric['value']:.4f}", " to ".join(f"{end:.4f}" for end in ends) if known else ""


def finding_rows(finding: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, list[tuple[str, str]]]:
    """Format how well each class is found: by what a number is, two texts for each class: the number, and its interval
    or why there is none.

    Args:
        finding: the numbers by class and name.
    """
    names = next(iter(finding.values()), {})
    return {in_words(name): [finding_cells(name, numbers[name]) for numbers in finding.values()] for name in names}


def finding_cells(name: str, number: Mapping[str, Any]) -> tuple[str, str]:
    """Format a number as two texts; a lower bound of almost 0 is left out."""
    digits = 1 if name.startswith("in_top") else 4
    if "undefined" in number:
        bound = number.get("at_least", 0)
        return f"at least {in_digits(bound, digits)}" if bound >= 10.0**-digits else "", number["undefined"]
    value, low, high = (in_digits(number[end], digits) for end in ("value", "low", "high"))
    return value, f"{low} to {high}"


def in_digits(value: float, digits: int) -> str:
    """Format a number with so many digits after the point, or two digits if it is small."""
    return f"{value:.{digits}f}" if value == 0 or value >= 0.01 else f"{value:.2g}"


def with_unit(name: str, unit: str) -> str:
    """Return the name of a metric with its unit, if it has one."""
    return f"{name} [{unit}]" if unit else name


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
    changed: Collection[str] = (),
    unit: str = "",
) -> None:
    """Write `index.html`, `report.json` and a PNG file per plot, replacing an old report once the new one is complete.

    Args:
        folder: folder to write to.
        title: one line that names what was evaluated.
        lead: one line that names the images.
        content: content of report.json; its `metrics` are shown as a table.
        facts: names and values that describe what was evaluated.
        settings: settings of the run.
        plots: the figures.
        arrays: the data behind the numbers, for `predictions.npz`.
        changed: names of the settings that differ from their defaults; they are listed first.
        unit: unit of all metrics; "" if they have none.
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
            metrics={with_unit(name, unit): cells_of(value) for name, value in content["metrics"].items()},
            method=METHOD,
            finding=finding_rows(content.get("finding", {})),
            found_classes=list(content.get("finding", {})),
            survey=content.get("survey", {}),
            figures=embedded,
            facts=facts,
            changed={name: value for name, value in settings.items() if name in changed},
            settings=settings,
        )
        (temporary / "index.html").write_text(page)
