"""Models by name: those of the zoo, and everything in timm, for any image size. Shapes: B batch, C bands, S pixels per
side, D features, K outputs."""

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
from deeplense.models.own import is_own, make_own
from deeplense.models.pretrained import Weights, create, load_own
from deeplense.models.sizes import BorderCut, InputSize, input_sizes, padded_to, require_borders
from deeplense.models.zoo import ARCHITECTURES, Architecture, require_known


@dataclass(frozen=True)
class Trunk:
    """A backbone, how images are fitted to it, and the arguments of timm that made it (none if it is not of timm).

    Args:
        backbone: maps images to features (B, D) or a map of features (B, D, H, W).
        input_size: how images of the given size are fitted to the backbone.
        timm_name: its name in timm; "" if it is not of timm.
        timm_options: arguments of `timm.create_model`.
    """

    backbone: nn.Module
    input_size: InputSize
    timm_name: str = ""
    timm_options: Mapping[str, Any] = field(default_factory=dict)


class Network(nn.Module):
    """A backbone with a head.

    Args:
        trunk: the backbone and its input size.
        head: maps features to outputs (B, K).
        tune: whether the backbone is trained; if not, only the head is, and the rest is frozen, batch statistics
            included.
    """

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
        """Return outputs (B, K) of images (B, C, S, S).

        In training, a backbone that `has_penalty` also returns a term (B,) that is added to the loss of each image.
        """
        features = self.backbone(self.input_size(images))
        if isinstance(features, tuple):
            features, penalty = features
            return self.head(features), penalty
        return self.head(features)

    @property
    def of_timm(self) -> bool:
        """Whether the whole network consists of timm's and PyTorch's own layers."""
        return bool(self.timm_name) and not any(isinstance(layer, MapAttention) for layer in self.head)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.backbone.train(mode and self.tune)
        return self

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm's optimizers leave without weight decay, beside biases and norms: those that
        timm names, and embeddings (1, N, D) of positions and classes."""
        ask: Callable[[], Any] = getattr(self.backbone, "no_weight_decay", set)
        embeddings = [name for name, value in self.backbone.named_parameters() if value.ndim == 3 and len(value) == 1]
        return {f"backbone.{name}" for name in (*ask(), *embeddings)}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function from a parameter's name to its depth, by which timm's layer decay scales
        its learning rate."""
        depths = depths_of(self.backbone)
        return lambda name: float(depths.get(name.removeprefix("backbone."), max(depths.values()) + 1))


def depths_of(backbone: nn.Module) -> Mapping[str, int]:
    """Return the number of the layer of each parameter, from the input: as timm defines it, otherwise by the order of
    blocks."""
    matcher = getattr(backbone, "group_matcher", None)
    if matcher is not None:
        return group_parameters(backbone, matcher(coarse=False), reverse=True)
    blocks = {name: block_of(name) for name, _ in backbone.named_parameters()}
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks.values()))}
    return {name: numbers[block] for name, block in blocks.items()}


def block_of(name: str) -> str:
    """Return the numbered block in the name of a parameter.

    Example:
        >>> block_of("stages.2.5.mlp.fc1.weight")
        'stages.2.5'
    """
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
        name: one of `zoo.ARCHITECTURES`, any name of timm, or `module:Class` (see `own`).
        image_size: pixels per side of the images that it will get.
        in_chans: number of bands of the images.
        num_outputs: number of classes, or 1 for a regression.
        dropout: probability of the dropout before the last layer, 0 to 1.
        drop_path: rate of stochastic depth: fraction of residual branches that are dropped at random in training, 0 to
            1.
        extra_layers: whether an MLP of 1024, 512 and 128 units stands between the features and the outputs.
        tune: whether the backbone is trained, or only the head.
        pretrained: whether to start from published weights, or from those of `pretrained_file`; the first layer is
            adapted to `in_chans`.
        pretrained_file: weights of timm, or of `deeplense export`.
        load_pretrained: False if other weights are loaded later; `pretrained` then still decides the patch size.

    Raises:
        ValueError: unknown name (the nearest is suggested), weights that cannot be obtained, drop_path for a network
            without residual branches, or an image size that the network cannot take.

    Example:
        >>> network = build("simple_cnn", image_size=32, in_chans=1, num_outputs=3)
        >>> network(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 3])
    """
    weights = Weights(pretrained, pretrained_file, load_pretrained)
    architecture = ARCHITECTURES.get(name)
    if is_own(name):
        trunk = own_trunk(name, image_size, in_chans, drop_path, weights)
    elif architecture is None:
        trunk = any_timm_trunk(name, image_size, {"in_chans": in_chans, **drop_path_option(drop_path)}, weights)
    else:
        trunk = zoo_trunk(architecture, image_size, in_chans, drop_path, weights)
    try:
        features = probe(trunk.backbone, in_chans, trunk.input_size.size)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} does not accept images of {image_size} pixels: {told}; give larger images."
        ) from error
    is_map, num_features = features.ndim == 4, features.shape[1]
    if is_map and extra_layers:
        raise ValueError(f"{name} already has its own layers between features and outputs; remove --complex 1.")
    if is_map:
        head = attention_layers(num_features, num_outputs, dropout=dropout)
    else:
        head = last_layers(num_features, num_outputs, dropout=dropout, extra_layers=extra_layers)
    return Network(trunk, head, tune=tune)


def zoo_trunk(architecture: Architecture, image_size: int, in_chans: int, drop_path: float, weights: Weights) -> Trunk:
    """Return the backbone of a name of the zoo.

    Args:
        architecture: entry of the zoo.
        image_size: pixels per side of the images.
        in_chans: number of bands.
        drop_path: rate of stochastic depth, 0 to 1.
        weights: weights to start from.

    Raises:
        ValueError: the network has no residual branches to drop, or the weights cannot be obtained.
    """
    if drop_path and not architecture.drop_path:
        raise ValueError(f"{architecture.name} has no residual branches to drop; remove --drop_path.")
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


def own_trunk(name: str, image_size: int, in_chans: int, drop_path: float, weights: Weights) -> Trunk:
    """Return the backbone of a user's class.

    Args:
        name: `module:Class`.
        image_size: pixels per side of the images.
        in_chans: number of bands.
        drop_path: must be 0.
        weights: must not be wanted.

    Raises:
        ValueError: drop_path or published weights are requested.
    """
    if drop_path:
        raise ValueError(f"{name} has no known residual branches to drop; remove --drop_path.")
    if weights.wanted:
        raise ValueError(f"{name} has no published weights; load the initial weights in its class.")
    return Trunk(make_own(name, image_size=image_size, in_chans=in_chans), padded_to(image_size, image_size))


def drop_path_option(drop_path: float) -> dict[str, Any]:
    """Return the argument of timm for drop_path; not all of its models accept it."""
    return {"drop_path_rate": drop_path} if drop_path else {}


def any_timm_trunk(name: str, image_size: int, given: dict[str, Any], weights: Weights) -> Trunk:
    """Return a model of timm without its classifier, for the first input size that it accepts without cutting off a
    border.

    Args:
        name: name in timm.
        image_size: pixels per side of the images.
        given: arguments of `timm.create_model`, with `in_chans`.
        weights: weights to start from.

    Raises:
        ValueError: unknown name, or the model takes neither images of this size nor the arguments.
    """
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
        raise ValueError(f"{name} has no residual branches to drop; remove --drop_path.")
    if all("state_dict" in refusal for refusal in refusals):
        raise ValueError(f"the given weights do not fit {name}: {refusals[-1][:300]}")
    raise ValueError(f"{name} does not accept images of {image_size} pixels: {'; '.join(refusals)}")


@torch.no_grad()
def probe(backbone: nn.Module, in_chans: int, size: int) -> Tensor:
    """Return the features of one blank image.

    Args:
        backbone: maps images to features.
        in_chans: number of bands.
        size: pixels per side.
    """
    training = backbone.training
    features = backbone.eval()(torch.zeros(1, in_chans, size, size))
    backbone.train(training)
    return features
