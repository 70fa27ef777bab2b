"""Formatting of the numbers in tables."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplense.evaluation.metrics import Estimate
from deeplense.files import replacing


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per row, with all columns that occur in any row."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def with_ends(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return one column per number and per end of its interval."""
    values: dict[str, float] = {}
    for name, estimate in estimates.items():
        values |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return values


def shown(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Format a number, and its interval after a line break."""
    if estimate is None:
        return ""
    if not math.isfinite(estimate.value):
        return "undefined"
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.4f}\n[{estimate.low:{sign}.4f},\u00a0{estimate.high:{sign}.4f}]"


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows of cells as lines of text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def images_in_words(most: int, kind: str) -> str:
    """Say how many held-out images there are and, if known, of which kind."""
    return f"{most:,} held-out images" + (f" of {kind}" if kind else "")
