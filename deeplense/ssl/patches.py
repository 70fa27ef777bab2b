"""Shared parts of the methods that mask patches. Shapes: N images, T patches of each, D features, V views, B batch."""

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor, nn

MakeMasks = Callable[[Tensor, tuple[int, int]], Tensor]
"""Maps random numbers (N, U) in [0, 1[ and the grid of patches (rows, columns) to masks (N, T), true for masked
patches."""


class TokenBackbone(Protocol):
    """A backbone whose patches can be returned and masked."""

    def tokens(
        self, images: Tensor, masks: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and patches (N, T, D) of images.

        Args:
            images: (N, C, S, S).
            masks: (N, T) bool, true for masked patches; None for none.
            mask_token: vector that replaces masked patches, (1, 1, D).
        """
        ...

    def grid(self, size: int) -> tuple[int, int]:
        """Return rows and columns of patches of images with `size` pixels per side."""
        ...


def with_tokens(backbone: nn.Module) -> TokenBackbone:
    """Return the same backbone, typed as one with tokens."""
    return cast(TokenBackbone, backbone)


def draw_masks(make_masks: MakeMasks, random: Tensor, *, num_views: int, grid: tuple[int, int]) -> Tensor:
    """Return a mask for each view of each sample, (V * B, T).

    Args:
        make_masks: makes masks from random numbers.
        random: random numbers of the samples, (B, V * U) in [0, 1[.
        num_views: V.
        grid: rows and columns of patches.
    """
    uniforms = random.unflatten(1, (num_views, -1)).transpose(0, 1)
    return make_masks(uniforms.flatten(0, 1), grid)


def token_weights(masks: Tensor) -> Tensor:
    """Return weights (N, T) with which the sum over patches is the mean over images of the mean over their masked
    patches.

    An image without masked patches counts as 0.

    Example:
        >>> import torch
        >>> token_weights(torch.tensor([[True, True], [False, False]]))
        tensor([[0.2500, 0.2500],
                [0.0000, 0.0000]])
    """
    return masks / masks.sum(dim=1, keepdim=True).clamp(min=1) / len(masks)


def check_views(views: Tensor, num_views: int) -> None:
    """Raise an error unless the number of large views is the expected one.

    Args:
        views: (V, B, ...).
        num_views: number of views that masks are made for.

    Raises:
        ValueError: the two numbers differ.
    """
    if len(views) != num_views:
        raise ValueError(f"there are {len(views)} large views, but masks for {num_views}; make the two numbers equal.")
