"""Models of users: made by their names, and never because data name them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Command

from deeplense.models import own
from deeplense.models.registry import build
from jobs.runs.attempts import read_attempts
from launch.__main__ import main

CODE = """
import pathlib
import torch
from torch import nn

pathlib.Path(__file__).with_suffix(".imported").touch()

class Small(nn.Module):
    def __init__(self, in_chans):
        super().__init__()
        first = nn.Conv2d(in_chans, 4, 3, stride=2)
        self.layers = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(images)

class Wants(Small):
    def __init__(self, in_chans, width):
        super().__init__(in_chans)

def no_class(in_chans):
    return Small(in_chans)
"""


@pytest.fixture
def module(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of a user in the current folder, which notes that it was imported."""
    path = here / "lens_nets.py"
    path.write_text(CODE)
    monkeypatch.setattr(own, "ALLOWED", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(own.VARIABLE, raising=False)
    yield path
    sys.modules.pop("lens_nets", None)


def imported(module: Path) -> bool:
    """Whether a module was imported."""
    return module.with_suffix(".imported").exists()


def words(dataset: Path, run: Path) -> list[str]:
    """A short training of a user's model."""
    return (
        f"--dataset={dataset} --run={run} --epochs=2 --batch_size=16 --device=cpu --model_name=lens_nets:Small".split()
    )


def test_a_model_of_the_user_is_trained_and_then_evaluated_where_its_module_is_named(
    module: Path, dataset: Path, start: Callable[..., Command], capfd: pytest.CaptureFixture[str]
) -> None:
    run = module.parent / "run"
    assert main(["train", *words(dataset, run)]) == 0
    assert read_attempts(run)[-1]["ended"] == "finished"
    module.with_suffix(".imported").unlink()
    refused = start("evaluate", f"--run={run}", "--device=cpu")
    assert refused.wait() == 2
    assert "set DEEPLENSE_MODULES=lens_nets" in refused.log.read_text()
    assert not imported(module), "what the folder of a run says imports nothing"
    allowed = start("evaluate", f"--run={run}", "--device=cpu", environment={own.VARIABLE: "other, lens_nets"})
    assert allowed.wait() == 0, allowed.log.read_text()
    assert (run / "report" / "index.html").exists()


def test_its_last_layers_are_made_for_it(module: Path) -> None:
    own.allow("lens_nets:Small")
    network = build("lens_nets:Small", image_size=16, in_chans=2, num_outputs=3, dropout=0.1)
    assert network(torch.zeros(5, 2, 16, 16)).shape == (5, 3)
    assert sum(p.numel() for p in network.head.parameters()) == 4 * 3 + 3


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("lens_nets:Smal", {}, "lens_nets has no class Smal"),
        ("lens_nets:no_class", {}, "no class no_class that is a torch.nn.Module"),
        ("lens_nets:Wants", {}, "requires width, which deeplense does not pass"),
        ("nowhere_to_be_found:Net", {}, "cannot be imported"),
        ("lens_nets:Small", {"pretrained": True}, "no published weights"),
        ("lens_nets:Small", {"drop_path": 0.1}, "remove --drop_path"),
        ("lens_nets:Small", {"image_size": 2}, "does not accept images of 2 pixels"),
    ],
)
def test_what_is_wrong_with_it_is_said(name: str, changes: dict[str, object], told: str, module: Path) -> None:
    own.allow(name)
    asked = {"image_size": 16, "in_chans": 1, "num_outputs": 3} | changes
    with pytest.raises(ValueError, match=told):
        build(name, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a:b:c", "os.path:../x", ":Net", "module:", "a b:C"])
def test_other_names_with_a_colon_are_names_of_no_model(name: str) -> None:
    assert not own.is_own(name)
    with pytest.raises(ValueError, match="unknown model"):
        build(name, image_size=16, in_chans=1, num_outputs=3)
