"""From the image plane to the source plane, differentiable in the deflection and in the brightness.

B batch, C bands, S pixels a side. Positions and deflections are in pixels from the middle of the image; x grows along
the columns and y along the rows.
"""

import torch
from torch import Tensor

from deeplense.simulation.lenses import Deflection

Positions = tuple[Tensor, Tensor]
MIN_WEIGHT = 0.1
"""Rays in a pixel of the source plane below which it fades to zero: a mean over less has steep gradients."""


def pixel_grid(images: Tensor) -> Positions:
    """Centres of the pixels of images (..., S, S) as an open grid (1, S), (S, 1), in float32 or finer: bfloat16 would
    be wrong by a quarter of a pixel."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    along = torch.arange(images.shape[-1], device=images.device, dtype=dtype) - (images.shape[-1] - 1) / 2
    return along[None, :], along[:, None]


def sis_deflection(x: Tensor, y: Tensor, *, theta_E: Tensor) -> Deflection:
    """Deflection of a singular isothermal sphere in the middle: theta_E theta / |theta|, zero at theta = 0.

    `theta_E` broadcasts with the positions. This is the limit e -> 0 of `sie_deflection`, without its rounding.
    """
    radius = torch.sqrt((x * x + y * y).clamp(min=torch.finfo(x.dtype).tiny))
    return theta_E * (x / radius), theta_E * (y / radius)


def trace_back(deflection: Deflection) -> Positions:
    """Where the rays of the pixels meet the source plane, beta = theta - alpha, (B, S, S) each."""
    alpha_x, alpha_y = deflection
    x, y = pixel_grid(alpha_x)
    return x - alpha_x, y - alpha_y


def splat(images: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Drop each pixel at its place in the source plane, shared among the four nearest pixels there (bilinear).

    Args:
        images: brightness (B, C, S, S).
        positions: of the rays in the source plane, (B, S, S) each. What leaves the image is lost.

    Returns:
        The sums of brightness (B, C, S, S) and of weights (B, 1, S, S), that is, rays per pixel of the source plane.
    """
    x, y = positions
    size = images.shape[-1]
    width = size + 3
    (column, right), (row, below) = cell_and_fraction(x, size), cell_and_fraction(y, size)
    values = torch.cat([images, torch.ones_like(images[:, :1])], dim=1).flatten(2)
    sums = torch.zeros(*values.shape[:2], width * width, device=x.device, dtype=torch.result_type(values, x))
    for rows, share_y in ((row, 1 - below), (row + 1, below)):
        for columns, share_x in ((column, 1 - right), (column + 1, right)):
            index = (rows * width + columns).flatten(1)[:, None].expand_as(values)
            sums = sums.scatter_add(2, index, values * (share_x * share_y).flatten(1)[:, None])
    sums = sums.unflatten(2, (width, width))[..., 1 : size + 1, 1 : size + 1]
    return sums[:, :-1], sums[:, -1:]


def cell_and_fraction(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Index of the pixel at or before each position, and the way from its centre to the next, in [0, 1[.

    The indices count a border of one pixel before the image and two after it, to which all that is outside goes. A
    position that is no number gets index 0 and a fraction that is no number.
    """
    place = (positions + (size + 1) / 2).clamp(0, size + 1)
    cell = place.detach().floor().nan_to_num()
    return cell.long(), place - cell


def source_image(images: Tensor, positions: Positions) -> Tensor:
    """The source as the rays see it: the mean brightness (B, C, S, S) of those that meet in a pixel, zero where none.

    Lensing conserves surface brightness, so under the true deflection all images of the source agree in this mean.
    Arguments as of `splat`.
    """
    sums, weights = splat(images, positions)
    return sums / weights.clamp(min=MIN_WEIGHT)
