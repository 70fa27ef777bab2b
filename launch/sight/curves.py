"""The curves of a report."""

from jobs.plot.pictures import pictures
from jobs.runs.curves import read_curves
from launch.sight.gathering import Gathered

MOST_CURVES = 30
"""Runs with the most steps whose curves are drawn."""


def curves_of(found: Gathered) -> dict[str, bytes]:
    """Return PNG files with the metrics of the runs that have logged any, by the name of the quantity."""
    most = sorted(found.readings, key=lambda name: -found.readings[name].step)[:MOST_CURVES]
    curves = {name: read_curves(each.folder) for name, each in found.readings.items() if name in set(most)}
    logged = {name: metrics for name, metrics in curves.items() if metrics}
    return pictures(logged) if logged else {}
