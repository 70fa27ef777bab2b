"""The table of `deeplense status`: one row for each run, then a note for each that has stopped."""

import os
from collections.abc import Sequence
from pathlib import Path

from jobs.runs.folder import NOTICES
from launch import waiting
from launch.findings import printable
from launch.notices import undelivered
from launch.sight.overview import Answers, ask, read_all, unknown
from launch.sight.reading import Reading
from launch.status import shown, standing, stands

MOST_NOTES = 20
HEAD = ("RUN", "STATE", "ATTEMPT", "STEP", "RATE", "TIME LEFT", "LAST END")
QUIET, QUIET_S = "no step for", 300.0
"""Seconds without a step after which a running run is reported to make none. An evaluation may take minutes."""


def table(folders: Sequence[Path]) -> list[str]:
    """Return a table of runs with a header line, then a note for each stopped run: why, and how to resume it."""
    readings, damaged = read_all(folders)
    answers = ask(readings)
    rows = [HEAD, *(row(each, answers) for each in readings)]
    return [*in_columns(rows), *pipelines(readings, answers), *notes_of(readings, answers), *map(printable, damaged)]


def notes_of(readings: Sequence[Reading], answers: Answers) -> list[str]:
    """Return all notes on these runs: they have stopped, or wait for runs that have, the scheduler does not answer, a
    notice was lost."""
    found = [
        *notes(readings, answers),
        *in_vain(readings, answers),
        *unknown(readings, answers),
        *notices_lost(readings),
    ]
    return list(map(printable, found))


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of texts as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in rows]


def notes(readings: Sequence[Reading], answers: Answers) -> list[str]:
    """Return why runs have stopped and how to resume them; of many, the first."""
    if answers.problem:
        return []
    left = [each for each in readings if stands(each.run, answers.states.get(each.folder), is_over=each.is_over)]
    told = [
        line
        for each in left[:MOST_NOTES]
        for line in standing(each.run, answers.states.get(each.folder), answers.accounted.get(each.folder, ""))
    ]
    return told + [f"note: and {len(left) - MOST_NOTES} more"] * (len(left) > MOST_NOTES)


def in_vain(readings: Sequence[Reading], answers: Answers) -> list[str]:
    """Return a note for each run of this user that waits for runs that have stopped; of many, the first."""
    own = [each.folder for each in readings if not each.run.stranger]
    there = [folder for folder in own if folder in answers.states]
    looked_for = [] if answers.problem else own
    found = [line for folder in there for line in waiting.notes(folder, answers.states, looked_for=looked_for)]
    return found[:MOST_NOTES]


def pipelines(readings: Sequence[Reading], answers: Answers) -> list[str]:
    """Return a line for each pipeline: its stages, with their states."""
    found = waiting.pipelines([] if answers.problem else [each.folder for each in readings], answers.states)
    return [printable(line) for line in found]


def notices_lost(readings: Sequence[Reading]) -> list[str]:
    """Return a note for each run of this user whose newest notice may not have arrived; of many, the first."""
    found = [
        f"note: {shown(each.folder)}: {text}"
        for each in readings
        if not each.run.stranger and os.path.exists(f"{each.folder}/{NOTICES}")
        for text in undelivered(each.folder)
    ]
    return found[:MOST_NOTES]


def row(reading: Reading, answers: Answers) -> tuple[str, ...]:
    """Return the table row of a run."""
    state, progress = answers.states.get(reading.folder), reading.progress
    running = state is not None and state[0] == "RUNNING" and reading.is_fresh
    rate = progress["rate"] if progress and running else 0.0
    return (
        printable(str(shown(reading.folder))),
        state_of(reading, answers),
        str(reading.num_attempts),
        f"{reading.step}/{progress['total']}" if progress else "-",
        f"{rate:.1f}/s" if progress and running else "-",
        duration((progress["total"] - progress["step"]) / rate) if progress and rate else "-",
        printable(reading.last_end) or "-",
    )


def state_of(reading: Reading, answers: Answers) -> str:
    """Return the state of a run, with the reason of the scheduler if it is pending."""
    run, state = reading.run, waiting.explained(reading.folder, answers.states.get(reading.folder))
    if reading.finished_step is not None:
        return "finished"
    if state is not None:
        return state[0].lower() + in_brackets(details(reading, *state))
    if reading.is_over:
        return "finished"
    if run.stranger:
        return f"not checked (writable by {run.stranger})"
    if answers.problem and not run.local:
        return "unknown"
    return answers.accounted.get(reading.folder, "").split(" ")[0].lower() or "not running"


def details(reading: Reading, state: str, reason: str) -> list[str]:
    """Return what to add to the state of a run in the queue: whose it is, why it waits, or that it makes no step."""
    told = [f"of {reading.run.stranger}"] if reading.run.stranger else []
    if (state == "PENDING" or reading.run.by_hand) and reason not in ("None", ""):
        told.append(printable(reason))
    quiet_s = reading.seconds_without_step
    if state == "RUNNING" and quiet_s > QUIET_S:
        told.append(f"{QUIET} {quiet_s / 60:.0f} min")
    return told


def in_brackets(texts: Sequence[str]) -> str:
    """Return texts in brackets after a space; empty if there are none."""
    return f" ({', '.join(texts)})" if texts else ""


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
