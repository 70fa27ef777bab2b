"""Weights to start from are read here, and nothing in their file is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from deeplense.models.pretrained import read_weights
from deeplense.models.registry import build


class Command:
    """An object whose pickle makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The weights of a small model, as timm names them."""
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=7).state_dict()


def written(kind: str, state: dict[str, Tensor], file: Path) -> Path:
    """A file of weights of some kind."""
    if kind == "safetensors":
        save_file(state, file.with_suffix(".safetensors"))
        return file.with_suffix(".safetensors")
    nested = {
        "plain": state,
        "nested": {"epoch": 3, "state_dict": state},
        "of ranks": {"model": {f"module.{key}": value for key, value in state.items()}},
        "averaged": {"state_dict": {key: 0 * value for key, value in state.items()}, "state_dict_ema": state},
    }
    torch.save(nested[kind], file)
    return file


@pytest.mark.parametrize("kind", ["safetensors", "plain", "nested", "of ranks", "averaged"])
def test_a_model_gets_the_weights_that_timm_would_give_it(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    file = written(kind, state, tmp_path / "weights.pth")
    network = build("test_resnet", image_size=32, in_chans=1, num_outputs=3, pretrained=True, pretrained_file=file)
    overlay = {"file": str(file)}
    theirs = timm.create_model(
        "test_resnet", pretrained=True, in_chans=1, num_classes=0, pretrained_cfg_overlay=overlay
    ).state_dict()
    ours = network.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert network.backbone.pretrained_cfg["state_dict"] is None  # type: ignore[index]


@pytest.mark.parametrize("kind", ["pickle", "torch", "in a dictionary", "legacy", "as safetensors"])
@pytest.mark.parametrize("name", ["test_resnet", "simple_cnn"])
def test_a_file_that_would_run_a_command_is_refused_in_one_line(kind: str, name: str, tmp_path: Path) -> None:
    file, made = tmp_path / "evil.pt", tmp_path / "made"
    if kind == "as safetensors":
        file = tmp_path / "evil.safetensors"
    evil: Any = {"state_dict": {}, "x": Command(made)} if kind == "in a dictionary" else Command(made)
    if kind in ("pickle", "as safetensors"):
        file.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, file, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(ValueError, match=r"evil\.\w+ is not a pure weight file") as refused:
        build(name, image_size=32, in_chans=1, num_outputs=3, pretrained=True, pretrained_file=file)
    assert "\n" not in str(refused.value)
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02."])
def test_what_is_no_file_of_weights_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a pure weight file"):
            read_weights(tmp_path / name)
    with pytest.raises(ValueError, match="is not a pure weight file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("held", [{}, [torch.zeros(2)], {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_weights_by_name_is_refused(held: object, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "held.pth")
    with pytest.raises(ValueError, match=r"held\.pth contains no named weights"):
        read_weights(tmp_path / "held.pth")
