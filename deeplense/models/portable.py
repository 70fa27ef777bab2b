"""A trained network in files that timm can read: one where timm's classifier does what our last layers do, else the
backbone and the last layers apart. What timm lacks goes into one file for `registry.build`.

A form counts only where models made anew from its files give the outputs of the network.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deeplense.models.registry import Network, build

TOLERANCE = 1e-5
"""Largest difference of outputs, in units of the largest output."""
IMPORTS = ("import timm", "from safetensors.torch import load_file", "from torch import nn")
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Form:
    """Files of weights, and how to make the model of them again: from timm or from `registry.build` by these arguments,
    with the last layers after it where they are apart."""

    name: str
    arguments: Mapping[str, Any]
    files: Mapping[str, Weights]
    of_timm: bool = True
    head: nn.Sequential | None = None

    @property
    def whole(self) -> bool:
        """Whether timm alone makes the model, from one file."""
        return self.of_timm and self.head is None

    def make(self, folder: Path) -> nn.Module:
        """The model, made anew from the files in a folder. What is of timm takes images of the size it wants."""
        first, *others = (folder / name for name in self.files)
        if not self.of_timm:
            model = build(self.name, **self.arguments)
            model.load_state_dict(load_file(first))
            return model.eval()
        model = timm.create_model(self.name, **self.arguments, checkpoint_path=str(first))
        if self.head is not None:
            head = copy.deepcopy(self.head)
            head.load_state_dict(load_file(others[0]))
            model = nn.Sequential(model, head)
        return model.eval()

    def python(self) -> list[str]:
        """The same as lines of Python."""
        first, *others = self.files
        told = ", ".join([repr(self.name), *(f"{name}={value!r}" for name, value in self.arguments.items())])
        if not self.of_timm:
            lines = [IMPORTS[1], "from deeplense.models.registry import build", f"model = build({told}).eval()"]
            return [*lines, f"model.load_state_dict(load_file({first!r}))"]
        made = f"timm.create_model({told}, checkpoint_path={first!r}).eval()"
        if self.head is None:
            return [IMPORTS[0], f"model = {made}"]
        layers = ", ".join(f"nn.{layer!r}" for layer in self.head)
        lines = [*IMPORTS, f"head = nn.Sequential({layers}).eval()", f"head.load_state_dict(load_file({others[0]!r}))"]
        return [*lines, f"model = nn.Sequential({made}, head)"]


def write_portable(
    network: Network, name: str, path: Path, *, in_chans: int, image_size: int
) -> tuple[Form, str | None]:
    """Write the files of the first form that gives the outputs of a network.

    Args:
        network: with its trained weights.
        name: what timm, or the baselines, call it.
        path: the first file; it ends in `.safetensors`. Others stand beside it.
        in_chans: bands of the images that the network gets.
        image_size: pixels a side of these images.

    Returns:
        The form, and where timm alone cannot make the model, why.

    Raises:
        ValueError: no form gives the outputs of the network, or they are not finite.
    """
    images = torch.randn(4, in_chans, image_size, image_size, generator=torch.Generator().manual_seed(0))
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        outputs = network(images)
    if not outputs.isfinite().all():
        raise ValueError(f"the outputs of this {name} are not finite; its training has failed.")
    why = reason(network, name)
    for make_form in forms(network, name, path.name, in_chans=in_chans, image_size=image_size):
        try:
            form = make_form()
            for file, weights in form.files.items():
                write(weights, path.with_name(file))
            given = network.input_size(images) if form.of_timm else images
            problem = difference(form.make(path.parent), given, outputs)
        except (AssertionError, KeyError, RuntimeError, TypeError) as error:
            form, problem = None, " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if form is not None and problem is None:
            return form, None if form.whole else why
        why = why or f"what timm's {name} does between features and outputs is not one linear layer ({problem})"
    raise ValueError(f"no file of weights gives the outputs of this {name} again: {why}")


def write(weights: Weights, path: Path) -> None:
    """Write weights; those that share memory are written twice."""
    save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, path)


def reason(network: Network, name: str) -> str | None:
    """Why timm alone cannot make such a network, where that is known beforehand."""
    if not network.of_timm:
        return f"timm has no {name}"
    between = [layer.out_features for layer in network.head if isinstance(layer, nn.Linear)][:-1]
    return f"timm's {name} has no layers of {between} units between features and outputs" if between else None


@torch.no_grad()
def difference(model: nn.Module, images: Tensor, outputs: Tensor) -> str | None:
    """How far the outputs of a model are from those that they should be, or None where they are the same."""
    error = float((model(images) - outputs).abs().max() / outputs.abs().max())
    return None if error <= TOLERANCE else f"its outputs differ by {error:.1g} of the largest"


def forms(network: Network, name: str, file: str, *, in_chans: int, image_size: int) -> Iterator[Callable[[], Form]]:
    """Forms that may give the network's outputs, each yet to be made, best first."""
    if not network.of_timm:
        yield partial(of_ours, network, name, file, in_chans=in_chans, image_size=image_size)
        return
    for make in (whole, apart) if len(network.head) == 2 else (apart,):
        yield partial(make, network, file)


def whole(network: Network, file: str) -> Form:
    """All in timm's model: the last linear layer under the names of its classifiers, of which it has several where it
    takes their mean."""
    last = network.head[-1]
    arguments: dict[str, Any] = {"num_classes": last.out_features} | told(network)
    expected = timm.create_model(network.timm_name, **arguments)
    names: str | tuple[str, ...] = expected.pretrained_cfg["classifier"]  # type: ignore[index]
    shapes, weights = expected.state_dict(), dict(network.backbone.state_dict())
    for classifier in (names,) if isinstance(names, str) else names:
        for part in ("weight", "bias"):
            # Some classifiers are convolutions of one pixel.
            weights[f"{classifier}.{part}"] = getattr(last, part).reshape(shapes[f"{classifier}.{part}"].shape)
    return Form(network.timm_name, arguments, {file: weights})


def apart(network: Network, file: str) -> Form:
    """timm's model without a classifier, and the last layers in a file of their own."""
    files = {
        file: network.backbone.state_dict(),
        str(Path(file).with_suffix(".head.safetensors")): network.head.state_dict(),
    }
    return Form(network.timm_name, {"num_classes": 0} | told(network), files, head=network.head)


def told(network: Network) -> dict[str, Any]:
    """What timm was told to make the backbone, but for the classes."""
    return {name: value for name, value in network.timm_options.items() if name != "num_classes"}


def of_ours(network: Network, name: str, file: str, *, in_chans: int, image_size: int) -> Form:
    """The whole network, as `registry.build` makes it."""
    arguments = {
        "image_size": image_size,
        "in_chans": in_chans,
        "num_outputs": network.head[-1].out_features,
        "extra_layers": len(network.head) > 2,
    }
    return Form(name, arguments, {file: network.state_dict()}, of_timm=False)
