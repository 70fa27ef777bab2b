"""Models by name: those of the zoo, and everything in timm, at any size of image. B batch, C bands, S pixels a side,
D features, K outputs."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from deeplense.models.heads import MapAttention, attention_layers, last_layers
from deeplense.models.pretrained import Weights, create, load_own
from deeplense.models.sizes import BorderCut, InputSize, input_sizes, padded_to, require_borders
from deeplense.models.zoo import ARCHITECTURES, Architecture, require_known


@dataclass(frozen=True)
class Trunk:
    """A backbone, how images reach it, and what timm was told to make it (nothing, where it is ours)."""

    backbone: nn.Module
    input_size: InputSize
    timm_name: str = ""
    timm_options: Mapping[str, Any] = field(default_factory=dict)


class Network(nn.Module):
    """A backbone with its last layers. With `tune` off only the last layers learn; the rest, batch statistics
    included, stands still."""

    backbone: nn.Module
    head: nn.Sequential

    def __init__(self, trunk: Trunk, head: nn.Sequential, *, tune: bool) -> None:
        super().__init__()
        self.backbone, self.head = trunk.backbone, head
        self.input_size, self.tune = trunk.input_size, tune
        self.timm_name, self.timm_options = trunk.timm_name, trunk.timm_options
        self.backbone.requires_grad_(tune)
        self.train()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Outputs (B, K) of images (B, C, S, S); in training, of a backbone that `has_penalty`, also what it adds to
        the loss of each image (B,)."""
        features = self.backbone(self.input_size(images))
        if isinstance(features, tuple):
            features, penalty = features
            return self.head(features), penalty
        return self.head(features)

    @property
    def of_timm(self) -> bool:
        """Whether timm and PyTorch's own layers make all of it."""
        return bool(self.timm_name) and not any(isinstance(layer, MapAttention) for layer in self.head)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.backbone.train(mode and self.tune)
        return self

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers leave without weight decay, beside biases and norms: what timm says, and
        embeddings (1, N, D) of positions and classes."""
        ask: Callable[[], Any] = getattr(self.backbone, "no_weight_decay", set)
        embeddings = [name for name, value in self.backbone.named_parameters() if value.ndim == 3 and len(value) == 1]
        return {f"backbone.{name}" for name in (*ask(), *embeddings)}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """The depth of a parameter, by which timm's layer decay scales its learning rate."""
        depths = depths_of(self.backbone)
        return lambda name: float(depths.get(name.removeprefix("backbone."), max(depths.values()) + 1))


def depths_of(backbone: nn.Module) -> Mapping[str, int]:
    """The number of the layer of each parameter, from the input on: as timm knows it, else by the blocks in their
    order."""
    matcher = getattr(backbone, "group_matcher", None)
    if matcher is not None:
        return group_parameters(backbone, matcher(coarse=False), reverse=True)
    blocks = {name: block_of(name) for name, _ in backbone.named_parameters()}
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks.values()))}
    return {name: numbers[block] for name, block in blocks.items()}


def block_of(name: str) -> str:
    """What is numbered in the name of a parameter: stages.2.5 of stages.2.5.mlp.fc1.weight."""
    found = re.match(r"([^.]+\.){0,3}\d+(?=\.)|[^.]+", name)
    return found[0] if found else name


def build(
    name: str,
    *,
    image_size: int,
    in_chans: int,
    num_outputs: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    extra_layers: bool = False,
    tune: bool = True,
    pretrained: bool = False,
    pretrained_file: Path | None = None,
    load_pretrained: bool = True,
) -> Network:
    """Build a network.

    Args:
        name: one of `zoo.ARCHITECTURES`, or any name of timm.
        image_size: pixels a side of the images it will get.
        in_chans: their bands.
        num_outputs: classes, or 1 for a number.
        dropout: before the last layer.
        drop_path: share of residual branches that are left out at random in training.
        extra_layers: put an MLP of 1024, 512 and 128 units between the features and the outputs.
        tune: whether the backbone learns, or only the last layers.
        pretrained: start from published weights, or from those of `pretrained_file`; the first layer is fitted to
            `in_chans`.
        pretrained_file: weights of timm, or of `deeplense export`.
        load_pretrained: off where other weights follow anyway; `pretrained` then still decides the size of patches.

    Raises:
        ValueError: unknown name (the nearest is told), weights that cannot be had, drop_path for a network that has
            none, or a size that the network cannot take.
    """
    weights = Weights(pretrained, pretrained_file, load_pretrained)
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        trunk = any_timm_trunk(name, image_size, {"in_chans": in_chans, **drop_path_option(drop_path)}, weights)
    else:
        trunk = zoo_trunk(architecture, image_size, in_chans, drop_path, weights)
    try:
        features = probe(trunk.backbone, in_chans, trunk.input_size.size)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot take images of {image_size} pixels: {told}; give larger ones.") from error
    is_map, num_features = features.ndim == 4, features.shape[1]
    if is_map and extra_layers:
        raise ValueError(f"{name} has layers of its own between features and outputs; leave out --complex 1.")
    if is_map:
        head = attention_layers(num_features, num_outputs, dropout=dropout)
    else:
        head = last_layers(num_features, num_outputs, dropout=dropout, extra_layers=extra_layers)
    return Network(trunk, head, tune=tune)


def zoo_trunk(architecture: Architecture, image_size: int, in_chans: int, drop_path: float, weights: Weights) -> Trunk:
    """The backbone of a name of the zoo."""
    if drop_path and not architecture.drop_path:
        raise ValueError(f"{architecture.name} has no branches to leave out; leave out --drop_path.")
    if weights.wanted:
        architecture = architecture.as_published
    size = padded_to(image_size, architecture.padded(image_size))
    file, target = architecture.target.split(".", 1)
    options: dict[str, Any] = dict(architecture.arguments(size.size))
    if architecture.of_timm:
        options = {"in_chans": in_chans, "num_classes": 0, **options, **drop_path_option(drop_path)}
        return Trunk(create(target, options, weights), size, target, options)
    if architecture.drop_path:
        options["drop_path"] = drop_path
    make = getattr(importlib.import_module(f"deeplense.models.{file}"), target)
    backbone = make(in_chans=in_chans, **options)
    load_own(backbone, architecture.name, weights)
    return Trunk(backbone, size)


def drop_path_option(drop_path: float) -> dict[str, Any]:
    """What timm is told of it; not all of its models know the word."""
    return {"drop_path_rate": drop_path} if drop_path else {}


def any_timm_trunk(name: str, image_size: int, given: dict[str, Any], weights: Weights) -> Trunk:
    """A model of timm without its classifier, in the first form that takes the images and cuts off no border."""
    require_known(name)
    refusals = []
    for size, extra in input_sizes(name, image_size):
        options = {**given, "num_classes": 0, **extra}
        try:
            backbone = create(name, options, weights)
            require_borders(backbone, given["in_chans"], size.size)
        except (TypeError, AssertionError, RuntimeError, BorderCut) as error:
            refusals.append(f"{size.way} to {size.size}: {error}")
        else:
            return Trunk(backbone, size, name, options)
    if all("drop_path_rate" in refusal for refusal in refusals):
        raise ValueError(f"{name} has no branches to leave out; leave out --drop_path.")
    if all("state_dict" in refusal for refusal in refusals):
        raise ValueError(f"the weights that were given are not those of {name}: {refusals[-1][:300]}")
    raise ValueError(f"{name} cannot take images of {image_size} pixels: {'; '.join(refusals)}")


@torch.no_grad()
def probe(backbone: nn.Module, in_chans: int, size: int) -> Tensor:
    """Features of one blank image."""
    training = backbone.training
    features = backbone.eval()(torch.zeros(1, in_chans, size, size))
    backbone.train(training)
    return features
