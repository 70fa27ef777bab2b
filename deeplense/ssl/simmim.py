"""SimMIM: the pixels of masked patches are predicted from the visible ones. Shapes: V views, B batch, C bands, S pixels
per side, T patches of P x P pixels, D features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deeplense.ssl.patches import MakeMasks, check_views, draw_masks, token_weights, with_tokens

LEAST_VARIANCE = 1e-6
"""Added to the variance of a patch that is divided by its standard deviation."""


class SimMIM(nn.Module):
    """Masked image modeling (Xie et al. 2022, arXiv:2111.09886): the encoder sees a mask token for each masked patch,
    and one linear layer predicts its pixels.

    A masked autoencoder (He et al. 2022, arXiv:2111.06377) shows its encoder the visible patches only, and has a deeper
    decoder. That saves time if there are many patches; with 16 it saves little, and not every backbone supports it.

    Args:
        backbone: backbone with tokens (`TokenBackbone`).
        num_features: D.
        num_steps: not used.
        in_chans: C.
        patch_size: P.
        make_masks: makes the masks of views from random numbers.
        mask_uniforms: number of random numbers that it takes per image.
        num_large: V.
        normalise: whether the mean of each patch is subtracted and the result divided by its standard deviation, as in
            the masked autoencoder; if most patches are noise, the network is mostly trained on that.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_features: int,
        num_steps: int,
        in_chans: int,
        patch_size: int,
        make_masks: MakeMasks,
        mask_uniforms: int,
        num_large: int = 2,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.make_masks, self.num_large, self.num_uniforms = make_masks, num_large, num_large * mask_uniforms
        self.patch_size, self.normalise = patch_size, normalise
        self.backbone = backbone
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, num_features), std=0.02))
        self.decoder = nn.Linear(num_features, in_chans * patch_size**2)

    @property
    def encoder(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def forward(self, views: Sequence[Tensor], random: Tensor, step: int) -> dict[str, Tensor]:
        """Return the metrics of a batch: `loss`, the mean absolute error of the pixels of masked patches, averaged over
        images (an image without masked patches counts as 0), and `masked`, the fraction of masked patches.

        Args:
            views: large views only, [(V, B, C, S, S)].
            random: random numbers of the masks, (B, num_uniforms) in [0, 1[.
            step: not used.

        Raises:
            ValueError: there are views of several sizes, or not V.
        """
        if len(views) > 1:
            raise ValueError(f"views have {len(views)} sizes, but SimMIM uses large views only; set num_local=0.")
        check_views(views[0], self.num_large)
        images = views[0].flatten(0, 1)
        backbone = with_tokens(self.backbone)
        grid = backbone.grid(images.shape[-1])
        masks = draw_masks(self.make_masks, random, num_views=self.num_large, grid=grid)
        _, patches = backbone.tokens(images, masks, self.mask_token)
        errors = (self.decoder(patches) - self.targets(images)).abs().mean(dim=-1)
        return {"loss": (errors * token_weights(masks)).sum(), "masked": masks.float().mean()}

    def targets(self, images: Tensor) -> Tensor:
        """Return the pixels of each patch of images (B, C, S, S), (B, T, C * P * P)."""
        pixels = patches_of(images.float(), self.patch_size)
        if not self.normalise:
            return pixels
        variances, means = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - means) / (variances + LEAST_VARIANCE).sqrt()

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: there is no state beside the weights.

        Args:
            step: not used.
            total: not used.
        """


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    """Return the pixels of each patch, row by row, (B, T, C * P * P).

    Args:
        images: (B, C, S, S).
        patch_size: P, in pixels; it divides S.

    Example:
        >>> patches_of(torch.zeros(2, 3, 8, 8), 4).shape
        torch.Size([2, 4, 48])
    """
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
