"""Masks of patches as functions of random numbers; the number of masked patches is always exact.

B batch, (h, w) grid of patches, T = h w patches, R random numbers.
"""

import math

import torch
from torch import Tensor

NUM_UNIFORMS = 3
"""Number of random numbers in [0, 1[ per image that the block takes."""
NUM_COUNT_UNIFORMS = 2
"""Number of random numbers in [0, 1[ per image that the number of masked patches takes."""
LONGEST = 1 / 0.3
"""Largest ratio of the longer to the shorter side of a block, as in iBOT."""


def draw_counts(uniforms: Tensor, num_patches: int, *, share: float, spread: float, probability: float) -> Tensor:
    """Return the number of masked patches of each image, (B,). Some images have none, so that the network is trained on
    whole images, too (Zhou et al. 2022, iBOT).

    Args:
        uniforms: (B, NUM_COUNT_UNIFORMS) in [0, 1[.
        num_patches: T.
        share: mean fraction of patches that are masked, 0 to 1 (iBOT's `pred_ratio`).
        spread: half width of the uniform distribution of this fraction (`pred_ratio_var`).
        probability: probability that an image has masked patches.

    Raises:
        ValueError: fractions could be below 0 or above 1.

    Example:
        >>> draw_counts(torch.tensor([[0.5, 0.1], [0.5, 0.9]]), 16, share=0.5, spread=0.2, probability=0.5)
        tensor([8, 0])
    """
    if not 0 <= spread <= min(share, 1 - share):
        raise ValueError(f"share={share} and spread={spread} must keep share +- spread between 0 and 1.")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must be between 0 and 1.")
    shares = share + spread * (2 * uniforms[:, 0].float() - 1)
    counts = (shares * num_patches).round().long().clamp(min=int(share > 0))
    return torch.where(uniforms[:, 1] < probability, counts, 0)


def block_masks(uniforms: Tensor, *, grid: tuple[int, int], count: Tensor | float) -> Tensor:
    """Return one connected block per image, (B, T) bool, true for masked patches.

    The block grows from a uniformly sampled place, by rectangles of a random aspect ratio, until it has its number of
    patches; at a border it grows along it.

    Args:
        uniforms: (B, NUM_UNIFORMS) in [0, 1[.
        grid: (h, w); one patch is enough.
        count: number of patches to mask, (B,), or a fraction of all of them, 0 to 1: the nearest number, but at least
            one if the fraction is above 0.

    Raises:
        ValueError: `count` is out of range or has the wrong shape.

    Example:
        >>> masks = block_masks(torch.rand(2, NUM_UNIFORMS), grid=(4, 4), count=0.5)
        >>> masks.shape, masks.sum(dim=1).tolist()
        (torch.Size([2, 16]), [8, 8])
    """
    height, width = grid
    numbers = uniforms.float()
    stretch = torch.exp((numbers[:, 2] - 0.5) * math.log(LONGEST))[:, None, None]
    rows = torch.arange(height, device=uniforms.device) + 0.5
    columns = torch.arange(width, device=uniforms.device) + 0.5
    down = (rows[:, None] - numbers[:, 0, None, None] * height).abs() * stretch
    across = (columns - numbers[:, 1, None, None] * width).abs() / stretch
    # The smaller distance counts a little, so that each step towards the place comes earlier: hence connected.
    distances = torch.maximum(down, across) + 0.01 * torch.minimum(down, across)
    return lowest(distances.flatten(1), count)


def lowest(values: Tensor, count: Tensor | float) -> Tensor:
    """Return a mask that is true for the `count` lowest values of each row, (B, T).

    Args:
        values: (B, T).
        count: numbers (B,), or a fraction of T, 0 to 1.

    Raises:
        ValueError: `count` is out of range or has the wrong shape.
    """
    batch, total = values.shape
    if not isinstance(count, Tensor):
        if not 0 <= count <= 1:
            raise ValueError(f"count={count} must be a fraction between 0 and 1, or one number of patches per image.")
        count = torch.full((batch,), max(round(count * total), int(count > 0)), device=values.device)
    if count.shape != (batch,):
        raise ValueError(f"count has shape {tuple(count.shape)}; for {batch} images it must be ({batch},).")
    first = torch.arange(total, device=values.device) < count[:, None]
    return torch.zeros_like(first).scatter(1, values.argsort(dim=1, stable=True), first)
