"""`deeplense status --watch`: a live view of runs on a terminal, or a line for each change elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.runs.folder import FINISHED
from jobs.runs.progress import last_loss
from launch.findings import plural, printable
from launch.sight.overview import Answers, ask, read_all
from launch.sight.places import Place, places
from launch.sight.reading import Reading, time_of
from launch.sight.table import QUIET, in_columns, notes_of, pipelines, row

SECONDS_BETWEEN_QUESTIONS = 10.0
"""Slurm is asked no more often, as its controller serves all users of the cluster."""
SECONDS_FOR_FIRST_ANSWER = 2.0
HEAD = ("RUN", "STATE", "QUEUE", "ATTEMPT", "STEP", "RATE", "LOSS", "TIME LEFT", "LAST END")
ORDER = ("RUNNING", "COMPLETING", "PENDING")
SHOWN_NOTES = SHOWN_PIPELINES = 3
LINES_AROUND = 4 + SHOWN_NOTES
"""Lines of the view besides the rows and pipelines: a title, the heads, and notes."""
KEPT = ("RUN", "STATE", "STEP")
SHRUNK = ("RUN", "STATE", "LAST END")
DROPPED_FIRST = ("ATTEMPT", "RATE", "LAST END", "LOSS", "QUEUE", "TIME LEFT")
"""Columns that a narrow terminal does not show, the first ones first."""
WIDEST, NARROWEST, LEAST_WIDTH, STEP_OF_WIDTH, GAP = 36, 16, 6, 2, 2
COLOURS = {"running": "green", "pending": "yellow", "finished": "dim", "unknown": "dim"}


@dataclass(frozen=True)
class View:
    """All that the live view shows at a moment.

    Args:
        readings: what the files of the runs say.
        answers: what the scheduler says.
        places: places of pending jobs, by job id.
        damaged: a note for each run whose record is damaged.
        asked: whether the scheduler has been asked at all.
        pipelines: a line for each pipeline.
    """

    readings: Sequence[Reading]
    answers: Answers = field(default_factory=Answers)
    places: dict[str, Place] = field(default_factory=dict)
    damaged: Sequence[str] = ()
    asked: bool = True
    pipelines: Sequence[str] = ()


class Asker:
    """Asks the scheduler in the background, so that the view does not stand still if it does not answer.

    Args:
        told: is called with each new answer, in the background, too.
    """

    def __init__(self, told: Callable[[Sequence[Reading], Answers], object] = lambda readings, answers: None) -> None:
        self.told = told
        self.answers, self.places = Answers(), dict[str, Place]()
        self.pipelines: Sequence[str] = ()
        self.thread: threading.Thread | None = None
        self.begun, self.has_answer = 0.0, False
        self.finished: dict[Path, tuple[float, Reading]] = {}

    def ask_if_due(self, readings: Sequence[Reading]) -> None:
        """Ask again if the last question is answered and some time has passed. Wait a moment for the first answer."""
        busy = self.thread is not None and self.thread.is_alive()
        if busy or (self.has_answer and time.monotonic() - self.begun < SECONDS_BETWEEN_QUESTIONS):
            return
        self.begun = time.monotonic()
        self.thread = threading.Thread(target=self.ask, args=(readings,), daemon=True)
        self.thread.start()
        self.thread.join(0 if self.has_answer else SECONDS_FOR_FIRST_ANSWER)

    def ask(self, readings: Sequence[Reading]) -> None:
        """Ask the scheduler. If it does not answer, the last known states are kept, with the problem."""
        found = ask(readings)
        if found.problem and self.has_answer:
            found = replace(found, states={**self.answers.states, **found.states}, accounted=self.answers.accounted)
        elif not found.problem:
            self.places, self.pipelines = places_of(readings, found), pipelines(readings, found)
        self.answers, self.has_answer = found, True
        self.told(readings, found)


def places_of(readings: Sequence[Reading], answers: Answers) -> dict[str, Place]:
    """Return the places of the pending jobs of these runs, by job id; empty if the scheduler does not answer."""
    waiting: dict[str | None, set[str]] = {}
    for each in readings:
        state = answers.states.get(each.folder)
        if state and state[0] == "PENDING" and each.job_id and not (each.run.local and not each.run.by_hand):
            conf = None if each.run.stranger else each.run.slurm_conf
            waiting.setdefault(conf, set()).add(each.job_id)
    found: dict[str, Place] = {}
    for slurm_conf, job_ids in waiting.items():
        try:
            found |= places(slurm_conf, job_ids)
        except ValueError:
            continue
    return found


def watch(
    find: Callable[[], Sequence[Path]],
    seconds: float,
    *,
    console: Console | None = None,
    told: Callable[[Sequence[Reading], Answers], object] = lambda readings, answers: None,
) -> int:
    """Show runs until Ctrl-C.

    Args:
        find: returns the run folders; it is called at each look, so that new runs appear.
        seconds: time between two looks.
        console: where to show them.
        told: is called in the background with what is known, each time that the scheduler has been asked.
    """
    console, asker = console or Console(highlight=False, emoji=False), Asker(told)
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
                while True:
                    live.update(drawn(look(find, asker), console.width, console.height), refresh=True)
                    time.sleep(seconds)
        before: dict[Path, tuple[str, ...]] = {}
        while True:
            before = print_changes(look(find, asker), before, console)
            time.sleep(seconds)
    except KeyboardInterrupt:
        return 0


def look(find: Callable[[], Sequence[Path]], asker: Asker) -> View:
    """Read the runs again, but for those that have finished, and ask the scheduler if it is time. A finished run may be
    made again in the same folder, so when it finished counts, too."""
    folders = find()
    times = {folder: time_of(folder / FINISHED) for folder in folders}
    before = {folder: asker.finished[folder] for folder in folders if folder in asker.finished}
    now = {folder: each for folder, (when, each) in before.items() if when == times[folder]}
    left, damaged = read_all([folder for folder in folders if folder not in now])
    asker.finished |= {each.folder: (times[each.folder], each) for each in left if each.finished_step is not None}
    now |= {each.folder: each for each in left}
    readings = [now[folder] for folder in folders if folder in now]
    asker.ask_if_due(readings)
    view = View(readings, asker.answers, asker.places, damaged, asker.has_answer, asker.pipelines)
    return replace(view, readings=sorted(readings, key=lambda each: order_of(each, view.answers)))


def order_of(reading: Reading, answers: Answers) -> tuple[int, str]:
    """Return a key that sorts running runs first, then pending ones, those that have stopped, and the finished ones."""
    state = answers.states.get(reading.folder)
    place = len(ORDER) + reading.is_over if state is None or reading.is_over else ORDER.index(known(state[0]))
    return place, str(reading.folder)


def known(state: str) -> str:
    """Return a state in the queue, or PENDING for one that has no place in the order."""
    return state if state in ORDER else "PENDING"


def cells(reading: Reading, view: View) -> tuple[str, ...]:
    """Return the row of a run in the live view."""
    run, state, attempt, step, rate, left, end = row(reading, view.answers)
    if not view.asked and state == "not running":
        state = "asking Slurm"
    place = view.places.get(reading.job_id or "")
    loss = None if reading.finished_step is not None else last_loss(reading.folder)
    return (
        run,
        state,
        place_in_words(place) if place and state.startswith("pending") else "-",
        attempt,
        step,
        rate,
        "-" if loss is None else f"{loss:.4g}",
        left,
        end,
    )


def place_in_words(place: Place) -> str:
    """Return a place in the queue, and the expected start, as text."""
    rank = f"{place.rank} of {place.count}" if place.rank else "waits"
    if place.start is None:
        return rank
    left_s = place.start - time.time()
    when = time.strftime("%H:%M" if left_s < 24 * 3600 else "%d %b %H:%M", time.localtime(place.start))
    return f"{rank}, ~{when}" if left_s > 0 else f"{rank}, soon"


def drawn(view: View, width: int, height: int) -> Group:
    """Return the view for a terminal of this size; of more runs than fit, only the first, and how many more."""
    shown_pipelines = view.pipelines[:SHOWN_PIPELINES]
    most = max(height - LINES_AROUND - len(shown_pipelines), 3)
    rows = [cells(each, view) for each in view.readings[:most]]
    widths = widths_of(rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for k, column in widths.items():
        table.add_column(HEAD[k], no_wrap=True, overflow="ellipsis", width=column)
    for cell in rows:
        colour = "yellow" if QUIET in cell[1] else COLOURS.get(cell[1].split(" ")[0], "red")
        shown = [end_of(cell[k], widths[k]) if k == 0 else cell[k] for k in widths]
        table.add_row(*(Text(text, style=colour if k == 1 else "") for k, text in zip(widths, shown, strict=True)))
    more = len(view.readings) - len(rows)
    told = [*([f"and {plural(more, 'more run')}"] if more else []), *shown_pipelines, *notes_in(view)[:SHOWN_NOTES]]
    lines = [Text(line, no_wrap=True, overflow="ellipsis", style="dim") for line in told]
    return Group(Text(title_of(view), no_wrap=True, overflow="ellipsis"), table, *lines)


def end_of(name: str, width: int) -> str:
    """Return the name of a run without its beginning if it is too long: names differ at their end."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def widths_of(rows: Sequence[Sequence[str]], width: int) -> dict[int, int]:
    """Return the columns to show, with their widths: those with content. If the terminal is too narrow, columns with
    long texts become narrower, and then the least important ones are left out."""
    widest = [min(max(map(len, column)), WIDEST) for column in zip(HEAD, *rows, strict=True)]
    narrowest = [min(widest[k], NARROWEST) if HEAD[k] in SHRUNK else widest[k] for k in range(len(HEAD))]
    kept = [k for k in range(len(HEAD)) if HEAD[k] in KEPT or any(row[k] != "-" for row in rows)]
    for name in DROPPED_FIRST:
        if sum(narrowest[k] + GAP for k in kept) <= width:
            break
        kept = [k for k in kept if HEAD[k] != name]
    found = {k: widest[k] for k in kept}
    while (over := sum(found.values()) + GAP * len(found) - width) > 0:
        longest = max((k for k in kept if HEAD[k] in SHRUNK), key=lambda k: found[k])
        if found[longest] <= LEAST_WIDTH:
            break
        found[longest] = max(found[longest] - min(over, STEP_OF_WIDTH), LEAST_WIDTH)
    return found


def notes_in(view: View) -> list[str]:
    """Return the notes of a view: the scheduler does not answer, runs have stopped, records are damaged."""
    told = notes_of(view.readings, view.answers) if view.asked else []
    return [line.removeprefix("note: ") for line in [*told, *map(printable, view.damaged)]]


def title_of(view: View) -> str:
    """Return the time, and how many runs are in each state."""
    counts = Counter(cells_state(each, view) for each in view.readings)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{time.strftime('%H:%M:%S')}  {told or 'no run yet'}; Ctrl-C leaves this view, not the runs"


def cells_state(reading: Reading, view: View) -> str:
    """Return the state of a run without details."""
    state = row(reading, view.answers)[1].partition(" (")[0]
    return "asking Slurm" if state == "not running" and not view.asked else state


def print_changes(view: View, before: dict[Path, tuple[str, ...]], console: Console) -> dict[Path, tuple[str, ...]]:
    """Print the rows that have changed, all with their head at first; return all rows."""
    now = {each.folder: cells(each, view) for each in view.readings}
    changed = [row for folder, row in now.items() if before.get(folder) != row]
    first = [HEAD] if not before else []
    for line in in_columns([*first, *changed]) if changed else ():
        console.print(f"{time.strftime('%H:%M:%S')}  {line}", markup=False, soft_wrap=True)
    return now
