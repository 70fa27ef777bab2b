"""How large a setting may be at most that starts processes or takes memory: more is a slip, and would take the machine
with it."""

from collections.abc import Mapping
from typing import Any

MOST = {
    **dict.fromkeys(("num_workers", "read_ahead", "at_once", "num_local", "explain", "rounds"), 1024),
    **dict.fromkeys(("num_folds", "in_chans", "keep_checkpoints"), 10_000),
    **dict.fromkeys(("image_size", "local_size", "crop"), 16_384),
    **dict.fromkeys(("batch_size", "gradient_accumulation", "num_resamples", "num_sampled", "num_times"), 1_000_000),
    **dict.fromkeys(
        ("num_evaluations", "num_steps", "out_dim", "hidden_dim", "shuffle_block", "shuffle_window"), 1_000_000
    ),
    **dict.fromkeys(("num_images", "num_per_class", "num_labels", "num_updates", "log_interval"), 1_000_000_000),
    "seed": 2**63 - 1,
}
PROCESSES = ("num_workers", "read_ahead", "at_once", "num_processes")
"""Settings that start so many processes or threads."""
EACH_CORE, FEW = 4, 16
"""So many a core of a machine can be meant, and in any case so few."""
MOST_PARTS = 10_000


def refuse_excess(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first, where a setting is more than can be meant on any machine."""
    for name, value in values.items():
        most = MOST.get(name)
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(f"{name}={value} is more than can be meant; give {most} or less.")


def refuse_crowd(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first, where a setting starts more processes than this machine can bear."""
    from jobs.runs import num_cores

    cores = num_cores()
    most = max(EACH_CORE * cores, FEW)
    for name in PROCESSES:
        value = values.get(name) or 0
        if value > most:
            raise ValueError(
                f"{name}={value} would start {value} processes or threads here, and this machine has {cores} cores; "
                f"give {most} or less."
            )
