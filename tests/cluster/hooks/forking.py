"""Runs of a table that are forked from the process that starts them, once it has loaded torch (tests/forks.py). Their
figures are coarse."""

import os
import sys
from importlib import import_module
from typing import Any


def start(command: Any, environment: Any) -> Any:
    """What `jobs.processes.start` gives."""
    sys.path.append(os.environ["DEEPLENSE_FORKS"])
    from forks import Fork

    for name in ("jobs.evaluate.runs", "jobs.frame.updates"):
        import_module(name)
    from deeplense.evaluation import plots

    plots.DPI, plots.LAYOUT = 20, "none"
    return Fork(command, environment)
