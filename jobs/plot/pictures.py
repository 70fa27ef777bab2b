"""The curves of runs as pictures for a page, one for each quantity."""

import io
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes

from deeplense.evaluation import plots
from jobs.runs.curves import Curves, panels_of

SIZE = (4.6, 2.9)
"""Width and height of a picture, in inches."""
MOST_TICKS = 5
MOST_NAMED = len(plots.COLOURS)
"""Of more runs, the curves have one colour and no names."""


def pictures(runs: Mapping[str, Curves]) -> dict[str, bytes]:
    """Return a PNG file for each quantity that the runs have logged, such as the loss, by its name.

    Args:
        runs: metrics by the name of the run.
    """
    return {label: picture(label, curves, named=len(runs) <= MOST_NAMED) for label, curves in panels_of(runs).items()}


def picture(label: str, curves: Sequence[plots.Curve], *, named: bool) -> bytes:
    """Return a PNG file with the curves of a quantity."""
    file = io.BytesIO()
    drawn = partial(plots.curves, panels={label: curves}) if named else partial(draw_alike, label=label, curves=curves)

    def draw(axes: Axes) -> None:
        canvas = axes.figure
        drawn(axes)
        for panel in canvas.axes:
            panel.locator_params(axis="x", nbins=MOST_TICKS)

    plots.figure(file, draw, size=SIZE)
    return file.getvalue()


def draw_alike(axes: Axes, *, label: str, curves: Sequence[plots.Curve]) -> None:
    """Plot the curves of many runs in one colour; of validation images, they are dashed."""
    for curve in curves:
        style = "--" if curve.dashed else "-"
        axes.plot(curve.steps, curve.values, color=plots.COLOURS[0], alpha=0.4, linewidth=0.9, linestyle=style)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(color="0.92")
