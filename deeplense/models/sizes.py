"""How images of any size are fitted to a network that takes only some sizes. Shapes: B batch, C bands, S pixels per
side."""

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
    """How images of any size are fitted to a network with `size` pixels per side.

    Args:
        way: `native` (unchanged), `pad` (by reflection) or `resize` (bilinear).
        size: pixels per side of the network's input.

    Example:
        >>> InputSize("pad", 32)(torch.zeros(1, 1, 28, 28)).shape
        torch.Size([1, 1, 32, 32])
    """

    way: str
    size: int

    @property
    def verb(self) -> str:
        """How the images are changed, in words."""
        return {"native": "unchanged", "pad": "padded", "resize": "resized"}[self.way]

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, C, S, S) as (B, C, size, size)."""
        if self.way == "pad":
            missing = self.size - images.shape[-1]
            before, after = missing // 2, missing - missing // 2
            return functional.pad(images, (before, after, before, after), mode="reflect")
        if self.way == "resize":
            return functional.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        return images


def padded_to(image_size: int, size: int) -> InputSize:
    """Return the input size for images that are unchanged or padded.

    Args:
        image_size: pixels per side of the images.
        size: pixels per side of the network's input, at least `image_size`.

    Example:
        >>> padded_to(32, 32).way, padded_to(28, 32).way
        ('native', 'pad')
    """
    return InputSize("native" if size == image_size else "pad", size)


def input_sizes(name: str, image_size: int) -> Iterator[tuple[InputSize, dict[str, int]]]:
    """Yield ways to fit images to a model of timm, with its arguments, best first: unchanged; padded to a multiple of
    32; resized to the size of its published weights.

    Args:
        name: name in timm.
        image_size: pixels per side of the images.
    """
    config = timm.get_pretrained_cfg(name)
    native, fixed = (config.input_size[-1], config.fixed_input_size) if config else (image_size, False)
    if not fixed:
        yield InputSize("native", image_size), {}
    padded = padded_to(image_size, -(-image_size // MULTIPLE) * MULTIPLE)
    yield padded, {"img_size": padded.size}
    yield padded, {}
    yield InputSize("resize", native), {}


class BorderCut(ValueError):
    """A border of the images does not affect the features."""


def require_borders(backbone: nn.Module, in_chans: int, size: int) -> None:
    """Raise an error if a border of the images does not affect the features: many networks silently cut off an
    incomplete patch.

    Args:
        backbone: maps images to features.
        in_chans: number of bands.
        size: pixels per side.

    Raises:
        BorderCut: a border is cut off.

    Example:
        >>> require_borders(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 1, 4)
    """
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
