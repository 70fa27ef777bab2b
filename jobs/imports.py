"""Imports that skip an unused dependency."""

import importlib
import sys

PYTHON = (sys.executable, "-P")
"""This Python, which does not import modules from the current folder: a user's jobs.py or queue.py there would replace
those of deeplense or of Python."""


def import_without(name: str, other: str) -> None:
    """Import a package as if an optional dependency of it were not installed. timm would import Weights & Biases, which
    takes a third of a second in each rank of each attempt and is not used here."""
    if other in sys.modules:
        return
    sys.modules[other] = None  # type: ignore[assignment]  # marks the module as not installed
    try:
        importlib.import_module(name)
    finally:
        del sys.modules[other]
