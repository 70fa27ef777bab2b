"""The library refuses what the command line refuses: a name that stands for nothing is an error, with the nearest."""

import ast
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplense.choices import Choices, require_choice
from deeplense.data.scaling import Scaling
from deeplense.data.shards import Schema
from deeplense.diffusion.denoiser import Denoiser, errors, image_of, loss_weights, target_of
from deeplense.diffusion.schedules import cosine
from deeplense.diffusion.unet import SHAPES
from deeplense.diffusion.zoo import SAMPLERS, SCHEDULES
from deeplense.evaluation.explanations import Map
from deeplense.models.registry import build
from deeplense.schedules import learning_rate
from deeplense.simulation.populations import Population, default_mass_slope
from deeplense.ssl.ibot import IBOT
from deeplense.ssl.views import PRESETS
from deeplense.training.loop import make_accelerator
from deeplense.training.tracking import Tracker, start_wandb

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "deeplense").rglob("*.py"))
}
ONE = torch.ones(1, 1, 2, 2)
RATE: dict[str, Any] = {"lr": 1.0, "lr_min": 0.0, "num_steps": 9, "warmup_steps": 1, "period_steps": 3, "gamma": 0.5}
SCHEMA: dict[str, Any] = {
    "split": "train", "num_samples": 1, "shape": (1, 2, 2), "bands": ("r",), "unit": "", "pixel_scale_arcsec": None,
    "classes": (), "targets": {},
}  # fmt: skip
NOWHERE, TRACKED = (Path("nowhere"),), {"project": "", "config": {}}
WEIGHTS: dict[str, Any] = {"alpha": ONE, "sigma": ONE}
CALLS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "Population model": (lambda value: Population(value, "noisy", -0.9), "Model_IV", "Model_I"),
    "Population preset": (lambda value: Population("Model_III", value, -0.9), "nosy", "noisy"),
    "default_mass_slope": (default_mass_slope, "phisical", "physical"),
    "learning_rate": (lambda value: learning_rate(0, schedule=value, **RATE), "cosin", "cosine"),
    "Scaling": (partial(Scaling, {}), "asihn", "asinh"),
    "make_accelerator precision": (lambda value: make_accelerator(device="cpu", precision=value), "bf61", "bf16"),
    "make_accelerator device": (lambda value: make_accelerator(device=value, precision="fp32"), "cud", "cuda"),
    "Denoiser target": (lambda value: Denoiser(torch.nn.Identity(), cosine(8), target=value), "epss", "eps"),
    "Denoiser loss": (lambda value: Denoiser(torch.nn.Identity(), cosine(8), loss=value), "hubert", "huber"),
    "target_of": (lambda value: target_of(ONE, ONE, target=value, **WEIGHTS), "epss", "eps"),
    "image_of": (lambda value: image_of(ONE, ONE, target=value, **WEIGHTS), "x00", "x0"),
    "loss_weights": (lambda value: loss_weights(ONE, target=value, min_snr_gamma=None), "epss", "eps"),
    "errors": (lambda value: errors(ONE, ONE, value), "l22", "l2"),
    "samplers": (SAMPLERS.__getitem__, "dpm_solvr", "dpm_solver"),
    "schedules": (SCHEDULES.__getitem__, "sigmod", "sigmoid"),
    "shapes": (SHAPES.__getitem__, "unet_smal", "unet_small"),
    "views": (PRESETS.__getitem__, "lense", "lenses"),
    "IBOT": (lambda value: ibot(center_tokens=value), "mask", "masked"),
    "Map": (lambda value: Map("name", value, ONE, 1), "rolout", "rollout"),
    "Tracker": (lambda value: Tracker(*NOWHERE, mode=value, **TRACKED, last_step=0), "ofline", "offline"),
    "start_wandb": (lambda value: start_wandb(*NOWHERE, mode=value, **TRACKED), "onlin", "online"),
}  # fmt: skip


OTHERS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "Schema dtype": (lambda value: Schema(**SCHEMA, dtype=value), "flot32", "one of .*float32"),
    "Schema compression": (
        lambda value: Schema(**SCHEMA, dtype="float32", compression=value),
        "lz5",
        "one of .*lz4",
    ),
    "build": (lambda value: build(value, image_size=32, in_chans=1, num_outputs=2), "resnet_18", "Nearest: resnet18"),
}
"""What says it in other words."""


def ibot(**options: Any) -> IBOT:
    """iBOT around nothing."""
    masks: dict[str, Any] = {"make_masks": lambda uniforms, grid: uniforms, "mask_uniforms": 1}
    return IBOT(torch.nn.Identity(), num_features=2, num_steps=3, out_dim=4, hidden_dim=4, **masks, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_name_is_refused_with_the_nearest(name: str) -> None:
    call, wrong, right = CALLS[name]
    with pytest.raises(ValueError, match=f"Did you mean {right}\\b") as refused:
        call(wrong)
    assert repr(wrong) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_models_and_of_the_format_are_refused_with_the_right_ones(name: str) -> None:
    call, wrong, said = OTHERS[name]
    with pytest.raises(ValueError, match=f"{wrong}.*{said}"):
        call(wrong)


def literals(module: str) -> set[str]:
    """The names of a module's own kinds of text."""
    names = vars(importlib.import_module(module))
    return {name for name, value in names.items() if str(value).startswith("typing.Literal['")}


def asked_for(node: ast.FunctionDef | ast.ClassDef, kinds: set[str]) -> set[str]:
    """The parameters of a function, or the fields of a class, that are of these kinds."""
    if isinstance(node, ast.ClassDef):
        pairs = [(ast.unparse(each.target), each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)]
    else:
        all_arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        pairs = [(each.arg, each.annotation) for each in all_arguments if each.annotation]
    return {name for name, kind in pairs if ast.unparse(kind) in kinds or ast.unparse(kind).startswith("Literal[")}


def checked(node: ast.AST) -> set[str]:
    """What a function or class says require_choice of."""
    calls = [
        each for each in ast.walk(node) if isinstance(each, ast.Call) and ast.unparse(each.func) == "require_choice"
    ]
    return {ast.unparse(each.args[0]).strip("'") for each in calls}


def unchecked(text: str, kinds: set[str]) -> Iterator[str]:
    """The functions and classes that take one of a few names, and do not look at it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from (f"{node.name}({name})" for name in sorted(asked_for(node, kinds) - checked(node)))


@pytest.mark.parametrize("module", MODULES)
def test_whatever_takes_one_of_a_few_names_looks_at_it(module: str) -> None:
    assert list(unchecked(MODULES[module].read_text(), literals(module))) == []


def test_what_does_not_look_is_found() -> None:
    assert list(unchecked("def f(a: int, *, way: Way) -> None: ...", {"Way"})) == ["f(way)"]
    assert list(unchecked("class C:\n    way: Literal['a', 'b']\n", set())) == ["C(way)"]
    assert list(unchecked("def f(way: Way) -> None:\n    require_choice('way', way, WAYS)", {"Way"})) == []


def test_a_table_of_choices_is_a_dictionary_but_for_names_that_are_not_in_it() -> None:
    table = Choices("way", {"a": 1, "b": 2})
    assert table == {"a": 1, "b": 2}
    assert table.get("c") is None
    with pytest.raises(ValueError, match=r"^way='c' is unknown; choose one of a, b\.$"):
        table["c"]
    require_choice("way", "a", table)
