"""Explanation maps: which pixels of an image the output of a network depends on. B images, C bands, S pixels per side,
D features, h x w positions of a feature map."""

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
LEAST_SIDE = 4  # Coarser maps locate little, so they are used only if there are no others.


@dataclass(frozen=True)
class Map:
    """Importance of each pixel, (B, S, S) float32 on the CPU. `side` is the side of the grid it was computed on."""

    name: str
    kind: Kind
    values: Tensor
    side: int

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(Kind))


@dataclass(frozen=True)
class FeatureMap:
    """Output of a module on a grid with `side` positions per side; `is_chain` is set for sequences of modules."""

    name: str
    output: Tensor
    side: int
    is_chain: bool


def explain(network: nn.Module, images: Tensor, *, class_index: Tensor) -> list[Map]:
    """Compute explanation maps: attention rollout if all layers share one set of tokens, Grad-CAM, and the attention of
    each layer that can be mapped onto the image; all resampled bilinearly to its pixels.

    The state of the network is restored, without gradients. If it pads or resizes its input (`input_size`), maps refer
    to the pixels of the given images.

    Args:
        network: maps images to outputs (B, K).
        images: input images (B, C, S, S) of the network.
        class_index: index of the output that Grad-CAM explains for each image, (B,).
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
    """Resample maps (B, h, w) to the pixels of the images, (B, S, S), without the padding added by the network."""
    input_size = getattr(network, "input_size", None)
    padded = input_size.size if input_size is not None and input_size.way == "pad" else size
    resampled = functional.interpolate(values[:, None].float(), size=(padded, padded), mode="bilinear")[:, 0]
    before = (padded - size) // 2
    return resampled[:, before : before + size, before : before + size]


def grad_cam(network: nn.Module, images: Tensor, *, class_index: Tensor) -> Tensor | None:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), (B, h, w): the last feature map that the output depends on,
    with features weighted by their mean gradient and negative values set to 0. None if there is no such map.

    Maps with at least 4 positions per side are preferred to coarser ones; tokens on a square grid count as a map.

    Args:
        network: maps images to outputs (B, K); its state is restored, without gradients.
        images: input images (B, C, S, S).
        class_index: index of the output to explain, (B,).
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
    """Return the outputs of a network and the outputs of its modules that lie on a grid, the preferred ones first.
    Tensors inside attention modules have other layouts and are omitted."""
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
    """Sort maps by preference, the last first within each group: fine maps; intermediate maps of a module with a
    coarser output, which may be one of several branches; coarse maps."""

    def rank(given: FeatureMap) -> int:
        inner = any(
            given.name.startswith(f"{other.name}.") and other.side < given.side and not other.is_chain for other in maps
        )
        return 2 if given.side < LEAST_SIDE else int(inner)

    return [given.output for given in sorted(reversed(maps), key=rank)]


def side(output: Tensor, network: nn.Module, num_images: int) -> int:
    """Return the number of positions per side of a feature map; 0 if the tensor is not a feature map."""
    maps = spatial(output.detach(), network, num_images)
    return 0 if maps is None else maps.shape[-1]


def spatial(output: Tensor, network: nn.Module, num_images: int) -> Tensor | None:
    """Convert a feature map (B, D, h, w), (B, h, w, D) or (B, T, D) to (B, D, h, w); None if it is not a feature
    map."""
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
