"""What a training restores from its last checkpoint, after checking that it is intact and fits."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from deeplense.training import checkpoint
from deeplense.training.fitting import misfit
from deeplense.training.loop import from_main
from jobs.console import say
from jobs.ranks import on_main

CHANGING = ("lr", "weight_decay", "params")
"""Entries of the optimizer's parameter groups that the training loop sets anew."""
OF_KEPT = ("best", "best_step", "least_loss", "least_error")
"""Entries of the progress that describe the weights that are kept; older versions have only the first two."""
Unfit = Callable[[dict[str, Any]], str]
"""Returns why the states of a checkpoint do not fit, in words; empty if they fit."""


def resume_from(checkpoints: Path, accelerator: Accelerator, unfit: Unfit = lambda states: "") -> dict[str, Any] | None:
    """Return the newest intact checkpoint, the same on all ranks, or None. Other checkpoints are reported."""

    def find() -> Path | None:
        path, reports = checkpoint.newest_good(
            checkpoints, problem_of=problem_of, misfit_of=lambda path: unfit(checkpoint.load(path))
        )
        for report in reports:
            say(report)
        return path

    path = from_main(accelerator, on_main(accelerator, find))
    return checkpoint.load(path) if path is not None else None


def best_of(checkpoints: Path, accelerator: Accelerator) -> dict[str, Any]:
    """Return the progress stored with the weights that are kept, the same on all ranks; empty if there are none. A
    killed attempt may have written them after the checkpoint that is resumed. If they are lost or damaged, later best
    weights replace them."""

    def find() -> dict[str, Any]:
        path, reports = checkpoint.newest_good(checkpoints, kind="best", problem_of=problem_of)
        for report in reports:
            say(report)
        found = checkpoint.load(path, only=("progress",))["progress"] if path is not None else {}
        return {name: found[name] for name in OF_KEPT if name in found}

    return from_main(accelerator, on_main(accelerator, find))


def problem_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, including its progress; None if it is intact."""
    return checkpoint.damage(path) or progress_problem(path)


def progress_problem(path: Path) -> str | None:
    """Return what is wrong with the progress stored in an intact checkpoint; None if it is valid."""
    progress = checkpoint.load(path, only=("progress",)).get("progress", {})
    kinds = {"step": int, "best": float | int, "best_step": int, "dataset_id": str}
    newer = {"least_loss": float | int, "least_error": float | int, "highest": float | int}
    newer |= {"highest_step": int, "undefined": int}
    kinds |= {name: kind for name, kind in newer.items() if name in progress}
    wrong = [name for name, kind in kinds.items() if not isinstance(progress.get(name), kind)]
    if wrong:
        return f"its progress has no valid {wrong[0]}"
    statistics = progress.get("statistics")
    if not isinstance(statistics, dict) or not all(map(are_numbers, [statistics.get("mean"), *statistics.values()])):
        return "its progress has no valid statistics"
    named = path.name.rpartition("_")[2]
    return None if named == f"{progress['step']:08d}" else f"its content is from step {progress['step']}"


def are_numbers(values: Any) -> bool:
    """Whether this is a non-empty list of finite numbers."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in values)
    )


def why_unfit(
    states: Mapping[str, Any],
    *,
    network: nn.Module,
    make_optimizer: Callable[[nn.Module], Optimizer],
    with_mean: bool,
    num_bands: int,
) -> str:
    """Return why a checkpoint does not fit this network, its optimizer, and images with this number of bands; empty if
    it fits. `with_mean`: it must have a moving average of the weights."""
    expected = network.state_dict()
    for name in ("model", "ema") if with_mean else ("model",):
        if words := misfit(states.get(name), expected):
            return f"{name}: {words}"
    if any(len(values) != num_bands for values in states["progress"]["statistics"].values()):
        return f"progress: its images do not have {num_bands} bands"
    if not isinstance(states.get("record", {}).get("wandb_id"), str | None):
        return "record: it has no valid wandb_id"
    words = optimizer_misfit(states.get("optimizer"), make_optimizer(network))
    return f"optimizer: {words}" if words else ""


def optimizer_misfit(state: Any, optimizer: Optimizer) -> str:
    """Return why a state does not fit this optimizer, which has made no step; empty if it fits."""
    if not isinstance(state, Mapping):
        return "it has no state"
    groups, held = state.get("param_groups"), state.get("state")
    if not (isinstance(groups, list) and isinstance(held, Mapping) and len(groups) == len(optimizer.param_groups)):
        return "its parameter groups differ"
    parameters = {}
    for saved, group in zip(groups, optimizer.param_groups, strict=True):
        numbers = saved.get("params") if isinstance(saved, Mapping) else None
        if not isinstance(numbers, list) or len(numbers) != len(group["params"]) or not all(map(is_number, numbers)):
            return "its groups have different parameters"
        parameters |= dict(zip(numbers, group["params"], strict=True))
        different = [name for name in group.keys() & saved.keys() - {*CHANGING} if plain(group[name]) != saved[name]]
        if different:
            return f"{sorted(different)[0]} is {saved[sorted(different)[0]]!r:.40}"
    if len(parameters) != sum(len(group["params"]) for group in optimizer.param_groups):
        return "a parameter is in two groups"
    return next(filter(None, (moments_misfit(held[number], parameters.get(number)) for number in held)), "")


def moments_misfit(values: Any, parameter: Tensor | None) -> str:
    """Return why the moments do not fit the parameter; empty if they fit."""
    if parameter is None or not isinstance(values, Mapping):
        return "it has moments of an unknown parameter"
    for name, value in values.items():
        shapes = (parameter.shape, ()) if isinstance(value, Tensor) else ((),)
        if getattr(value, "shape", ()) not in shapes or not isinstance(value, Tensor | int | float | None):
            return f"{name} does not have the shape of its parameter"
    return ""


def is_number(value: Any) -> bool:
    """Whether this is an integer."""
    return isinstance(value, int)


def plain(value: Any) -> Any:
    """Return a value as it is stored in a checkpoint."""
    return list(value) if isinstance(value, tuple) else value
