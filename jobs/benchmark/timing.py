"""Shared by all benchmarks of `deeplense benchmark`: alternate timing of two implementations, and tables of results."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

Work = Callable[[], float]
"""A function to be timed; returns the number of units (images, bytes) that it processed."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Number of units processed, wall time and CPU time (child processes included) in seconds and, if measured, bytes
    read from disk."""

    units: float
    wall_s: float
    cpu_s: float
    disk_bytes: int = 0

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.wall_s


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: our implementation compared with another one, medians in `unit`.

    `ratio` is the median over rounds of ours over the other; `cpu_ratio` is the same for units per second of CPU time.
    An implementation that could not be measured has no numbers and a note with the reason. `extra` contains further
    numbers of ours.
    """

    what: str
    unit: str = ""
    ours: float | None = None
    other_name: str = ""
    other: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    cpu_ratio: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


Pair = tuple[Timing, Timing]


def compare(what: str, ours: Work, other: Work, *, other_name: str, rounds: int, unit: str = "images/s") -> Row:
    """Compare two implementations in units per second, timed alternately after a warm-up."""
    timed(ours)
    timed(other)
    pairs = [(timed(ours), timed(other)) for _ in range(rounds)]
    return row_of(what, pairs, other_name=other_name, unit=unit)


def row_of(what: str, pairs: Sequence[Pair], *, other_name: str, unit: str) -> Row:
    """Return the row of two implementations that were timed alternately; ours is first in each pair."""
    ratios = [ours.rate / other.rate for ours, other in pairs]
    cpu_ratios = [ours.units / ours.cpu_s / (other.units / other.cpu_s) for ours, other in pairs]
    return Row(
        what=what,
        unit=unit,
        ours=statistics.median(ours.rate for ours, _ in pairs),
        other_name=other_name,
        other=statistics.median(other.rate for _, other in pairs),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        cpu_ratio=statistics.median(cpu_ratios),
    )


def timed(work: Work) -> Timing:
    """Time one call."""
    cpu, start = cpu_seconds(), time.perf_counter()
    units = work()
    wall = time.perf_counter() - start
    return Timing(units=units, wall_s=wall, cpu_s=max(cpu_seconds() - cpu, 1e-9))


def cpu_seconds() -> float:
    """CPU time so far, in seconds, of this process and its running and finished children."""
    own = psutil.Process()
    past = own.cpu_times()
    living = sum(cpu_of(child) for child in own.children(recursive=True))
    return time.process_time() + past.children_user + past.children_system + living


def cpu_of(process: psutil.Process) -> float:
    """CPU time, in seconds, of another process and its finished children; 0 if it no longer exists."""
    try:
        return sum(process.cpu_times()[:4])
    except psutil.NoSuchProcess:
        return 0.0


HEADINGS = ("", "", "ours", "", "against", "ratio [range]", "CPU ratio")
WORDS = {0, 1, 4}
"""Columns of text, which are left-aligned."""


def table_of(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table with aligned columns; a row without numbers shows its note instead."""
    lines = [HEADINGS, *(cells_of(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, note in zip(lines, ["", *map(note_of, rows)], strict=True):
        cells = [line[0].ljust(widths[0])]
        if any(line[1:]):
            cells += [cell.ljust(widths[k]) if k in WORDS else cell.rjust(widths[k]) for k, cell in enumerate(line)][1:]
        yield "  ".join([*cells, note]).rstrip()


def cells_of(row: Row) -> tuple[str, ...]:
    """Return the cells of one row: what, unit, ours, the other's number and name, and the ratios."""
    if row.ours is None:
        return (row.what, *[""] * 6)
    span = f"{short(row.ratio)} [{short(row.ratio_min)}, {short(row.ratio_max)}]" if row.ratio is not None else ""
    return row.what, row.unit, short(row.ours), short(row.other), row.other_name, span, short(row.cpu_ratio)


def note_of(row: Row) -> str:
    """Return the text after the columns: extra numbers and the note."""
    return ", ".join([*(f"{name} {short(value)}" for name, value in row.extra.items()), *filter(None, [row.note])])


def short(value: float | None) -> str:
    """Format a number with about three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
