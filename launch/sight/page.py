"""The page of `deeplense report`: one HTML file that needs no network."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from deeplense.files import replacing
from launch.findings import plural
from launch.sight.gathering import Gathered
from launch.sight.proposal import both, in_hours, number, paragraph, share, states
from launch.sight.spending import Spell
from launch.sight.table import state_of
from launch.sight.timeline import timeline
from launch.sight.totals import Hours, hours, total

LOST_HEADS = ("cause", "ends", "steps made again")
RUN_HEADS = ("lost", "waited", "last end")
PARTS = (
    ("kept", "work that is in the results", "kept"),
    ("first", "starting", "first"),
    ("again", "steps made again", "again"),
    ("restart", "starting again", "restart"),
)
"""Parts of the hours: attribute of the totals, name, colour."""


def write_page(path: Path, found: Gathered, curves: Mapping[str, bytes], *, title: str) -> None:
    """Write the page.

    Args:
        path: file to write.
        found: what it shows.
        curves: PNG files by what they show.
        title: its title.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(
        title=title,
        lead=lead_of(found),
        tiles=tiles(found),
        parts=parts(found),
        lost_heads=lost_heads(found),
        lost=lost_rows(found),
        timeline=timeline(found.spells),
        curves={label: base64.b64encode(png).decode() for label, png in curves.items()},
        run_heads=("run", "state", "attempts", "step", *(f"{unit} hours" for unit in units(found)), *RUN_HEADS),
        runs=run_rows(found),
        paragraph=paragraph(found),
        source=found.source,
        energy=found.energy,
        notes=found.notes,
        numbers=numbers(found),
    )
    with replacing(path) as temporary:
        temporary.write_text(page)


def lead_of(found: Gathered) -> str:
    """Return when the page was made, and the states of the runs."""
    told = ", ".join(f"{count} {state}" for state, count in states(found).items())
    return f"{plural(len(found.readings), 'run')}: {told}. Made on {time.strftime('%-d %B %Y at %H:%M')}."


def tiles(found: Gathered) -> list[tuple[str, str, str]]:
    """Return the main numbers: a value, what it is, and a remark."""
    totals = found.totals
    told = [(number(totals.used.gpu), "GPU hours used", "")] if totals.used.gpu else []
    told.append((number(totals.used.cpu), "core hours used", ""))
    told.append((share(totals.lost, totals.used), "of them lost", "steps made again, and starting again"))
    told.append((in_hours(totals.waited_h), "waited in the queue", f"before {plural(len(totals.waits_h), 'start')}"))
    told.append((str(totals.attempts), "attempts", f"of {plural(len(found.readings), 'run')}"))
    if totals.energy_kwh is not None:
        told.append((number(totals.energy_kwh), "kWh", "measured by Slurm"))
    return told


def parts(found: Gathered) -> list[dict[str, Any]]:
    """Return the parts of the hours, with their shares in percent."""
    totals = found.totals
    told = []
    for name, text, kind in PARTS:
        part: Hours = getattr(totals, name)
        whole = totals.used.gpu or totals.used.cpu
        percent = 100 * (part.gpu if totals.used.gpu else part.cpu) / whole if whole else 0.0
        told.append({"text": text, "kind": kind, "percent": percent, "hours": both(part)})
    return told


def lost_rows(found: Gathered) -> list[tuple[str, ...]]:
    """Return the rows of the table of lost work."""
    return [
        (
            loss.cause,
            str(loss.ends),
            f"{loss.steps:,}",
            *columns(loss.again, found),
            *columns(loss.restart, found),
            in_hours(loss.waited_h),
        )
        for loss in found.losses
    ]


def lost_heads(found: Gathered) -> list[str]:
    """Return the heads of the table of lost work."""
    for_them = [f"{unit} hours for them" for unit in units(found)]
    return [*LOST_HEADS, *for_them, *(f"{unit} hours to start again" for unit in units(found)), "waited afterwards"]


def units(found: Gathered) -> list[str]:
    """Return what hours are counted of: GPUs, if there are any, and cores."""
    return ["GPU", "core"] if found.totals.used.gpu else ["core"]


def columns(used: Hours, found: Gathered) -> list[str]:
    """Return hours as the cells of their columns."""
    return [number(used.gpu), number(used.cpu)] if found.totals.used.gpu else [number(used.cpu)]


def run_rows(found: Gathered) -> list[tuple[str, ...]]:
    """Return the rows of the table of runs."""
    rows = []
    for name, each in found.readings.items():
        ours = found.of(name)
        used = total(hours(spell, spell.seconds) for spell in ours)
        steps = f"{each.step:,}" + (f" of {each.progress['total']:,}" if each.progress else "")
        rows.append(
            (
                name,
                state_of(each, found.answers),
                str(each.num_attempts),
                steps if each.step else "-",
                *columns(used, found),
                share(lost_by(ours), used),
                in_hours(sum(spell.waited_s for spell in ours) / 3600),
                each.last_end or "-",
            )
        )
    return rows


def lost_by(spells: Sequence[Spell]) -> Hours:
    """Return the hours that a run lost."""
    attempts = [spell for spell in spells if spell.number is not None]
    again = total(hours(spell, spell.again_s) for spell in spells)
    later = [*attempts[1:], *(spell for spell in spells if spell.number is None)]
    return again + total(hours(spell, spell.other_s) for spell in later)


def numbers(found: Gathered) -> str:
    """Return the sums as JSON, for other programs that read the page."""
    told = asdict(found.totals) | {"losses": [asdict(loss) for loss in found.losses]}
    # A script element ends at the first </, whatever is around it.
    return json.dumps(told, indent=1).replace("<", "\\u003c")
