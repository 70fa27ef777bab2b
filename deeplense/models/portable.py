"""A trained network as files that timm can read: one file if timm's classifier is equivalent to the head, otherwise the
backbone and the head in separate files. A network that timm does not have goes into one file for `registry.build`.

A form is used only if models built from its files reproduce the outputs of the network.
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
"""Largest difference of outputs, relative to the largest output."""
IMPORTS = ("import timm", "from safetensors.torch import load_file", "from torch import nn")
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Form:
    """Files of weights, and how to build the model from them: by timm or `registry.build` with these arguments,
    followed by the head if it is separate.

    Args:
        name: name of the model.
        arguments: arguments of `timm.create_model` or `registry.build`.
        files: weights by file name.
        of_timm: whether timm builds the model.
        head: separate head; None if it is part of the model.
    """

    name: str
    arguments: Mapping[str, Any]
    files: Mapping[str, Weights]
    of_timm: bool = True
    head: nn.Sequential | None = None

    @property
    def whole(self) -> bool:
        """Whether timm alone builds the model, from one file."""
        return self.of_timm and self.head is None

    def make(self, folder: Path) -> nn.Module:
        """Return the model, built from the files in a folder. A model of timm takes images of its own input size."""
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
        """Return the same as lines of Python."""
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
    """Write the files of the first form that reproduces the outputs of a network.

    Args:
        network: network with its trained weights.
        name: its name in timm or the zoo.
        path: first file; it ends in `.safetensors`. Other files are written beside it.
        in_chans: number of bands of the network's images.
        image_size: pixels per side of these images.

    Returns:
        The form, and why timm alone cannot build the model (None if it can).

    Raises:
        ValueError: no form reproduces the outputs of the network, or they are not finite.
    """
    images = torch.randn(4, in_chans, image_size, image_size, generator=torch.Generator().manual_seed(0))
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        outputs = network(images)
    if not outputs.isfinite().all():
        raise ValueError(f"the outputs of this {name} are not finite, so its training has failed; train it again.")
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
        why = why or f"timm's {name} does not have exactly one linear layer between features and outputs ({problem})"
    raise ValueError(f"no weight file reproduces the outputs of this {name}: {why}")


def write(weights: Weights, path: Path) -> None:
    """Write weights as safetensors; those that share memory are written twice.

    Args:
        weights: tensors by name.
        path: file to write.
    """
    save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, path)


def reason(network: Network, name: str) -> str | None:
    """Return why timm alone cannot build such a network, if that is known in advance.

    Args:
        network: the network.
        name: its name.
    """
    if not network.of_timm:
        return f"timm has no {name}"
    between = [layer.out_features for layer in network.head if isinstance(layer, nn.Linear)][:-1]
    return f"timm's {name} has no layers of {between} units between features and outputs" if between else None


@torch.no_grad()
def difference(model: nn.Module, images: Tensor, outputs: Tensor) -> str | None:
    """Describe how far the outputs of a model are from the expected ones; None if they agree to `TOLERANCE`.

    Args:
        model: the model that is tested.
        images: (B, C, S, S).
        outputs: expected outputs, (B, K).

    Example:
        >>> ones = torch.ones(1, 2)
        >>> difference(nn.Identity(), ones, ones) is None
        True
        >>> difference(nn.Identity(), ones, 2 * ones)
        'its outputs differ by 0.5 of the largest output'
    """
    error = float((model(images) - outputs).abs().max() / outputs.abs().max())
    return None if error <= TOLERANCE else f"its outputs differ by {error:.1g} of the largest output"


def forms(network: Network, name: str, file: str, *, in_chans: int, image_size: int) -> Iterator[Callable[[], Form]]:
    """Yield the forms that may reproduce the network's outputs, each to be made by a call, best first.

    Args:
        network: the network.
        name: its name.
        file: name of the first file.
        in_chans: number of bands of the network's images.
        image_size: pixels per side of these images.
    """
    if not network.of_timm:
        yield partial(of_ours, network, name, file, in_chans=in_chans, image_size=image_size)
        return
    for make in (whole, apart) if len(network.head) == 2 else (apart,):
        yield partial(make, network, file)


def whole(network: Network, file: str) -> Form:
    """Return the form with everything in timm's model: the last linear layer takes the place of its classifier, or of
    each of its classifiers if it has several and averages them.

    Args:
        network: network of timm with one linear layer as its head.
        file: name of the file.
    """
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
    """Return the form with timm's model without a classifier, and the head in a file of its own.

    Args:
        network: network of timm.
        file: name of the file of the backbone.
    """
    files = {
        file: network.backbone.state_dict(),
        str(Path(file).with_suffix(".head.safetensors")): network.head.state_dict(),
    }
    return Form(network.timm_name, {"num_classes": 0} | told(network), files, head=network.head)


def told(network: Network) -> dict[str, Any]:
    """Return the arguments of timm that made the backbone, without the number of classes."""
    return {name: value for name, value in network.timm_options.items() if name != "num_classes"}


def of_ours(network: Network, name: str, file: str, *, in_chans: int, image_size: int) -> Form:
    """Return the form of the whole network, as `registry.build` builds it.

    Args:
        network: the network.
        name: its name in the zoo.
        file: name of the file.
        in_chans: number of bands of the network's images.
        image_size: pixels per side of these images.
    """
    arguments = {
        "image_size": image_size,
        "in_chans": in_chans,
        "num_outputs": network.head[-1].out_features,
        "extra_layers": len(network.head) > 2,
    }
    return Form(name, arguments, {file: network.state_dict()}, of_timm=False)
