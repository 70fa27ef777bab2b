"""The figures of a report. Each function draws on one matplotlib axes; `figure` saves it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from deeplense.evaluation.bands import Band

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito: safe for colour-blindness
mpl.use("Agg")
DPI, LAYOUT = 160, "constrained"
GAP, LINE, TITLE_LINE, TITLE_SIZE = 1.06, 1.22, 0.12, 8.0
"""Steps between pictures and between rows with one line of text, and height of a line of a title in a gallery, in
picture sides; size of its letters, in points, for pictures 1.4 inches wide."""


@dataclass(frozen=True)
class Marks:
    """Known objects in an image, in pixels from its upper left corner: circles (K, 3) as x, y and radius, lines (L, 4)
    as x and y of both ends."""

    circles: np.ndarray
    lines: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A curve: its title, steps (n,), values (n,), the number of its colour, and whether it is dashed."""

    title: str
    steps: np.ndarray
    values: np.ndarray
    colour: int = 0
    dashed: bool = False


def figure(path: Path | BinaryIO, draw: Callable[[Axes], None], *, size: tuple[float, float] = (4.6, 4.2)) -> None:
    """Save one figure."""
    canvas = Figure(figsize=size, layout=LAYOUT)
    draw(canvas.add_subplot())
    canvas.savefig(path, dpi=DPI)


def roc(
    axes: Axes,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    bands: Mapping[str, Band] | None = None,
) -> None:
    """Plot the ROC of each class against the rest, with a logarithmic false positive rate because lens finding needs
    very low ones; with bands by class, if any. Any scores that rank the images do as probabilities."""
    floor = 0.5 / len(labels)
    for k, name in enumerate(classes):
        if 0 < (labels == k).sum() < len(labels):
            false, true, _ = roc_curve(labels == k, probabilities[:, k])
            axes.plot(np.maximum(false, floor), true, color=COLOURS[k % len(COLOURS)], label=name)
        if bands and name in bands:
            band = bands[name]
            axes.fill_between(band.at, band.low, band.high, color=COLOURS[k % len(COLOURS)], alpha=0.15, linewidth=0)
    chance = np.geomspace(floor, 1)
    axes.plot(chance, chance, color="0.6", linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title("ROC, one vs rest")
    axes.legend(loc="best", frameon=False)


def purity(axes: Axes, bands: Mapping[str, Band], *, logarithmic: bool) -> None:
    """Plot the purity against the completeness of each class, with its band."""
    for k, (name, band) in enumerate(bands.items()):
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(band.at, band.value, color=colour, label=name)
        axes.fill_between(band.at, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
    lowest = min(np.nanmin(np.r_[band.value, band.low[band.low > 0], 1]) for band in bands.values())
    axes.set(xlim=(0, 1), xlabel="completeness", ylabel="purity", title="Purity, one vs rest")
    if logarithmic:
        axes.set(yscale="log", ylim=(max(float(lowest) / 2, 1e-6), 1.3))
    else:
        axes.set(ylim=(0, 1.02))
    axes.legend(loc="best", frameon=False)


def confusion(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Plot the confusion matrix with counts; the colour is the fraction of the true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.5
        axes.text(
            column, row, f"{count}\n{shares[row, column]:.1%}", ha="center", va="center", color="w" if dark else "k"
        )
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion")


def reliability(axes: Axes, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Plot a reliability diagram: accuracy against confidence, in bins with equal counts."""
    correct = probabilities.argmax(axis=1) == labels
    share, confidence = calibration_curve(correct, probabilities.max(axis=1), n_bins=10, strategy="quantile")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
    axes.plot(confidence, share, marker="o", color=COLOURS[0], label="model")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title="Reliability")
    axes.legend(loc="upper left", frameon=False)


def curves(axes: Axes, panels: Mapping[str, Sequence[Curve]], *, columns: int = 1) -> None:
    """Plot curves against the step in panels that share no axis, in place of the given axes.

    Args:
        axes: is replaced by the panels.
        panels: curves by the label of their axis.
        columns: number of panels side by side.
    """
    canvas, place = axes.figure, axes.get_subplotspec()
    assert place is not None
    rows = -(-len(panels) // columns)
    grid = place.subgridspec(rows, columns)
    axes.remove()
    for k, (label, drawn) in enumerate(panels.items()):
        panel = canvas.add_subplot(grid[k // columns, k % columns])
        for curve in drawn:
            panel.plot(
                curve.steps,
                curve.values,
                color=COLOURS[curve.colour % len(COLOURS)],
                linestyle="--" if curve.dashed else "-",
                marker="." if len(curve.steps) < 40 else None,
                label=curve.title,
            )
        panel.set(ylabel=label, xlabel="step" if k >= len(panels) - columns else "")
        panel.grid(color="0.92")
        if len(drawn) > 1 or label not in drawn[0].title:
            panel.legend(frameon=False, fontsize=7)
        else:
            panel.set_title(drawn[0].title, fontsize=8)


def scatter(axes: Axes, predicted: np.ndarray, truth: np.ndarray, *, quantity: str) -> None:
    """Plot predicted against true values of a quantity, which is named with its unit."""
    ends = [truth.min(), truth.max()]
    axes.plot(ends, ends, color="0.6", linestyle=":")
    axes.plot(truth, predicted, ".", markersize=3, alpha=0.5, color=COLOURS[0])
    axes.set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}", title="Regression")


def explained(
    axes: Axes,
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    titles: Sequence[str],
    marks: Sequence[Marks | None],
) -> None:
    """Plot images (N, C, S, S) with marks and a title, each followed by its maps (N, S, S) as overlays."""
    size, num_columns = images.shape[-1], 1 + len(maps)
    per_row = images_per_row(len(maps))
    width = (num_columns * GAP + 0.2) * size
    for k, title in enumerate(titles):
        x, y = k % per_row * width, k // per_row * LINE * size
        picture(axes, images[k, 0], (x, y), title=title)
        draw_marks(axes, marks[k], (x, y), size)
        for column, (name, values) in enumerate(maps.items(), start=1):
            overlay(axes, images[k, 0], values[k], (x + column * GAP * size, y))
            if k < per_row:
                axes.text(x + column * GAP * size, y - 0.18 * size, name, fontsize=6, va="bottom")
    frame(axes, min(per_row, len(titles)) * width, -(-len(titles) // per_row) * LINE * size, size)


def images_per_row(num_maps: int) -> int:
    """Return the number of images per row if each has `num_maps` maps."""
    return max(6 // (1 + num_maps), 1)


def layers(axes: Axes, image: np.ndarray, maps: Mapping[str, np.ndarray], *, marks: Marks | None, columns: int) -> None:
    """Plot one image (C, S, S) with its marks, then the map (S, S) of each layer as an overlay, in order."""
    size = image.shape[-1]
    picture(axes, image[0], (0, 0), title="image")
    draw_marks(axes, marks, (0, 0), size)
    for k, (name, values) in enumerate(maps.items(), start=1):
        x, y = k % columns * GAP * size, k // columns * LINE * size
        overlay(axes, image[0], values, (x, y))
        axes.text(x, y - 0.03 * size, name, fontsize=6, va="bottom")
    frame(axes, columns * GAP * size, (len(maps) // columns + 1) * LINE * size, size)


def picture(
    axes: Axes,
    image: np.ndarray,
    corner: tuple[float, float],
    *,
    title: str = "",
    cmap: str = "gray",
    fontsize: float = 6,
) -> None:
    """Draw an image (S, S), asinh-stretched, with its upper left corner at `corner`."""
    (x, y), size = corner, image.shape[-1]
    low, high = np.quantile(image, [0.02, 0.998])
    shown = np.arcsinh(8 * np.clip((image - low) / max(high - low, 1e-12), 0, 1.5))
    axes.imshow(shown, cmap=cmap, extent=(x, x + size, y + size, y), vmin=0, vmax=np.arcsinh(8))
    axes.text(x, y - 0.03 * size, title, fontsize=fontsize, va="bottom")


def overlay(axes: Axes, image: np.ndarray, values: np.ndarray, corner: tuple[float, float]) -> None:
    """Draw an image with a map over it, scaled from its minimum to its maximum; a constant map is transparent."""
    (x, y), size = corner, image.shape[-1]
    picture(axes, image, corner)
    spread = float(np.ptp(values))
    level = (values - values.min()) / spread if spread > 1e-4 * np.abs(values).max() else np.zeros_like(values)
    axes.imshow(level, cmap="inferno", alpha=0.6 * level, extent=(x, x + size, y + size, y), vmin=0, vmax=1)


def draw_marks(axes: Axes, marks: Marks | None, corner: tuple[float, float], size: int) -> None:
    """Draw the marks of an image whose upper left corner is at `corner`; parts outside the image are clipped."""
    if marks is None:
        return
    edge = axes.add_patch(Rectangle(corner, size, size, fill=False, linewidth=0))
    style = {"fill": False, "color": COLOURS[5], "linewidth": 0.8, "capstyle": "round"}
    drawn = [Circle((corner[0] + x, corner[1] + y), radius, **style) for x, y, radius in marks.circles]
    drawn += [Polygon(line.reshape(2, 2) + corner, closed=False, **style) for line in marks.lines]
    for mark in drawn:
        axes.add_patch(mark).set_clip_path(edge)


def frame(axes: Axes, width: float, height: float, size: int) -> None:
    """Set the limits of a figure made of pictures and hide its axes."""
    axes.set(xlim=(0, width), ylim=(height - (LINE - 1) * size, -0.32 * size))
    axes.axis("off")


def gallery(axes: Axes, images: np.ndarray, titles: Sequence[str], *, columns: int = 6) -> None:
    """Draw the first band of images (N, C, H, W), asinh-stretched, with a title of any number of lines each."""
    size = images.shape[-1]
    lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    rows, step = -(-len(images) // columns), GAP + TITLE_LINE * lines
    for k, (image, title) in enumerate(zip(images[:, 0], titles, strict=True)):
        corner = k % columns * GAP * size, k // columns * step * size
        picture(axes, image, corner, title=title, cmap="magma", fontsize=TITLE_SIZE)
    axes.set(xlim=(0, columns * size * GAP), ylim=(((rows - 1) * step + 1) * size, (GAP - step) * size))
    axes.axis("off")


def intervals(
    axes: Axes, names: Sequence[str], values: Sequence[Sequence[float]], *, chance: float | None, label: str
) -> None:
    """Plot a dot with an interval per name, the first on top; `values` are (value, low, high). A line marks chance."""
    rows = np.arange(len(names))[::-1]
    middle, low, high = np.asarray(values, dtype=float).reshape(-1, 3).T
    errors = np.maximum([middle - low, high - middle], 0)
    axes.errorbar(middle, rows, xerr=errors, fmt="o", color=COLOURS[0], ecolor="0.4", capsize=2.5, markersize=5)
    if chance is not None and (low < chance + 0.2).any():
        axes.axvline(chance, color="0.6", linestyle=":")
        axes.text(chance, len(names) - 0.45, " chance", color="0.4", fontsize=8, va="center")
    axes.set_yticks(rows, names)
    axes.set(ylim=(-0.6, len(names) - 0.2), xlabel=label)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


def over_counts(
    axes: Axes, series: Mapping[str, Sequence[tuple[float, float, float, float]]], *, xlabel: str, ylabel: str
) -> None:
    """Plot named lines of points (count, value, low, high) against a logarithmic count axis; lines are slightly
    offset."""
    ticks = sorted({point[0] for points in series.values() for point in points})
    for k, (name, points) in enumerate(series.items()):
        counts, middle, low, high = np.asarray(points, dtype=float).T
        errors = np.maximum([middle - low, high - middle], 0)
        moved, style = counts * 1.02 ** (k - (len(series) - 1) / 2), {"marker": "o", "capsize": 2.5, "markersize": 5}
        axes.errorbar(moved, middle, yerr=errors, color=COLOURS[k % len(COLOURS)], label=name, **style)
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)


def spectra(axes: Axes, series: Mapping[str, np.ndarray]) -> None:
    """Plot named log10 spectra (n, K), from wavenumber 1: the median and the range of the central two thirds."""
    for k, (name, values) in enumerate(series.items()):
        low, middle, high = np.quantile(values, [1 / 6, 1 / 2, 5 / 6], axis=0)
        waves, colour = np.arange(1, len(middle) + 1), COLOURS[k % len(COLOURS)]
        axes.plot(waves, middle, color=colour, label=name)
        axes.fill_between(waves, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="cycles per image", ylabel="log10 of the fraction of power")
    axes.legend(frameon=False)


def densities(axes: Axes, series: Mapping[str, np.ndarray], *, xlabel: str) -> None:
    """Plot histograms of named samples (n,) in common bins; outliers are counted in the outermost bins."""
    together = np.concatenate(list(series.values()))
    low, high = np.quantile(together, [0.005, 0.995])
    bins = np.linspace(low, high if high > low else low + 1, 31)
    for k, (name, values) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        axes.hist(values.clip(low, high), bins=bins.tolist(), density=True, histtype="step", color=colour, label=name)
    axes.set(xlabel=xlabel, ylabel="density")
    axes.legend(frameon=False)
