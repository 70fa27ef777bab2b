"""What holds for every backbone, whatever is inside."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

SHAPES = ((32, 1), (64, 3), (160, 5))
"""Pixels a side and bands of the images."""


class Make(Protocol):
    """Makes a backbone; tests of more than numbers of parameters make a small one."""

    def __call__(self, *, image_size: int, in_chans: int, drop_path: float = 0.0) -> nn.Module: ...


def noise(*shape: int) -> Tensor:
    """Numbers of a normal distribution, the same in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def count_parameters(backbone: nn.Module, num_features: int) -> int:
    """Parameters, with those of a linear layer to 1000 classes."""
    return sum(parameter.numel() for parameter in backbone.parameters()) + 1000 * (num_features + 1)


def check_gradients(make: Make, *, image_size: int, in_chans: int) -> None:
    """Features (B, num_features) depend on every border of the image and on every parameter."""
    torch.manual_seed(0)
    backbone = make(image_size=image_size, in_chans=in_chans)
    images = noise(4, in_chans, image_size, image_size).requires_grad_()
    features = backbone(images)
    assert features.shape == (4, backbone.num_features)
    (features * noise(*features.shape)).sum().backward()
    assert images.grad is not None
    depends = images.grad.abs().sum(dim=(0, 1)) > 0
    assert all(border.any() for border in (depends[0], depends[-1], depends[:, 0], depends[:, -1]))
    unreached = [name for name, parameter in backbone.named_parameters() if not is_reached(parameter)]
    assert not unreached, f"without gradient: {unreached}"


def is_reached(parameter: nn.Parameter) -> bool:
    """Whether a parameter got a gradient, finite and not all zero."""
    gradient = parameter.grad
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


def check_images_are_apart(make: Make, *, image_size: int = 64) -> None:
    """In evaluation mode the features of an image do not depend on the others; other images have other features."""
    torch.manual_seed(0)
    backbone = make(image_size=image_size, in_chans=2).eval()
    images = noise(3, 2, image_size, image_size)
    with torch.no_grad():
        together = backbone(images)
        apart = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4


def check_weights_are_all_that_is_needed(make: Make, *, image_size: int = 64) -> None:
    """Another backbone with the same state gives the same features, and gave others before."""
    images = noise(2, 1, image_size, image_size)
    torch.manual_seed(0)
    one = make(image_size=image_size, in_chans=1)
    one.train()(images)
    other = make(image_size=image_size, in_chans=1)
    with torch.no_grad():
        wanted, before = one.eval()(images), other.eval()(images)
        other.load_state_dict(one.state_dict())
        torch.testing.assert_close(other(images), wanted, rtol=0, atol=0)
    assert (before - wanted).abs().max() > 1e-4


def check_drop_path_is_random_in_training_alone(make: Make, *, image_size: int = 64) -> None:
    """With stochastic depth two passes differ in training mode, and agree in evaluation mode."""
    torch.manual_seed(0)
    backbone = make(image_size=image_size, in_chans=1, drop_path=0.5)
    images = noise(4, 1, image_size, image_size)
    with torch.no_grad():
        assert not torch.equal(backbone(images), backbone(images))
        assert torch.equal(backbone.eval()(images), backbone(images))


def check_the_first_token_is_the_feature(backbone: nn.Module, last: nn.Module, images: Tensor) -> None:
    """Of the tokens (B, N, D) that leave the last module, alone or behind a map, the first decides and no other."""
    with torch.no_grad():
        before = backbone.eval()(images)
        for is_first in (True, False):
            hook = last.register_forward_hook(lambda *call, changed=is_first: with_noise(call[-1], changed))
            assert torch.equal(backbone(images), before) != is_first
            hook.remove()


def with_noise(output: Tensor | tuple[Tensor, Tensor], in_first: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Tokens, alone or behind a map, with noise on the first of them or on all others."""
    if isinstance(output, tuple):
        return output[0], with_noise(output[1], in_first)  # type: ignore[return-value]
    is_first = torch.arange(output.shape[1]) == 0
    return torch.where((is_first == in_first)[:, None], output + noise(*output.shape), output)


def seen_attention(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights of attention (..., heads, queries, keys) of each module of attention, in order of use. Fused and
    other attention give the same features."""
    modules: list[Any] = [module for module in backbone.modules() if hasattr(module, "fused_attn")]
    weights: list[Tensor] = []
    hooks = [module.attn_drop.register_forward_hook(lambda *call: weights.append(call[-1])) for module in modules]
    with torch.no_grad():
        fused = backbone.eval()(images)
        assert weights == []
        for module in modules:
            module.fused_attn = False
        torch.testing.assert_close(backbone(images), fused, rtol=1e-5, atol=1e-5)
    for hook in hooks:
        hook.remove()
    for layer in weights:
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones(layer.shape[:-1]))
    return weights
