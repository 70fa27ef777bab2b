"""What the measurements behind `deeplense benchmark` share: to time two ways in turns, rows of results, their table."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

Work = Callable[[], float]
"""Something to be timed; returns how many units (images, bytes) it did."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How many units were done, the seconds that it took, the seconds of processors, other processes included, and
    where it was asked for, the bytes that came from a disk."""

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
    """One line of a table: ours beside another way to do the same, medians in `unit`.

    `ratio` is ours over the other, formed round by round; `cpu_ratio` the same for units per second of processors.
    A way that could not be measured has no numbers, and a note that says why. `extra` are other numbers of ours.
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
    """Units per second of two ways to do the same, in turns after a warm-up."""
    timed(ours)
    timed(other)
    pairs = [(timed(ours), timed(other)) for _ in range(rounds)]
    return row_of(what, pairs, other_name=other_name, unit=unit)


def row_of(what: str, pairs: Sequence[Pair], *, other_name: str, unit: str) -> Row:
    """The row of what was timed in turns, ours first in each pair."""
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
    """Time one piece of work."""
    cpu, start = cpu_seconds(), time.perf_counter()
    units = work()
    wall = time.perf_counter() - start
    return Timing(units=units, wall_s=wall, cpu_s=max(cpu_seconds() - cpu, 1e-9))


def cpu_seconds() -> float:
    """Seconds of processors so far, of this process, its children that live, and those that it has waited for."""
    own = psutil.Process()
    past = own.cpu_times()
    living = sum(cpu_of(child) for child in own.children(recursive=True))
    return time.process_time() + past.children_user + past.children_system + living


def cpu_of(process: psutil.Process) -> float:
    """Seconds of processors of another process and those that it has waited for; 0 where it is gone."""
    try:
        return sum(process.cpu_times()[:4])
    except psutil.NoSuchProcess:
        return 0.0


HEADINGS = ("", "", "ours", "", "against", "ratio [range]", "CPU ratio")
WORDS = {0, 1, 4}
"""Columns of words, which begin at the left."""


def table_of(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table with its columns aligned; a way without numbers has its note there."""
    lines = [HEADINGS, *(cells_of(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, note in zip(lines, ["", *map(note_of, rows)], strict=True):
        cells = [line[0].ljust(widths[0])]
        if any(line[1:]):
            cells += [cell.ljust(widths[k]) if k in WORDS else cell.rjust(widths[k]) for k, cell in enumerate(line)][1:]
        yield "  ".join([*cells, note]).rstrip()


def cells_of(row: Row) -> tuple[str, ...]:
    """The texts of one line: what, unit, ours, the other's number and name, the ratios."""
    if row.ours is None:
        return (row.what, *[""] * 6)
    span = f"{short(row.ratio)} [{short(row.ratio_min)}, {short(row.ratio_max)}]" if row.ratio is not None else ""
    return row.what, row.unit, short(row.ours), short(row.other), row.other_name, span, short(row.cpu_ratio)


def note_of(row: Row) -> str:
    """What stands behind the columns."""
    return ", ".join([*(f"{name} {short(value)}" for name, value in row.extra.items()), *filter(None, [row.note])])


def short(value: float | None) -> str:
    """A number with about three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
