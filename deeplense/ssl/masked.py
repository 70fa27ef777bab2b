"""What methods share that hide patches. N images, T patches of each, D features, V views, B batch."""

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor, nn

MakeMasks = Callable[[Tensor, tuple[int, int]], Tensor]
"""Maps numbers (N, U) in [0, 1[ and the rows and columns of patches to masks (N, T), true where a patch is hidden."""


class TokenBackbone(Protocol):
    """A backbone whose patches can be seen and hidden."""

    def tokens(
        self, images: Tensor, masks: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (N, D) and patches (N, T, D) of images, the masked ones replaced by `mask_token` (1, 1, D)."""
        ...

    def grid(self, size: int) -> tuple[int, int]:
        """Rows and columns of patches of images of `size` pixels a side."""
        ...


def with_tokens(backbone: nn.Module) -> TokenBackbone:
    """The same backbone, as one with tokens."""
    return cast(TokenBackbone, backbone)


def draw_masks(make_masks: MakeMasks, random: Tensor, *, num_views: int, grid: tuple[int, int]) -> Tensor:
    """A mask for each view of each sample (V * B, T), by its share of the numbers (B, V * U)."""
    uniforms = random.unflatten(1, (num_views, -1)).transpose(0, 1)
    return make_masks(uniforms.flatten(0, 1), grid)


def token_weights(masks: Tensor) -> Tensor:
    """Weights (N, T) with which the sum over patches is the mean over images of the mean over their hidden patches. An
    image where nothing is hidden counts as 0."""
    return masks / masks.sum(dim=1, keepdim=True).clamp(min=1) / len(masks)


def check_views(views: Tensor, num_views: int) -> None:
    """Raises ValueError unless there are as many views (V, B, ...) as masks are drawn for."""
    if len(views) != num_views:
        raise ValueError(f"{len(views)} large views, but masks are drawn for {num_views}; make the two numbers equal.")
