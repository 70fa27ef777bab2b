"""SimMIM: hidden patches are painted by what is seen around them. V views, B batch, C bands, S pixels a side, T patches
of P x P pixels, D features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deeplense.ssl.masked import MakeMasks, check_views, draw_masks, token_weights, with_tokens

LEAST_VARIANCE = 1e-6
"""Of a patch that is divided by its standard deviation."""


class SimMIM(nn.Module):
    """Masked image modeling (Xie et al. 2022, arXiv:2111.09886): the encoder sees a token for each hidden patch, and
    one linear layer says its pixels.

    A masked autoencoder (He et al. 2022, arXiv:2111.06377) shows its encoder the visible patches alone, and has a
    deeper decoder. That spares time where there are many patches; of 16 it spares little, and not every backbone can do
    it.

    Args:
        backbone: with tokens.
        num_features: D.
        num_steps: not used: nothing depends on it.
        in_chans: C.
        patch_size: P.
        make_masks: makes the masks of views.
        mask_uniforms: numbers that it wants for an image.
        num_large: V.
        normalise: whether pixels are told in units of the standard deviation of their patch, from its mean, as in
            the masked autoencoder; where most patches are noise, that is what would be learnt.
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
        """The metrics of a batch: `loss`, the mean error of the pixels of hidden patches, a mean over the images; one
        where nothing is hidden counts as 0. `masked` is the share of patches that are hidden.

        Raises ValueError where there are views of several sizes.
        """
        if len(views) > 1:
            raise ValueError(f"views of {len(views)} sizes, but SimMIM learns from large ones; make no small views.")
        check_views(views[0], self.num_large)
        images = views[0].flatten(0, 1)
        backbone = with_tokens(self.backbone)
        grid = backbone.grid(images.shape[-1])
        masks = draw_masks(self.make_masks, random, num_views=self.num_large, grid=grid)
        _, patches = backbone.tokens(images, masks, self.mask_token)
        errors = (self.decoder(patches) - self.targets(images)).abs().mean(dim=-1)
        return {"loss": (errors * token_weights(masks)).sum(), "masked": masks.float().mean()}

    def targets(self, images: Tensor) -> Tensor:
        """The pixels of each patch of images (B, C, S, S), (B, T, C * P * P)."""
        pixels = patches_of(images.float(), self.patch_size)
        if not self.normalise:
            return pixels
        variances, means = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - means) / (variances + LEAST_VARIANCE).sqrt()

    def after_update(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Nothing is kept beside the weights."""


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    """The pixels of each patch of images (B, C, S, S), row by row, (B, T, C * P * P)."""
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
