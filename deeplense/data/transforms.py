"""Augmentation of a batch of images on its device. Shapes: B batch, C bands, H x W pixels, R random numbers."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.constants import kept

NUM_UNIFORMS = 3


def augment(images: Tensor, uniforms: Tensor, *, flips: bool, random_zoom: float, random_rotation: float) -> Tensor:
    """Augment each image by its own random numbers.

    Args:
        images: (B, C, H, W); square if `flips`.
        uniforms: (B, R) in [0, 1[, R = `NUM_UNIFORMS`: the choice of flip and quarter turn, the zoom, the angle.
        flips: whether to flip and turn by quarters, each of the eight ways with the same probability.
        random_zoom: zoom factors between 1 / random_zoom and random_zoom, uniform in their logarithm; 1 for none.
        random_rotation: angles between -random_rotation and random_rotation degrees, uniform; 0 for none.

    Returns:
        Images (B, C, H, W).

    Example:
        >>> images = torch.arange(4.0).view(1, 1, 2, 2)
        >>> turned = augment(images, torch.tensor([[0.13, 0.5, 0.5]]), flips=True, random_zoom=1, random_rotation=0)
        >>> turned.tolist()
        [[[[1.0, 3.0], [0.0, 2.0]]]]
    """
    if flips:
        images = flip_and_turn(images, (uniforms[:, 0] * 8).long())
    if random_zoom == 1 and random_rotation == 0:
        return images
    spread = (2 * uniforms - 1).to(images.dtype)
    zoom = torch.exp(spread[:, 1] * math.log(random_zoom))
    return zoom_and_rotate(images, zoom, spread[:, 2] * math.radians(random_rotation))


def flip_and_turn(images: Tensor, ways: Tensor) -> Tensor:
    """Return each square image in one of the eight orientations of the dihedral group.

    Args:
        images: (B, C, H, H).
        ways: number of the orientation, (B,) in 0 to 7: w % 4 quarter turns, then a left-right flip if w >= 4.
    """
    places = eight_ways(images.shape[-1], images.device)[ways, None].expand(-1, images.shape[1], -1)
    return images.flatten(-2).gather(-1, places).view_as(images)


@kept
def eight_ways(size: int, device: torch.device) -> Tensor:
    """Return which pixel is at each place of an image in each orientation, (8, size * size).

    Args:
        size: pixels per side.
        device: device of the result.
    """
    places = torch.arange(size**2, device=device).view(size, size)
    turned = [torch.rot90(places, quarters) for quarters in range(4)]
    return torch.stack([*turned, *(each.flip(-1) for each in turned)]).flatten(1)


def zoom_and_rotate(images: Tensor, zoom: Tensor, angle: Tensor) -> Tensor:
    """Enlarge and rotate images about their centre; bilinear, with reflection beyond the borders.

    Args:
        images: (B, C, H, W).
        zoom: factors, (B,), above 0.
        angle: angles in radian, (B,).

    Example:
        >>> zoom_and_rotate(torch.ones(1, 1, 4, 4), torch.tensor([1.1]), torch.tensor([0.3])).shape
        torch.Size([1, 1, 4, 4])
    """
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    zero = torch.zeros_like(cos)
    matrices = torch.stack([torch.stack([cos, -sin, zero], dim=-1), torch.stack([sin, cos, zero], dim=-1)], dim=-2)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
