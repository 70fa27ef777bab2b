"""What augmentation does to a batch of images on its device. B batch, C bands, H W pixels, R random numbers."""

import math

import torch
from torch import Tensor
from torch.nn import functional

NUM_UNIFORMS = 3


def augment(images: Tensor, uniforms: Tensor, *, flips: bool, random_zoom: float, random_rotation: float) -> Tensor:
    """Augment each image by its own random numbers (B, R) in [0, 1[.

    Args:
        images: (B, C, H, W).
        uniforms: the choice of flip and quarter turn, the zoom, the angle.
        flips: flips and quarter turns, each of the eight ways alike.
        random_zoom: factors are drawn between 1 / random_zoom and random_zoom, evenly in their logarithm; 1 for none.
        random_rotation: angles are drawn between -random_rotation and random_rotation degrees; 0 for none.
    """
    if flips:
        images = flip_and_turn(images, (uniforms[:, 0] * 8).long())
    if random_zoom == 1 and random_rotation == 0:
        return images
    spread = (2 * uniforms - 1).to(images.dtype)
    zoom = torch.exp(spread[:, 1] * math.log(random_zoom))
    return zoom_and_rotate(images, zoom, spread[:, 2] * math.radians(random_rotation))


def flip_and_turn(images: Tensor, ways: Tensor) -> Tensor:
    """Each square image in one of the eight ways of the dihedral group; way w turns by w % 4 quarters, and flips
    where w >= 4."""
    out = torch.empty_like(images)
    for way in range(8):
        chosen = ways == way
        turned = torch.rot90(images[chosen], way % 4, dims=(-2, -1))
        out[chosen] = turned.flip(-1) if way >= 4 else turned
    return out


def zoom_and_rotate(images: Tensor, zoom: Tensor, angle: Tensor) -> Tensor:
    """Enlarge by `zoom` (B,) and turn by `angle` (B,) radian about the centre; bilinear, the outside is a
    reflection."""
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    zero = torch.zeros_like(cos)
    matrices = torch.stack([torch.stack([cos, -sin, zero], dim=-1), torch.stack([sin, cos, zero], dim=-1)], dim=-2)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
