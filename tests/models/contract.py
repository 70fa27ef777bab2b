"""What every backbone of ours must hold, tried on one that is made small."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

SIZES_AND_BANDS = [(32, 1), (64, 3), (160, 5)]
Backbone = TypeVar("Backbone", bound=nn.Module)


def noise(*shape: int) -> Tensor:
    """Images of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def seeded(make: Callable[[], Backbone], seed: int = 0) -> Backbone:
    """A backbone whose start is drawn with a seed, in evaluation mode."""
    torch.manual_seed(seed)
    return make().eval()


def check_backbone(make: Callable[[], nn.Module], images: Tensor) -> None:
    """All that is asked of a backbone for images (B, C, S, S)."""
    backbone = seeded(make)
    check_gradients(backbone, images)
    check_features(backbone.eval(), images)
    check_borders(backbone, images)
    other = seeded(make, 1)
    assert not other(images).allclose(backbone(images))
    other.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(other(images), backbone(images), rtol=0, atol=0)


def check_gradients(backbone: nn.Module, images: Tensor) -> None:
    """Every parameter learns from the features, or from the penalty where there is one."""
    outputs = backbone.train()(images)
    features, penalty = outputs if getattr(backbone, "has_penalty", False) else (outputs, torch.zeros(len(images)))
    assert penalty.shape == (len(images),)
    weights = noise(*features.shape)
    ((features * weights).sum(dim=1) + penalty).sum().backward()
    dead = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    assert not dead, f"not reached: {dead}"
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    backbone.zero_grad()


@torch.no_grad()
def check_drop_path(make: Callable[..., nn.Module]) -> None:
    """Paths are dropped as asked, in training alone. `make` is the class, at its own sizes."""
    images = noise(4, 1, 16, 16)
    for drop_path, differ in ((0.0, False), (0.5, True)):
        backbone = seeded(partial(make, in_chans=1, image_size=16, drop_path=drop_path))
        assert backbone(images).equal(backbone(images))
        backbone.train()
        first, second = (backbone(images) for _ in range(2))
        if getattr(backbone, "has_penalty", False):
            first, second = first[0], second[0]
        assert first.equal(second) != differ


@torch.no_grad()
def check_features(backbone: nn.Module, images: Tensor) -> None:
    """Features (B, D), each of its own image alone."""
    features = backbone(images)
    assert features.shape == (len(images), backbone.num_features)
    assert features.isfinite().all()
    alone = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-4, atol=1e-5)


def check_borders(backbone: nn.Module, images: Tensor) -> None:
    """The first and last rows and columns count."""
    images = images.clone().requires_grad_()
    features = backbone(images)
    (features * noise(*features.shape)).sum().backward()
    assert images.grad is not None
    depends = images.grad.abs().amax(dim=(0, 1)) > 0
    borders = {"top": depends[0], "bottom": depends[-1], "left": depends[:, 0], "right": depends[:, -1]}
    assert [name for name, border in borders.items() if not border.any()] == []


@torch.no_grad()
def attention_weights(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights (B, heads, queries, keys) of each layer, in the order of the layers, as the modules `attn_drop` get
    them; fused attention must give the same features."""
    fused = [module for module in backbone.modules() if hasattr(module, "fused_attn")]
    for module in fused:
        module.fused_attn = True  # type: ignore[assignment]
    expected = backbone.eval()(images)
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    weights: list[Tensor] = []
    drops = [module for name, module in backbone.named_modules() if name.split(".")[-1] == "attn_drop"]
    hooks = [drop.register_forward_hook(lambda *passed: weights.append(passed[2])) for drop in drops]
    torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-5)
    for hook in hooks:
        hook.remove()
    assert len(weights) == len(drops) > 0
    for weight in weights:
        assert weight.ndim == 4
        torch.testing.assert_close(weight.sum(dim=-1), torch.ones(weight.shape[:-1]))
    return weights


def parameters_with_classes(backbone: nn.Module, num_classes: int) -> float:
    """Millions of parameters that learn, with a linear classifier."""
    features = int(backbone.num_features)  # type: ignore[arg-type]
    own = sum(math.prod(parameter.shape) for parameter in backbone.parameters() if parameter.requires_grad)
    return (own + (features + 1) * num_classes) / 1e6
