"""What holds for every backbone, whatever is inside; tried on one that is made small."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

SHAPES = ((32, 1), (64, 3), (160, 5))
"""Pixels a side and bands of the images."""
LEAST_CHANGE = 1e-4
"""Of a feature, for it to be another."""

Backbone = TypeVar("Backbone", bound=nn.Module)
Make = Callable[..., nn.Module]
"""Makes a backbone by `image_size` and `in_chans`, and by `drop_path` where it has branches to leave out."""


def noise(*shape: int) -> Tensor:
    """Numbers of a normal distribution, the same in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def seeded(make: Callable[[], Backbone], seed: int = 0) -> Backbone:
    """A backbone whose start is drawn with a seed, in evaluation mode."""
    torch.manual_seed(seed)
    return make().eval()


def check_backbone(make: Make, *, image_size: int, in_chans: int) -> None:
    """All laws but those of attention and of paths that are dropped."""
    backbone, other = (seeded(partial(make, image_size=image_size, in_chans=in_chans), seed) for seed in range(2))
    images = noise(3, in_chans, image_size, image_size)
    check_gradients(backbone, images)
    images = images[:2]
    features = features_with_borders(backbone.eval(), images)
    check_images_are_apart(backbone, images, features)
    check_weights_are_all_that_is_needed(other, backbone, images[:1])


def check_gradients(backbone: nn.Module, images: Tensor) -> None:
    """In training the features teach every parameter, and the penalty, where there is one, is a number for each image
    that teaches, too."""
    outputs = backbone.train()(images)
    features, penalty = outputs if getattr(backbone, "has_penalty", False) else (outputs, None)
    (features * noise(*features.shape)).sum().backward(retain_graph=True)
    untaught = [name for name, parameter in backbone.named_parameters() if not learns(parameter)]
    assert not untaught, f"features do not teach {untaught}"
    backbone.zero_grad()
    if penalty is None:
        return
    assert penalty.shape == (len(images),), f"a penalty of shape {penalty.shape}"
    penalty.sum().backward()
    taught = [parameter for parameter in backbone.parameters() if parameter.grad is not None]
    assert all(has_gradient(parameter) for parameter in taught), "a penalty without a finite gradient"
    assert any(learns(parameter) for parameter in taught), "a penalty that teaches nothing"
    backbone.zero_grad()


def has_gradient(parameter: nn.Parameter) -> bool:
    """Whether a parameter got a gradient of numbers."""
    return parameter.grad is not None and bool(parameter.grad.isfinite().all())


def learns(parameter: nn.Parameter) -> bool:
    """Whether a parameter got a gradient of numbers that are not all zero."""
    return has_gradient(parameter) and bool(parameter.grad.any())  # type: ignore[union-attr]


def features_with_borders(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features (B, num_features) in evaluation mode, which depend on each pixel of the border in each
    band."""
    images = images.clone().requires_grad_()
    features = backbone(images)
    assert isinstance(features, Tensor), "more than features in evaluation mode"
    assert features.shape == (len(images), backbone.num_features), f"features of shape {features.shape}"
    assert features.isfinite().all(), "features that are not finite"
    (gradient,) = torch.autograd.grad((features * noise(*features.shape)).sum(), images)
    depends = gradient.any(dim=0).all(dim=0)
    borders = {"top": depends[0], "bottom": depends[-1], "left": depends[:, 0], "right": depends[:, -1]}
    cut = [name for name, border in borders.items() if not border.all()]
    assert not cut, f"borders without gradient: {cut}"
    return features.detach()


@torch.no_grad()
def check_images_are_apart(backbone: nn.Module, images: Tensor, features: Tensor) -> None:
    """Features of an image do not depend on the others; other images have other features."""
    alone = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-5, msg=lambda why: f"images meet: {why}")
    assert (features[0] - features[1]).abs().max() > LEAST_CHANGE, "all images look alike"


@torch.no_grad()
def check_weights_are_all_that_is_needed(other: nn.Module, backbone: nn.Module, images: Tensor) -> None:
    """Another backbone gives the same features once it has the same state, and not before."""
    expected = backbone(images)
    assert (other(images) - expected).abs().max() > LEAST_CHANGE, "alike before the state is loaded"
    other.load_state_dict(backbone.state_dict())
    assert other(images).equal(expected), "others although the state is loaded"


@torch.no_grad()
def check_drop_path(make: Make) -> None:
    """Paths are dropped if that is asked for, in training alone."""
    images = noise(4, 1, 32, 32)
    for drop_path, differ in ((0.0, False), (0.5, True)):
        backbone = seeded(partial(make, image_size=32, in_chans=1, drop_path=drop_path))
        assert backbone(images).equal(backbone(images)), "chance in evaluation mode"
        outputs = [backbone.train()(images) for _ in range(2)]
        first, second = (given[0] if isinstance(given, tuple) else given for given in outputs)
        assert first.equal(second) != differ, f"drop_path={drop_path} is not heeded"


@torch.no_grad()
def check_the_first_token_is_the_feature(backbone: nn.Module, last: nn.Module, images: Tensor) -> None:
    """Of the tokens (B, N, D) that leave the last module, alone or behind a map, the first decides and no other."""
    before = backbone.eval()(images)
    for is_first in (True, False):
        hook = last.register_forward_hook(lambda *call, changed=is_first: with_noise(call[-1], changed))
        after = backbone(images)
        hook.remove()
        assert after.equal(before) != is_first, "the first token is not the feature"


def with_noise(output: Tensor | tuple[Tensor, Tensor], in_first: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Tokens, alone or behind a map, with noise on the first of them or on all others."""
    if isinstance(output, tuple):
        return output[0], with_noise(output[1], in_first)  # type: ignore[return-value]
    is_first = torch.arange(output.shape[1]) == 0
    return torch.where((is_first == in_first)[:, None], output + noise(*output.shape), output)


def seen_attention(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights (B, heads, queries, keys) of each use of attention, in order, which sum to one. Fused attention,
    where there is a choice, gives the same features, and shows none."""
    drops = [name for name, _ in backbone.named_modules() if name.split(".")[-1] == "attn_drop"]
    choices = [
        f"{name}.attn_drop".lstrip(".") for name, part in backbone.named_modules() if hasattr(part, "fused_attn")
    ]
    assert drops, "no attention"
    assert {*choices} <= {*drops}, "attention without attn_drop"
    expected, hidden = with_weights(backbone, images, fused=True)
    assert not {name for name, _ in hidden} & {*choices}, "fused attention that is not"
    features, seen = with_weights(backbone, images, fused=False)
    assert {name for name, _ in seen} == {*drops}, "weights that are not shown"
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5, msg=lambda why: f"not as fused: {why}")
    for _, weights in seen:
        assert weights.ndim == 4, f"weights of shape {weights.shape}"
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    return [weights for _, weights in seen]


@torch.no_grad()
def with_weights(backbone: nn.Module, images: Tensor, *, fused: bool) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Features, and what the modules `attn_drop` got, with their names."""
    seen: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in backbone.eval().named_modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
        if name.split(".")[-1] == "attn_drop":
            hooks.append(module.register_forward_hook(lambda *call, name=name: seen.append((name, call[-1]))))
    features = backbone(images)
    for hook in hooks:
        hook.remove()
    return features, seen


def count_parameters(backbone: nn.Module, num_classes: int = 1000) -> int:
    """Parameters that learn, with those of a linear layer to the classes."""
    own = sum(math.prod(parameter.shape) for parameter in backbone.parameters() if parameter.requires_grad)
    return own + num_classes * (int(backbone.num_features) + 1)  # type: ignore[arg-type]
