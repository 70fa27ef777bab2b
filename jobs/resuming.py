"""What a training takes over from its last checkpoint, once that is known to be whole and to fit."""

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
from jobs.progress import say
from jobs.ranks import on_main

CHANGING = ("lr", "weight_decay", "params")
"""What the loop sets anew in the groups of an optimizer."""
OF_KEPT = ("best", "best_step", "least_loss", "least_error")
"""What the progress of a training tells of the weights that are kept; older versions know the first two."""
Unfit = Callable[[dict[str, Any]], str]
"""Why the states of a checkpoint do not fit, in words; empty where they do."""


def resume_from(checkpoints: Path, accelerator: Accelerator, unfit: Unfit = lambda states: "") -> dict[str, Any] | None:
    """The newest good checkpoint, the same on all ranks, or None; others are reported."""

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
    """What the checkpoint of the weights that are kept tells of them, the same on all ranks; empty where there is none.
    A killed attempt may have written it after the checkpoint that is resumed; where it is lost or damaged, the next
    ones take its place."""

    def find() -> dict[str, Any]:
        path, reports = checkpoint.newest_good(checkpoints, kind="best", problem_of=problem_of)
        for report in reports:
            say(report)
        found = checkpoint.load(path, only=("progress",))["progress"] if path is not None else {}
        return {name: found[name] for name in OF_KEPT if name in found}

    return from_main(accelerator, on_main(accelerator, find))


def problem_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, its progress included; None where nothing is."""
    return checkpoint.damage(path) or progress_problem(path)


def progress_problem(path: Path) -> str | None:
    """What is wrong with what a whole checkpoint says of its progress; None where nothing is."""
    progress = checkpoint.load(path, only=("progress",)).get("progress", {})
    kinds = {"step": int, "best": float | int, "best_step": int, "dataset_id": str}
    newer = {"least_loss": float | int, "least_error": float | int, "highest": float | int}
    newer |= {"highest_step": int, "undefined": int}
    kinds |= {name: kind for name, kind in newer.items() if name in progress}
    wrong = [name for name, kind in kinds.items() if not isinstance(progress.get(name), kind)]
    if wrong:
        return f"its progress has no {wrong[0]} that can be used"
    statistics = progress.get("statistics")
    if not isinstance(statistics, dict) or not all(map(are_numbers, [statistics.get("mean"), *statistics.values()])):
        return "its progress has no statistics that can be used"
    named = path.name.rpartition("_")[2]
    return None if named == f"{progress['step']:08d}" else f"it is of step {progress['step']}"


def are_numbers(values: Any) -> bool:
    """Whether this is a list of finite numbers, and not empty."""
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
    """Why a checkpoint is not of this network, its optimizer and images of so many bands, in words; empty where it is.
    `with_mean`: it must have the running mean of the weights."""
    expected = network.state_dict()
    for name in ("model", "ema") if with_mean else ("model",):
        if words := misfit(states.get(name), expected):
            return f"{name}: {words}"
    if any(len(values) != num_bands for values in states["progress"]["statistics"].values()):
        return f"progress: it is of images with other than {num_bands} bands"
    if not isinstance(states.get("record", {}).get("wandb_id"), str | None):
        return "record: it has no wandb_id that can be used"
    words = optimizer_misfit(states.get("optimizer"), make_optimizer(network))
    return f"optimizer: {words}" if words else ""


def optimizer_misfit(state: Any, optimizer: Optimizer) -> str:
    """Why a state is not of an optimizer such as this, which has made no step; empty where it is."""
    if not isinstance(state, Mapping):
        return "it has no state"
    groups, held = state.get("param_groups"), state.get("state")
    if not (isinstance(groups, list) and isinstance(held, Mapping) and len(groups) == len(optimizer.param_groups)):
        return "it has other groups"
    parameters = {}
    for saved, group in zip(groups, optimizer.param_groups, strict=True):
        numbers = saved.get("params") if isinstance(saved, Mapping) else None
        if not isinstance(numbers, list) or len(numbers) != len(group["params"]) or not all(map(is_number, numbers)):
            return "its groups have other parameters"
        parameters |= dict(zip(numbers, group["params"], strict=True))
        different = [name for name in group.keys() & saved.keys() - {*CHANGING} if plain(group[name]) != saved[name]]
        if different:
            return f"{sorted(different)[0]} is {saved[sorted(different)[0]]!r:.40}"
    if len(parameters) != sum(len(group["params"]) for group in optimizer.param_groups):
        return "its groups have a parameter twice"
    return next(filter(None, (moments_misfit(held[number], parameters.get(number)) for number in held)), "")


def moments_misfit(values: Any, parameter: Tensor | None) -> str:
    """Why the moments of a parameter are not of this one; empty where they are."""
    if parameter is None or not isinstance(values, Mapping):
        return "it has moments of no parameter"
    for name, value in values.items():
        shapes = (parameter.shape, ()) if isinstance(value, Tensor) else ((),)
        if getattr(value, "shape", ()) not in shapes or not isinstance(value, Tensor | int | float | None):
            return f"{name} is not of the size of its parameter"
    return ""


def is_number(value: Any) -> bool:
    """Whether this is a whole number."""
    return isinstance(value, int)


def plain(value: Any) -> Any:
    """A value as a checkpoint holds it."""
    return list(value) if isinstance(value, tuple) else value
