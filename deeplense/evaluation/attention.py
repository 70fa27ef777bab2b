"""Attention maps of a network: its softmax attention weights mapped onto the image grid, and attention rollout.

Shapes: B images, C bands, S pixels per side, Q queries, K keys, h x w tokens on a grid, T tokens with class tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.davit import ChannelAttention, ChannelAttentionV2
from timm.models.edgenext import CrossCovarianceAttn
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.twins import LocallyGroupedAttn
from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SOFTMAX = {torch.softmax, Tensor.softmax, functional.softmax}
OVER_CHANNELS = (XCA, ChannelAttention, ChannelAttentionV2, CrossCovarianceAttn)
POOLING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)
ROW_TOLERANCE = 0.05


@dataclass(frozen=True)
class Layer:
    """Weights (B, Q, K) of one global attention layer, averaged over its heads; the keys after the first `num_prefix`
    lie on a square grid in row-major order."""

    name: str
    weights: Tensor
    num_prefix: int


@dataclass(frozen=True)
class LayerMap:
    """Attention to each position of the grid in one layer, (B, h, w)."""

    name: str
    values: Tensor


@dataclass
class Call:
    """One forward call of a module: the shapes of its input tensors, the enclosing call, and its attention weights
    (..., Q, K) once they are computed."""

    name: str
    module: nn.Module
    shapes: Sequence[torch.Size]
    parent: "Call | None"
    weights: Tensor | None = None

    @property
    def tokens(self) -> set[int]:
        """Possible numbers of input tokens, for inputs (B, N, D), (B, D, h, w) or (B, h, w, D)."""
        maps = [shape for shape in self.shapes if len(shape) == 4]
        first = {shape[2] * shape[3] for shape in maps if shape[2] == shape[3]}
        last = {shape[1] * shape[2] for shape in maps if shape[1] == shape[2]}
        return {shape[1] for shape in self.shapes if len(shape) == 3} | first | last


class Recorder(TorchFunctionMode):
    """Context manager that records the attention weights of a network, in the order of its layers: the output of
    modules called `attn_drop`, or else the last softmax over tokens within the module that has the projections."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.running: list[Call] = []
        self.done: list[Call] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> "Recorder":
        for name, module in self.network.named_modules():
            begin = partial(self.begin, name)
            self.hooks.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self.end))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in SOFTMAX:
            self.note(result, surely=False)
        return result

    def begin(self, name: str, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Record that the forward call of a module starts."""
        shapes = [value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.running.append(Call(name, module, shapes, self.running[-1] if self.running else None))

    def end(self, module: nn.Module, args: Sequence[Any], output: Any) -> None:
        """Record that the forward call of a module has ended."""
        call = self.running.pop()
        if call.name.endswith("attn_drop") and isinstance(output, Tensor):
            self.note(output, surely=True)
        if call.weights is not None:
            self.done.append(call)

    def note(self, weights: Tensor, *, surely: bool) -> None:
        """Record weights for the innermost running module that has parameters, if they are attention weights: rows sum
        to 1 and, unless `surely`, their number matches the input tokens of the module."""
        holders = [call for call in self.running if next(call.module.parameters(), None) is not None]
        weights = weights.detach().float()
        if not holders or weights.ndim < 3 or not are_shares(weights):
            return
        if surely or holders[-1].tokens & set(weights.shape[-2:]):
            holders[-1].weights = weights.clone()


def are_shares(weights: Tensor) -> bool:
    """Whether all rows are non-negative and sum to 1, within the rounding of half precision."""
    return bool((weights >= 0).all() and ((weights.sum(dim=-1) - 1).abs() < ROW_TOLERANCE).all())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch a network to evaluation mode, and restore the mode of each module afterwards."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def unfused(network: nn.Module) -> Iterator[None]:
    """Disable fused attention so that attention weights are computed, and restore `fused_attn` afterwards."""
    attention = [vars(module) for module in network.modules() if hasattr(module, "fused_attn")]
    before = [{name: value for name, value in own.items() if name == "fused_attn"} for own in attention]
    try:
        for own in attention:
            own["fused_attn"] = False
        yield
    finally:
        for own, kept in zip(attention, before, strict=True):
            own.pop("fused_attn", None)
            own.update(kept)


def like_weights(network: nn.Module, images: Tensor) -> Tensor:
    """Convert images to the precision and device of the network's weights."""
    weight = next(network.parameters(), None)
    return images if weight is None else images.to(weight)


@torch.no_grad()
def record(network: nn.Module, images: Tensor) -> list[Call]:
    """Return the attention calls of a network, in order, each with its weights for these images (B, C, S, S)."""
    with evaluating(network), unfused(network), Recorder(network) as recorder:
        network(like_weights(network, images))
    return recorder.done


def on_image(calls: Sequence[Call]) -> list[Call]:
    """Return the calls whose keys may lie on the image. Extra tokens next to a feature map, such as the learnable ones
    of Mobile-Former, are excluded."""
    with_map = [call.shapes for call in calls if mixes_map(call)]
    beside = {shape[1:] for shapes in with_map for shape in shapes if len(shape) == 3}
    return [call for call in calls if not any(is_of(call, tokens) for tokens in beside)]


def mixes_map(call: Call) -> bool:
    """Whether the queries or keys of a call are the positions of a square input map (B, D, S, S)."""
    assert call.weights is not None
    maps = [shape for shape in call.shapes if len(shape) == 4 and shape[2] == shape[3]]
    return any(shape[2] * shape[3] in call.weights.shape[-2:] for shape in maps)


def is_of(call: Call, tokens: Sequence[int]) -> bool:
    """Whether the keys of a call are input tokens of shape (N, D)."""
    assert call.weights is not None
    return call.weights.shape[-1] == tokens[0] and any(shape[1:] == tokens for shape in call.shapes)


def attention_maps(network: nn.Module, images: Tensor) -> list[LayerMap]:
    """Return one map for each attention layer whose keys are known to lie on a grid of more than one position.

    A map is the row of the class token if the network uses one, else the mean over queries; it is always averaged over
    heads. Window attention is assembled from its windows (Swin, Swin V2, Twins, and modules with a `stripe`). Channel
    attention and windows with other layouts are omitted.

    Args:
        network: any module; its state is restored.
        images: input images (B, C, S, S) of the network.
    """
    maps = []
    for call in on_image(record(network, images)):
        values = map_of(call, len(images), network)
        if values is not None and values.shape[-1] > 1:
            maps.append(LayerMap(call.name, values.cpu()))
    return maps


def map_of(call: Call, num_images: int, network: nn.Module) -> Tensor | None:
    """Return the map (B, h, w) of one layer; None if its layout is unknown."""
    layer = global_layer(call, num_images, network)
    if layer is None:
        return windowed_map(call)
    return on_grid(read_row(layer.weights, layer.num_prefix, network), layer.num_prefix)


def global_layer(call: Call, num_images: int, network: nn.Module) -> Layer | None:
    """Return the layer of a call in which each image attends to all of its own tokens, or to those of a coarser grid;
    None for other calls."""
    assert call.weights is not None
    num_queries, num_keys = call.weights.shape[-2:]
    num_prefix = prefix_of(num_keys, network)
    if num_prefix is None or not is_of_whole_images(call, num_images):
        return None
    whole = num_keys in call.tokens or num_keys - num_prefix in call.tokens
    if not whole and not (num_queries in call.tokens and is_coarser(call.module)):
        return None
    weights = call.weights.reshape(num_images, -1, num_queries, num_keys).mean(dim=1)
    return Layer(call.name, weights, num_prefix)


def is_of_whole_images(call: Call, num_images: int) -> bool:
    """Whether a module attends over the tokens of whole images, with weights (B, heads, Q, K) or (B * heads, Q, K)."""
    assert call.weights is not None
    leading = call.weights.shape[:-2]
    per_image = leading[0] == num_images if len(leading) == 2 else len(leading) == 1 and leading[0] % num_images == 0
    around = call.parent.tokens if call.parent else set()
    padded_window = hasattr(call.module, "window_size") and call.weights.shape[-1] not in around
    given = call.shapes[0][0] if call.shapes else 0
    return per_image and given == num_images and not padded_window and not isinstance(call.module, OVER_CHANNELS)


def is_coarser(module: nn.Module) -> bool:
    """Whether a module takes its keys from a coarser grid, that is, contains a strided convolution or 2D pooling."""
    parts = list(module.modules())
    strided = any(isinstance(part, nn.Conv2d) and max(part.stride) > 1 for part in parts)
    return strided or any(isinstance(part, POOLING) for part in parts)


def prefix_of(num_tokens: int, network: nn.Module) -> int | None:
    """Return the number of tokens before those of the grid, if the others fill a square: as declared by the network,
    else 0 to 2. None for Hiera, whose tokens are not in row-major order."""
    if any(isinstance(module, Hiera) for module in network.modules()):
        return None
    told = [getattr(module, "num_prefix_tokens", None) for module in network.modules()]
    for number in (*[number for number in told if isinstance(number, int)][:1], 0, 1, 2):
        if num_tokens > number and math.isqrt(num_tokens - number) ** 2 == num_tokens - number:
            return number
    return None


def read_row(weights: Tensor, num_prefix: int, network: nn.Module) -> Tensor:
    """Reduce weights (B, Q, K) to (B, K) as the network uses them: the row of the class token, else the mean over the
    queries on the grid."""
    num_queries, num_keys = weights.shape[1:]
    has_class_token = num_prefix > 0 and num_queries in (1, num_keys)
    averages = any(getattr(module, "global_pool", None) == "avg" for module in network.modules())
    if has_class_token and (num_queries == 1 or not averages):
        return weights[:, 0]
    return weights[:, num_prefix if has_class_token else 0 :].mean(dim=1)


def on_grid(row: Tensor, num_prefix: int) -> Tensor:
    """Reshape the weights (B, K) of keys on a square grid to (B, h, w)."""
    side = math.isqrt(row.shape[1] - num_prefix)
    return row[:, num_prefix:].unflatten(1, (side, side))


def windowed_map(call: Call) -> Tensor | None:
    """Return the map of a window attention layer with a known layout, averaged over the queries of each window; else
    None."""
    assert call.weights is not None
    received = call.weights.mean(dim=(-3, -2))
    block = call.parent
    stripe = vars(call.module).get("stripe")
    if stripe is not None:
        height, width = call.shapes[0][1:3]
        return from_windows(received, pair(stripe), (height, width))
    if isinstance(call.module, LocallyGroupedAttn):
        window, side = math.isqrt(received.shape[-1]), math.isqrt(call.shapes[0][1])
        return from_windows(received.flatten(0, 1), (window, window), (side, side))
    if block is None or not isinstance(block.module, (SwinTransformerBlock, SwinTransformerV2Block)):
        return None
    height, width = block.shapes[0][1:3]
    values = from_windows(received, pair(block.module.window_size), (height, width))
    return values.roll(pair(block.module.shift_size), dims=(1, 2))


def pair(size: Any) -> tuple[int, int]:
    """Return height and width from a size as stored by timm."""
    height, width = size
    return int(height), int(width)


def from_windows(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Assemble windows (B * number, positions of a window), in row-major order, to maps (B, *size) without padding."""
    rows, columns = (-(-side // step) for side, step in zip(size, window, strict=True))
    tiles = windows.reshape(-1, rows, columns, *window).transpose(2, 3)
    return tiles.reshape(len(tiles), rows * window[0], columns * window[1])[:, : size[0], : size[1]]


def attention_rollout(network: nn.Module, images: Tensor) -> Tensor | None:
    """Attention rollout, (B, h, w): the product of (A + 1) / 2 over all layers (Abnar & Zuidema 2020,
    arXiv:2005.00928). None unless all layers share one set of tokens and mix no others.

    A class token may be added at a later layer, as in CaiT and ConViT; before that, it attends to itself.

    Args:
        network: any module; its state is restored.
        images: input images (B, C, S, S) of the network.
    """
    calls = record(network, images)
    layers = [layer for call in calls if (layer := global_layer(call, len(images), network)) and mixes_itself(call)]
    if not layers or len(layers) < len(calls):
        return None
    last = layers[-1]
    widened = [widen(layer.weights, last.weights.shape[2], last.num_prefix) for layer in layers]
    square = [weights for weights in widened if weights is not None]
    if len(square) < len(widened):
        return None
    row = read_row(roll_out(square), last.num_prefix, network)
    values = on_grid(row, last.num_prefix).cpu()
    return values if values.shape[-1] > 1 else None


def mixes_itself(call: Call) -> bool:
    """Whether a module mixes only the tokens that its weights come from, that is, has no other input tokens."""
    return sum(len(shape) == 3 and shape[:2] == call.shapes[0][:2] for shape in call.shapes) < 2


def widen(weights: Tensor, num_tokens: int, num_prefix: int) -> Tensor | None:
    """Expand weights (B, Q, K) to all tokens, (B, T, T); tokens that do not take part attend to themselves. None if the
    tokens do not match."""
    kind = tuple(weights.shape[1:])
    first = {(num_tokens, num_tokens): 0, (1, num_tokens): 0, (num_tokens - num_prefix,) * 2: num_prefix}
    if kind not in first:
        return None
    whole = torch.eye(num_tokens, device=weights.device).repeat(len(weights), 1, 1)
    whole[:, first[kind] : first[kind] + kind[0], first[kind] :] = weights
    return whole


def roll_out(layers: Sequence[Tensor]) -> Tensor:
    """Return the product of (A + 1) / 2 over layers (B, T, T), with the last layer on the left."""
    total = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for weights in layers:
        total = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2 @ total
    return total.expand(len(layers[0]), -1, -1)
