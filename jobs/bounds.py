"""Upper limits of settings that start processes or allocate memory. Larger values are typing errors and would overload
the machine."""

import re
from collections.abc import Mapping
from typing import Any

from jobs.settings import require

MOST = {
    **dict.fromkeys(("num_workers", "read_ahead", "at_once", "num_local", "explain", "rounds"), 1024),
    **dict.fromkeys(("num_folds", "in_chans", "keep_checkpoints"), 10_000),
    "similar": 50,
    **dict.fromkeys(("image_size", "local_size", "crop"), 16_384),
    **dict.fromkeys(("batch_size", "gradient_accumulation", "num_resamples", "num_sampled", "num_times"), 1_000_000),
    **dict.fromkeys(
        ("images_per_file", "num_evaluations", "num_steps", "out_dim", "hidden_dim", "shuffle_block", "shuffle_window"),
        1_000_000,
    ),
    **dict.fromkeys(("num_images", "num_per_class", "num_labels", "num_updates", "log_interval"), 1_000_000_000),
    **dict.fromkeys(("top", "survey_size"), 1_000_000_000_000),
    "seed": 2**63 - 1,
}
PROCESSES = ("num_workers", "read_ahead", "at_once", "num_processes")
"""Settings whose value is a number of processes or threads to start."""
EACH_CORE, FEW = 4, 16
"""So many a core of a machine can be meant, and in any case so few."""
MOST_PARTS = 10_000


def refuse_excess(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first, if a setting exceeds its limit on any machine."""
    for name, value in values.items():
        most = MOST.get(name)
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(f"{name}={value} is too large; use {most} or less.")


def refuse_crowd(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first, if a setting starts more processes than this machine can run."""
    from jobs.runs.environment import num_cores

    cores = num_cores()
    most = max(EACH_CORE * cores, FEW)
    for name in PROCESSES:
        value = values.get(name) or 0
        if value > most:
            raise ValueError(
                f"{name}={value} would start {value} processes or threads, but this machine has {cores} cores; "
                f"use {most} or less."
            )


def read_part(text: str) -> tuple[int, int]:
    """Return (K, N) from the text `K/N`. Raises ValueError unless it has this form, with K from 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    require(found is not None, f"part={text!r} must be K/N, such as 1/8 for the first of eight.")
    assert found
    number, count = int(found[1]), int(found[2])
    require(count <= MOST_PARTS, f"part={text} has more than {MOST_PARTS} parts; use fewer.")
    require(1 <= number <= count, f"part={text} is out of range; use 1/{count} to {count}/{count}.")
    return number, count
