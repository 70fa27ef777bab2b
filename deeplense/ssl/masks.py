"""Which patches of an image are hidden from the network, as functions of random numbers; always as many as asked for.

B batch, (h, w) grid of patches, T = h w patches, R random numbers.
"""

import math

import torch
from torch import Tensor

NUM_UNIFORMS = 3
"""Random numbers in [0, 1[ that the block of an image takes."""
NUM_COUNT_UNIFORMS = 2
"""Those that the number of its patches takes."""
LONGEST = 1 / 0.3
"""Longer over shorter side of a block at most, as in iBOT."""


def draw_counts(uniforms: Tensor, num_patches: int, *, share: float, spread: float, probability: float) -> Tensor:
    """How many patches of each image are hidden, (B,): none of some images, so that the network learns from whole
    ones, too (Zhou et al. 2022, iBOT).

    Args:
        uniforms: (B, NUM_COUNT_UNIFORMS) in [0, 1[.
        num_patches: T.
        share: middle of the share of patches that are hidden (iBOT's `pred_ratio`).
        spread: the share is drawn evenly, at most so far from its middle (`pred_ratio_var`).
        probability: of an image that anything is hidden.

    Raises:
        ValueError: where shares could be below 0 or above 1.
    """
    if not 0 <= spread <= min(share, 1 - share):
        raise ValueError(f"share={share} and spread={spread} must keep share +- spread between 0 and 1.")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must be between 0 and 1.")
    shares = share + spread * (2 * uniforms[:, 0].float() - 1)
    counts = (shares * num_patches).round().long().clamp(min=int(share > 0))
    return torch.where(uniforms[:, 1] < probability, counts, 0)


def block_masks(uniforms: Tensor, *, grid: tuple[int, int], count: Tensor | float) -> Tensor:
    """One connected block for each image, (B, T) bool, true where a patch is hidden.

    The block grows from a place that is drawn evenly, by rectangles whose ratio of sides is drawn, until it has its
    number of patches; at a border it grows along it.

    Args:
        uniforms: (B, NUM_UNIFORMS) in [0, 1[.
        grid: (h, w); one patch is enough.
        count: patches to hide, (B,), or a share of all of them: the nearest number, but one at least where the share is
            above 0.
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
    """True for the `count` lowest of each row, (B, T)."""
    batch, total = values.shape
    if not isinstance(count, Tensor):
        if not 0 <= count <= 1:
            raise ValueError(f"count={count} must be a share between 0 and 1, or a number of patches for each image.")
        count = torch.full((batch,), max(round(count * total), int(count > 0)), device=values.device)
    if count.shape != (batch,):
        raise ValueError(f"count has shape {tuple(count.shape)}; {batch} images take ({batch},).")
    first = torch.arange(total, device=values.device) < count[:, None]
    return torch.zeros_like(first).scatter(1, values.argsort(dim=1, stable=True), first)
