"""Models by name: the baselines of the field, and everything in timm, at any size of image. B batch, C bands, S
pixels a side, D features."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.models.cnn import SimpleCNN

MULTIPLE = 32
BASELINES = ("simple_cnn", "resnet18")


@dataclass(frozen=True)
class InputSize:
    """How images of any size reach a network that wants `size` pixels a side: `native`, `pad` (reflected border) or
    `resize`."""

    way: str
    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) as (B, C, size, size)."""
        if self.way == "pad":
            missing = self.size - images.shape[-1]
            before, after = missing // 2, missing - missing // 2
            return functional.pad(images, (before, after, before, after), mode="reflect")
        if self.way == "resize":
            return functional.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        return images


class Network(nn.Module):
    """A backbone with its last layers. With `tune` off only the last layers learn; the rest, batch statistics
    included, stands still."""

    backbone: nn.Module
    head: nn.Sequential

    def __init__(self, backbone: nn.Module, head: nn.Sequential, *, input_size: InputSize, tune: bool) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.input_size, self.tune = input_size, tune
        self.backbone.requires_grad_(tune)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (B, num_outputs) of images (B, C, S, S)."""
        return self.head(self.backbone(self.input_size(images)))

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.backbone.train(mode and self.tune)
        return self


def build(
    name: str,
    *,
    source: str = "timm",
    image_size: int,
    in_chans: int,
    num_outputs: int,
    dropout: float = 0.0,
    extra_layers: bool = False,
    tune: bool = True,
    pretrained: bool = False,
    pretrained_file: Path | None = None,
) -> Network:
    """Build a network.

    Args:
        name: `simple_cnn` or `resnet18` of the source `baseline`, or any name of timm.
        source: `timm` or `baseline`.
        image_size: pixels a side of the images it will get.
        in_chans: their bands.
        num_outputs: classes, or 1 for a number.
        dropout: before the last layer.
        extra_layers: put an MLP of 1024, 512 and 128 units between the features and the outputs.
        tune: whether the backbone learns, or only the last layers.
        pretrained: start from timm's published weights; the first layer is fitted to `in_chans`.
        pretrained_file: take those weights from this file rather than from the hub.

    Raises:
        ValueError: unknown name (the nearest is told), weights that cannot be had, or a size that the network cannot
            take.
    """
    if source == "baseline" and name not in BASELINES:
        raise ValueError(
            f"model_source=baseline has the models {list(BASELINES)}, not {name!r}; or use --model_source timm."
        )
    if name == "simple_cnn":
        if pretrained:
            raise ValueError("simple_cnn has no published weights; leave out --pretrained 1.")
        backbone: nn.Module = SimpleCNN(in_chans=in_chans)
        input_size = InputSize("native", image_size)
    else:
        options: dict[str, Any] = {"in_chans": in_chans, "num_classes": 0}
        options |= pretrained_options(name, pretrained, pretrained_file)
        backbone, input_size = build_timm(name, image_size, options)
    num_features = probe(backbone, in_chans, input_size.size).shape[1]
    head = last_layers(num_features, num_outputs, dropout=dropout, extra_layers=extra_layers)
    return Network(backbone, head, input_size=input_size, tune=tune)


def last_layers(num_features: int, num_outputs: int, *, dropout: float, extra_layers: bool) -> nn.Sequential:
    """From features (B, D) to outputs: one linear layer, or an MLP before it."""
    widths = (num_features, 1024, 512, 128) if extra_layers else (num_features,)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], num_outputs))


def pretrained_options(name: str, pretrained: bool, pretrained_file: Path | None) -> dict[str, Any]:
    """What timm is told about weights. Raises ValueError where there are none."""
    if not pretrained:
        return {}
    if pretrained_file and not pretrained_file.exists():
        raise ValueError(f"pretrained_file={pretrained_file} is not there.")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config and not (pretrained_file or config.has_weights):
        raise ValueError(f"{name} has no published weights; give --pretrained_file FILE, or leave out --pretrained 1.")
    overlay = {"pretrained_cfg_overlay": {"file": str(pretrained_file)}} if pretrained_file else {}
    return {"pretrained": True, **overlay}


def build_timm(name: str, image_size: int, options: dict[str, Any]) -> tuple[nn.Module, InputSize]:
    """A timm model without its classifier, in the first form that takes the images."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {name!r}. Nearest: {', '.join(near) or 'none'}; `timm.list_models()` gives all."
        )
    refusals = []
    for input_size, extra in input_sizes(name, image_size):
        try:
            generator = torch.get_rng_state()
            model = create(name, options | extra)
            if options.get("pretrained"):
                refuse_untouched(name, model, options | extra, generator)
            probe(model, options["in_chans"], input_size.size)
        except (TypeError, AssertionError, RuntimeError) as error:
            refusals.append(f"{input_size.way} to {input_size.size}: {error}")
        else:
            return model, input_size
    if all("state_dict" in refusal for refusal in refusals):
        raise ValueError(f"the weights that were given are not those of {name}: {refusals[-1][:300]}")
    raise ValueError(f"{name} cannot take images of {image_size} pixels: {'; '.join(refusals)}")


def input_sizes(name: str, image_size: int) -> Iterator[tuple[InputSize, dict[str, int]]]:
    """Ways to give images to a timm model, best first: as they are; padded to a multiple of 32, so that no patch is
    cut off; resized."""
    config = timm.get_pretrained_cfg(name)
    native, fixed = (config.input_size[-1], config.fixed_input_size) if config else (image_size, False)
    if not fixed:
        yield InputSize("native", image_size), {}
    padded = -(-image_size // MULTIPLE) * MULTIPLE
    size = InputSize("native" if padded == image_size else "pad", padded)
    yield size, {"img_size": padded}
    yield size, {}
    yield InputSize("resize", native), {}


def create(name: str, options: dict[str, Any]) -> nn.Module:
    """timm.create_model, with an error that helps where weights cannot be had."""
    try:
        return timm.create_model(name, **options)
    except (OSError, KeyError) as error:
        if not options.get("pretrained"):
            raise
        config = timm.get_pretrained_cfg(name)
        hub = (config and config.hf_hub_id) or f"timm/{name}"
        raise ValueError(
            f"The pretrained weights of {name} cannot be had ({type(error).__name__}: {str(error)[:200]}). "
            f"Where the hub cannot be reached, fetch model.safetensors of {hub} from the Hugging Face hub "
            "elsewhere, copy it here, and give --pretrained_file FILE."
        ) from error


def refuse_untouched(name: str, model: nn.Module, options: dict[str, Any], generator: Tensor) -> None:
    """Raise ValueError where weights kept their random start: timm takes a file in which they are missing and only
    logs it."""
    plain = {key: value for key, value in options.items() if not key.startswith("pretrained")}
    torch.set_rng_state(generator)
    blank, other = (dict(timm.create_model(name, **plain).named_parameters()) for _ in range(2))
    drawn = {key for key, value in blank.items() if not value.equal(other[key])}
    untouched = [key for key, value in model.named_parameters() if key in drawn and value.equal(blank[key])]
    if untouched:
        raise ValueError(
            f"the pretrained weights hold nothing for {len(untouched)} parts of {name}, such as {untouched[0]}; "
            "give a file of weights of this very model, as timm names them."
        )


@torch.no_grad()
def probe(backbone: nn.Module, in_chans: int, size: int) -> Tensor:
    """Features of one blank image."""
    training = backbone.training
    features = backbone.eval()(torch.zeros(1, in_chans, size, size))
    backbone.train(training)
    return features
