"""The figures of a report. Each function draws on one axes; `figure` saves it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all
mpl.use("Agg")


def figure(path: Path | BinaryIO, draw: Callable[[Axes], None], *, size: tuple[float, float] = (4.6, 4.2)) -> None:
    """Save one figure."""
    canvas = Figure(figsize=size, layout="constrained")
    draw(canvas.add_subplot())
    canvas.savefig(path, dpi=160)


def roc(axes: Axes, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """ROC of each class against the rest, false positives on a logarithmic scale: lens finding lives at the left
    end."""
    floor = 0.5 / len(labels)
    for k, name in enumerate(classes):
        if 0 < (labels == k).sum() < len(labels):
            false, true, _ = roc_curve(labels == k, probabilities[:, k])
            axes.plot(np.maximum(false, floor), true, color=COLOURS[k % len(COLOURS)], label=name)
    chance = np.geomspace(floor, 1)
    axes.plot(chance, chance, color="0.6", linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title("ROC, one against the rest")
    axes.legend(loc="lower right", frameon=False)


def confusion(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Confusion matrix with counts; colour is the share of the true class."""
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
    """How often the model is right where it says so: accuracy over confidence, in bins of equal counts."""
    correct = probabilities.argmax(axis=1) == labels
    share, confidence = calibration_curve(correct, probabilities.max(axis=1), n_bins=10, strategy="quantile")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
    axes.plot(confidence, share, marker="o", color=COLOURS[0], label="model")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title="Reliability")
    axes.legend(loc="upper left", frameon=False)


def curves(axes: Axes, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, ylabel: str) -> None:
    """Named curves over steps."""
    for k, (name, (steps, values)) in enumerate(series.items()):
        axes.plot(steps, values, color=COLOURS[k % len(COLOURS)], label=name, marker="." if len(steps) < 40 else None)
    axes.set(xlabel="step", ylabel=ylabel, title="Training")
    axes.legend(frameon=False)


def scatter(axes: Axes, predicted: np.ndarray, truth: np.ndarray, *, unit: str) -> None:
    """Predicted against true numbers."""
    ends = [truth.min(), truth.max()]
    axes.plot(ends, ends, color="0.6", linestyle=":")
    axes.plot(truth, predicted, ".", markersize=3, alpha=0.5, color=COLOURS[0])
    axes.set(xlabel=f"true {unit}", ylabel=f"predicted {unit}", title="Regression")


def gallery(axes: Axes, images: np.ndarray, titles: Sequence[str], *, columns: int = 6) -> None:
    """Images (N, C, H, W), their first band, asinh-stretched, with a title each."""
    size = images.shape[-1]
    rows = -(-len(images) // columns)
    for k, (image, title) in enumerate(zip(images[:, 0], titles, strict=True)):
        low, high = np.quantile(image, [0.02, 0.998])
        shown = np.arcsinh(8 * np.clip((image - low) / max(high - low, 1e-12), 0, 1.5))
        x, y = k % columns * (size * 1.06), k // columns * (size * 1.28)
        axes.imshow(shown, cmap="magma", extent=(x, x + size, y + size, y), vmin=0, vmax=np.arcsinh(8))
        axes.text(x, y - 0.03 * size, title, fontsize=6, va="bottom")
    axes.set(xlim=(0, columns * size * 1.06), ylim=(rows * size * 1.28, -0.2 * size))
    axes.axis("off")


def intervals(
    axes: Axes, names: Sequence[str], values: Sequence[Sequence[float]], *, chance: float | None, label: str
) -> None:
    """A dot with its interval for each name, the first on top; `values` are (value, low, high). The line is chance."""
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
