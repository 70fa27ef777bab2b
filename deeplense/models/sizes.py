"""How images of any size reach a network that takes only some. B batch, C bands, S pixels a side."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

MULTIPLE = 32


@dataclass(frozen=True)
class InputSize:
    """How images of any size reach a network that wants `size` pixels a side: `native`, `pad` (mirrored border) or
    `resize`."""

    way: str
    size: int

    @property
    def verb(self) -> str:
        """What is done to the images, in words."""
        return {"native": "left as they are", "pad": "padded", "resize": "resized"}[self.way]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) as (B, C, size, size)."""
        if self.way == "pad":
            missing = self.size - images.shape[-1]
            before, after = missing // 2, missing - missing // 2
            return functional.pad(images, (before, after, before, after), mode="reflect")
        if self.way == "resize":
            return functional.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        return images


def padded_to(image_size: int, size: int) -> InputSize:
    """As they are, or padded."""
    return InputSize("native" if size == image_size else "pad", size)


def input_sizes(name: str, image_size: int) -> Iterator[tuple[InputSize, dict[str, int]]]:
    """Ways to give images to a model of timm, with what timm must be told, best first: as they are; padded to a
    multiple of 32; resized to the size it was published for."""
    config = timm.get_pretrained_cfg(name)
    native, fixed = (config.input_size[-1], config.fixed_input_size) if config else (image_size, False)
    if not fixed:
        yield InputSize("native", image_size), {}
    padded = padded_to(image_size, -(-image_size // MULTIPLE) * MULTIPLE)
    yield padded, {"img_size": padded.size}
    yield padded, {}
    yield InputSize("resize", native), {}


class BorderCut(ValueError):
    """A border of the images would change nothing."""


def require_borders(backbone: nn.Module, in_chans: int, size: int) -> None:
    """Raise BorderCut where a border of the images changes no feature: many networks silently cut off what is no whole
    patch."""
    model = copy.deepcopy(backbone).eval().requires_grad_(False)
    for parameter in model.parameters():
        # Residual branches that begin at zero would hide what they will look at.
        if not parameter.any():
            parameter.fill_(0.5)
    images = torch.randn(2, in_chans, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = model(images)
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    borders = {"top": seen[0], "bottom": seen[-1], "left": seen[:, 0], "right": seen[:, -1]}
    cut = [name for name, pixels in borders.items() if not pixels.any()]
    if cut:
        raise BorderCut(f"the {', '.join(cut)} border of images of {size} pixels would be cut off")
