"""Run a benchmark on this machine and print a table."""

import importlib
import os
import time
from dataclasses import asdict, replace
from typing import Any

from deeplense.files import write_json
from jobs.benchmark.settings import DEFAULTS, Settings
from jobs.benchmark.timing import table_of
from jobs.console import say
from jobs.runs.environment import environment, num_cores, version_of
from jobs.settings import plain

PEERS = ("lenstronomy", "webdataset", "litdata", "mosaicml-streaming", "hdf5plugin", "lightly", "diffusers")
"""Packages that are compared with or needed for it; their versions are recorded."""


def run(settings: Settings) -> int:
    """Print a table and, if `output` is given, write it as JSON with the environment."""
    usual = DEFAULTS.get(settings.what, {})
    settings = replace(settings, **{name: getattr(settings, name) or value for name, value in usual.items()})
    before = circumstances(settings)
    rows = importlib.import_module(f"jobs.benchmark.{settings.what}").measure(settings)
    for line in table_of(rows):
        say(line)
    if settings.output:
        after = {"load_average_after": os.getloadavg(), "seconds": time.time() - before["unix_time"]}
        write_json(settings.output, before | after | {"rows": [asdict(row) for row in rows]})
    return 0


def circumstances(settings: Settings) -> dict[str, Any]:
    """Return what the results depend on: the machine, its load, package versions and settings."""
    here = environment()
    packages = here["packages"] | {name: version_of(name) for name in PEERS}
    return here | {
        "packages": packages,
        "settings": plain(settings),
        "num_cores": num_cores(),
        "unix_time": time.time(),
        "load_average_before": os.getloadavg(),
    }
