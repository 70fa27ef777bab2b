"""A paragraph on the use of a cluster, for a proposal or a report to those who grant the time."""

import statistics
import time
from collections import Counter

from launch.findings import plural
from launch.sight.gathering import Gathered
from launch.sight.totals import Hours, hours, total


def paragraph(found: Gathered) -> str:
    """Return the paragraph as plain text."""
    return " ".join(filter(None, [use(found), division(found), waiting(found), cost(found), energy(found)]))


def use(found: Gathered) -> str:
    """Return what was used, and when."""
    totals, runs = found.totals, len({spell.run for spell in found.spells})
    dates = " and ".join(dict.fromkeys(day(when) for when in (totals.begun, totals.ended)))
    when = f"between {dates}" if " and " in dates else f"on {dates}"
    made = f"in {plural(totals.attempts, 'attempt')}"
    what = f"{plural(runs, 'run')} {'was' if runs == 1 else 'were'}"
    who = "It" if runs == 1 else "Together they"
    return f"{what} made {when}, {made}. {who} used {both(totals.used)}."


def division(found: Gathered) -> str:
    """Return on what the hours were spent, as shares of the scarcer resource."""
    totals = found.totals
    made, again, first, restart = (
        share(part, totals.used) for part in (totals.kept, totals.again, totals.first, totals.restart)
    )
    causes = ", ".join(f"{loss.ends} x {loss.cause}" for loss in found.losses)
    told = f"Of these hours, {made} went into work that is in the results and {first} into starting"
    if not found.losses:
        return f"{told}; no attempt was broken off."
    return f"{told}; {again} went into steps that had to be made again and {restart} into starting again ({causes})."


def waiting(found: Gathered) -> str:
    """Return how long the jobs waited."""
    waits = found.totals.waits_h
    if not any(waits):
        return ""
    middle = statistics.median(waits)
    told = f"The jobs waited {in_hours(sum(waits))} in the queue"
    return f"{told}; the median wait before an attempt was {in_hours(middle)}."


def cost(found: Gathered) -> str:
    """Return what a finished run cost."""
    done = [found.of(name) for name, each in found.readings.items() if each.is_over and found.of(name)]
    if not done:
        return "No run is finished yet."
    costs = [total(hours(spell, spell.seconds) for spell in spells) for spells in done]
    scarce = [cost.gpu if any(cost.gpu for cost in costs) else cost.cpu for cost in costs]
    unit = "GPU hours" if any(cost.gpu for cost in costs) else "core hours"
    if len(costs) == 1:
        return f"The finished run cost {number(scarce[0])} {unit}."
    mean = f"cost {number(statistics.fmean(scarce))} {unit} on average"
    return f"The {len(costs)} finished runs {mean} (from {number(min(scarce))} to {number(max(scarce))})."


def energy(found: Gathered) -> str:
    """Return the energy, if it is known."""
    totals = found.totals
    if totals.energy_kwh is None:
        return ""
    part = "" if totals.share_with_energy > 0.999 else f" for {100 * totals.share_with_energy:.0f} % of the core hours"
    return f"The nodes used {number(totals.energy_kwh)} kWh{part} according to Slurm."


def states(found: Gathered) -> Counter[str]:
    """Return how many runs are in each state."""
    from launch.sight.table import state_of

    return Counter(state_of(each, found.answers).partition(" (")[0] for each in found.readings.values())


def both(used: Hours) -> str:
    """Return hours of GPUs, if any, and of cores, as text."""
    cores = f"{number(used.cpu)} core hours"
    return f"{number(used.gpu)} GPU hours and {cores}" if used.gpu else cores


def share(part: Hours, whole: Hours) -> str:
    """Return a part in percent: of the GPU hours, or of the core hours if there are none."""
    fraction = part.gpu / whole.gpu if whole.gpu else part.cpu / whole.cpu if whole.cpu else 0.0
    return f"{100 * fraction:.1f} %"


def number(value: float) -> str:
    """Return a number with at least three significant digits, and thousands apart.

    Example:
        >>> number(12345.6), number(12.3456), number(0.012345), number(0)
        ('12,346', '12.3', '0.0123', '0')
    """
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def in_hours(value: float) -> str:
    """Return a time in hours, or in minutes or seconds if it is short.

    Example:
        >>> in_hours(30.2), in_hours(0.5), in_hours(0.001)
        ('30.2 h', '30 min', '4 s')
    """
    if value >= 1:
        return f"{number(value)} h"
    return f"{60 * value:.0f} min" if value >= 1 / 30 else f"{3600 * value:.0f} s"


def day(when: float) -> str:
    """Return the day of a time."""
    return time.strftime("%-d %B %Y", time.localtime(when))
