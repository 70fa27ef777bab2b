"""What in an image a network's answer rests on: maps on the image's pixels. B images, C bands, S pixels a side, D
features, h x w places of a feature map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.choices import require_choice
from deeplense.evaluation.attention import (
    Recorder,
    attention_maps,
    attention_rollout,
    evaluating,
    like_weights,
    prefix_of,
    unfused,
)

Kind = Literal["rollout", "grad_cam", "layer"]
LEAST_SIDE = 4  # Coarser maps are taken only where there are no others: they say little of where.


@dataclass(frozen=True)
class Map:
    """How much each pixel counts, (B, S, S) float32 on the CPU. `side` is the places a side that it was computed at."""

    name: str
    kind: Kind
    values: Tensor
    side: int

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(Kind))


@dataclass(frozen=True)
class FeatureMap:
    """What a module gave, on a grid of so many places a side; `is_chain` for modules that are others in a row."""

    name: str
    output: Tensor
    side: int
    is_chain: bool


def explain(network: nn.Module, images: Tensor, *, class_index: Tensor) -> list[Map]:
    """Maps of what the outputs rest on: attention rollout where all layers share one set of tokens, Grad-CAM, and the
    attention of each layer that can be laid on the image; resampled bilinearly to its pixels.

    The network is left as it was, without gradients. Where it pads or resizes its input (`input_size`), maps are of
    the pixels that were given.

    Args:
        network: from images to outputs (B, K).
        images: (B, C, S, S) as the network takes them.
        class_index: the output that Grad-CAM explains in each image, (B,).
    """
    found: list[tuple[str, Kind, Tensor | None]] = [
        ("attention rollout", "rollout", attention_rollout(network, images)),
        ("Grad-CAM", "grad_cam", grad_cam(network, images, class_index=class_index)),
        *((layer.name, "layer", layer.values) for layer in attention_maps(network, images)),
    ]
    return [
        Map(name, kind, on_pixels(values, network, images.shape[-1]), values.shape[-1])
        for name, kind, values in found
        if values is not None
    ]


def on_pixels(values: Tensor, network: nn.Module, size: int) -> Tensor:
    """Maps (B, h, w) on the pixels of the images, (B, S, S): resampled, and without the border that the network put
    around."""
    input_size = getattr(network, "input_size", None)
    padded = input_size.size if input_size is not None and input_size.way == "pad" else size
    resampled = functional.interpolate(values[:, None].float(), size=(padded, padded), mode="bilinear")[:, 0]
    before = (padded - size) // 2
    return resampled[:, before : before + size, before : before + size]


def grad_cam(network: nn.Module, images: Tensor, *, class_index: Tensor) -> Tensor | None:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), (B, h, w): the last feature map that the output depends on,
    its features weighed by their mean gradient, and what is negative cut off. None where there is no such map.

    A map of 4 places a side or more is taken before coarser ones; tokens on a square grid are a map.

    Args:
        network: from images to outputs (B, K); it is left as it was, without gradients.
        images: (B, C, S, S).
        class_index: which output, (B,).
    """
    with evaluating(network), unfused(network), torch.enable_grad():
        given = like_weights(network, images).detach().clone().requires_grad_()
        outputs, features = feature_maps(network, given)
        chosen = outputs.gather(1, class_index.to(outputs.device)[:, None]).sum()
        for feature in features:
            (gradient,) = torch.autograd.grad(chosen, feature, retain_graph=True, allow_unused=True)
            slopes = None if gradient is None else spatial(gradient, network, len(images))
            if slopes is not None and slopes.any():
                weights = slopes.float().mean(dim=(2, 3), keepdim=True)
                maps = spatial(feature.detach(), network, len(images))
                assert maps is not None
                return (weights * maps.float()).sum(dim=1).relu().cpu()
    return None


def feature_maps(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The outputs of a network, and those of its modules that are on a grid, the preferred first. What is computed
    within attention has other layouts, and is left out."""
    found: list[FeatureMap] = []

    def keep(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad and (places := side(output, network, len(images))) > 1:
            found.append(FeatureMap(name, output, places, isinstance(module, nn.Sequential)))

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: keep(name, module, output))
        for name, module in network.named_modules()
    ]
    try:
        with Recorder(network) as recorder:
            outputs = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    within = tuple(f"{call.name}." for call in recorder.done)
    return outputs, by_preference([found_map for found_map in found if not found_map.name.startswith(within)])


def by_preference(maps: Sequence[FeatureMap]) -> list[Tensor]:
    """The last first: fine maps; those on the way to a coarser map within one module, which may be one branch of
    several; coarse maps."""

    def rank(given: FeatureMap) -> int:
        inner = any(
            given.name.startswith(f"{other.name}.") and other.side < given.side and not other.is_chain for other in maps
        )
        return 2 if given.side < LEAST_SIDE else int(inner)

    return [given.output for given in sorted(reversed(maps), key=rank)]


def side(output: Tensor, network: nn.Module, num_images: int) -> int:
    """Places a side of a feature map; 0 for what is none."""
    maps = spatial(output.detach(), network, num_images)
    return 0 if maps is None else maps.shape[-1]


def spatial(output: Tensor, network: nn.Module, num_images: int) -> Tensor | None:
    """A feature map (B, D, h, w), (B, h, w, D) or (B, T, D) as (B, D, h, w); None for what is none."""
    shape: Sequence[int] = output.shape
    if shape[0] != num_images:
        return None
    if len(shape) == 4 and shape[2] == shape[3]:
        return output
    if len(shape) == 4 and shape[1] == shape[2]:
        return output.movedim(3, 1)
    num_prefix = prefix_of(shape[1], network) if len(shape) == 3 else None
    if num_prefix is None:
        return None
    places = math.isqrt(shape[1] - num_prefix)
    return output[:, num_prefix:].movedim(2, 1).unflatten(2, (places, places))
