"""From the image plane to the source plane, differentiable in the deflection and in the brightness.

B batch, C bands, S pixels per side. Positions and deflections are in pixels from the centre of the image; x grows along
the columns and y along the rows.
"""

import torch
from torch import Tensor

from deeplense.simulation.lenses import Deflection

Positions = tuple[Tensor, Tensor]
MIN_WEIGHT = 0.1
"""Number of rays in a pixel of the source plane below which it fades to zero: a mean over fewer has steep gradients."""


def pixel_grid(images: Tensor) -> Positions:
    """Return the pixel centres of images (..., S, S) as an open grid (1, S), (S, 1), in float32 or finer: bfloat16
    would be wrong by a quarter of a pixel."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    along = torch.arange(images.shape[-1], device=images.device, dtype=dtype) - (images.shape[-1] - 1) / 2
    return along[None, :], along[:, None]


def sis_deflection(x: Tensor, y: Tensor, *, theta_E: Tensor) -> Deflection:
    """Return the deflection of a singular isothermal sphere in the centre: theta_E theta / |theta|, zero at theta = 0.

    This is the limit e -> 0 of `sie_deflection`, without its rounding.

    Args:
        x: positions in pixels.
        y: positions in pixels.
        theta_E: Einstein radius in pixels; broadcasts with the positions.

    Example:
        >>> alpha_x, alpha_y = sis_deflection(torch.tensor(3.0), torch.tensor(4.0), theta_E=torch.tensor(5.0))
        >>> round(float(alpha_x), 4), round(float(alpha_y), 4)
        (3.0, 4.0)
    """
    radius = torch.sqrt((x * x + y * y).clamp(min=torch.finfo(x.dtype).tiny))
    return theta_E * (x / radius), theta_E * (y / radius)


def trace_back(deflection: Deflection) -> Positions:
    """Return where the rays of the pixels meet the source plane, beta = theta - alpha, (B, S, S) each."""
    alpha_x, alpha_y = deflection
    x, y = pixel_grid(alpha_x)
    return x - alpha_x, y - alpha_y


def splat(images: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Add each pixel to the source plane, shared between the four nearest pixels there (bilinear).

    Args:
        images: brightness, (B, C, S, S).
        positions: positions of the rays in the source plane in pixels, (B, S, S) each. What leaves the image is lost.

    Returns:
        The sums of brightness (B, C, S, S) and of weights (B, 1, S, S), that is, rays per pixel of the source plane.

    Example:
        >>> sums, weights = splat(torch.ones(1, 1, 4, 4), trace_back((torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))))
        >>> float(sums.sum()), float(weights.max())
        (16.0, 1.0)
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
    """Return the index of the pixel at or before each position, and the fraction of the way to the next, in [0, 1[.

    The indices count a border of one pixel before the image and two after it, for everything outside. A NaN position
    gets index 0 and a NaN fraction.

    Args:
        positions: positions in pixels from the centre, any shape.
        size: S.
    """
    place = (positions + (size + 1) / 2).clamp(0, size + 1)
    cell = place.detach().floor().nan_to_num()
    return cell.long(), place - cell


def source_image(images: Tensor, positions: Positions) -> Tensor:
    """Return the mean brightness of the rays that meet in each pixel of the source plane, (B, C, S, S), zero without
    rays.

    Lensing conserves surface brightness, so under the true deflection all images of the source agree in this mean.

    Args:
        images: brightness, (B, C, S, S).
        positions: positions of the rays in the source plane in pixels, (B, S, S) each.
    """
    sums, weights = splat(images, positions)
    return sums / weights.clamp(min=MIN_WEIGHT)
