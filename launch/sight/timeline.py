"""The attempts of runs as bars over time, placed in percent of the width."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from launch.sight.spending import RUNNING, Spell
from launch.sight.table import duration

NARROW = 0.15
"""Bars of the same colour below this width, in percent, are drawn as one."""
MOST_ROWS = 100
"""Runs with the most hours that are drawn."""
MINUTE, HOUR, DAY = 60, 3600, 86400
STEPS_S = (10, 30, MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY)
STEPS_S += (7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY)
MOST_TICKS = 9
KINDS = {
    "finished": "finished",
    RUNNING: "running",
    "time limit": "limit",
    "preempted": "preempted",
    "requeued": "preempted",
    "stopped": "preempted",
    "node lost": "lost",
    "crash": "crash",
    "hang": "crash",
    "killed": "crash",
    "disk full": "crash",
    "disk read-only": "crash",
    "diverged": "ended",
    "refused": "ended",
    "cancelled": "ended",
    "out of restarts": "ended",
}
"""Colours of bars by the cause of the end."""
NAMES = {
    "finished": "finished",
    "running": "running",
    "limit": "time limit",
    "preempted": "preempted, requeued or stopped",
    "lost": "node lost",
    "crash": "crash, hang, killed or disk full",
    "ended": "cancelled, diverged, refused or out of restarts",
    "other": "other",
    "wait": "waiting in the queue",
}
"""What the colours stand for."""


@dataclass(frozen=True)
class Bar:
    """A bar: its colour, its place and width in percent, and the text that explains it."""

    kind: str
    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Row:
    """The bars of a run."""

    name: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Tick:
    """A mark on the time axis, in percent, with the time."""

    left: float
    text: str


@dataclass(frozen=True)
class Timeline:
    """Rows of bars, the marks of their axis, the colours that occur with their names, and the number of runs that are
    not drawn."""

    rows: Sequence[Row]
    ticks: Sequence[Tick]
    legend: dict[str, str]
    left_out: int


def timeline(spells: Sequence[Spell]) -> Timeline:
    """Return the timeline of attempts; of many runs, those with the most hours."""
    runs: dict[str, list[Spell]] = {}
    for spell in spells:
        runs.setdefault(spell.run, []).append(spell)
    most = sorted(runs, key=lambda name: -sum(spell.seconds * spell.cpus for spell in runs[name]))[:MOST_ROWS]
    drawn = {name: ours for name, ours in runs.items() if name in set(most)}
    first = min(spell.begun - spell.waited_s for ours in drawn.values() for spell in ours)
    last = max(max(spell.ended for ours in drawn.values() for spell in ours), first + 1)
    rows = [Row(name, bars_of(ours, first, last)) for name, ours in drawn.items()]
    there = {bar.kind for row in rows for bar in row.bars}
    legend = {kind: text for kind, text in NAMES.items() if kind in there}
    return Timeline(rows, ticks(first, last), legend, len(runs) - len(drawn))


def bars_of(spells: Sequence[Spell], first: float, last: float) -> list[Bar]:
    """Return the bars of a run between two times: of its waits, then of its attempts."""
    length = last - first

    def bar(kind: str, begun: float, ended: float, text: str) -> Bar:
        return Bar(kind, 100 * (begun - first) / length, 100 * max(ended - begun, 0.0) / length, text)

    found: list[Bar] = []
    for spell in spells:
        if spell.waited_s > 0:
            waited = f"waited {duration(spell.waited_s)}"
            found = joined(found, bar("wait", spell.begun - spell.waited_s, spell.begun, waited))
    for spell in spells:
        found = joined(found, bar(KINDS.get(spell.cause, "other"), spell.begun, spell.ended, in_words(spell)))
    return found


def joined(bars: Sequence[Bar], new: Bar) -> list[Bar]:
    """Return bars with a new one; if it and the last one are narrow and close, they become one."""
    last = bars[-1] if bars else None
    gap = new.left - (last.left + last.width) if last else 0.0
    if last and last.kind == new.kind and max(last.width, new.width, gap) < NARROW:
        text = last.text if last.text.endswith("and more") else f"{last.text}, and more"
        return [*bars[:-1], Bar(last.kind, last.left, new.left + new.width - last.left, text)]
    return [*bars, new]


def in_words(spell: Spell) -> str:
    """Return what a bar stands for, as text."""
    what = f"attempt {spell.number}" if spell.number else "a start without an attempt"
    when = time.strftime("%d %b %H:%M", time.localtime(spell.begun))
    steps = f", {spell.steps} steps" if spell.steps else ""
    again = f" ({spell.again} lost)" if spell.again else ""
    on = f"{spell.gpus} GPUs" if spell.gpus else f"{spell.cpus} cores"
    return f"{what}, from {when}, {duration(spell.seconds)} on {on}{steps}{again}: {spell.reason or spell.cause}"


def ticks(first: float, last: float) -> list[Tick]:
    """Return marks at round times between two times."""
    step = next((step for step in STEPS_S if (last - first) / step <= MOST_TICKS), STEPS_S[-1])
    offset = time.localtime(first).tm_gmtoff or 0
    at = (int(first + offset) // step + 1) * step - offset
    form = "%H:%M:%S" if step < MINUTE else "%H:%M" if step < DAY else "%-d %b"
    found, day = [], ""
    while at <= last:
        text, today = time.strftime(form, time.localtime(at)), time.strftime("%-d %b", time.localtime(at))
        found.append(
            Tick(100 * (at - first) / (last - first), text if step >= DAY or today == day else f"{today} {text}")
        )
        at, day = at + step, today
    return found
