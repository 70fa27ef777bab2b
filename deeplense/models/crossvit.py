"""CrossViT: small and large patches in two branches with cross-attention. Shapes: B batch, C bands, S pixels per side,
D features."""

from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from timm.models.crossvit import CrossVit
from torch import Tensor

from deeplense.models.patches import patches_along


class CrossViT(CrossVit):
    """timm's CrossViT at the size of the images, which timm's own models resize (Chen et al. 2021, arXiv:2103.14899).

    The defaults are CrossViT-Ti, with patches of 4 and 8 pixels for small images where the paper has 12 and 16. Maps
    images (B, C, S, S) to features (B, D), the class tokens of both branches.
    """

    num_features: int
    published = "crossvit_tiny_240"

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        patch_sizes: tuple[int, int] = (4, 8),
        embed_dims: tuple[int, int] = (96, 192),
        depths: tuple[tuple[int, int, int], ...] = ((1, 4, 0),) * 3,
        num_heads: tuple[int, int] = (3, 3),
    ) -> None:
        self.grids = [(patches_along(image_size, patch_size), patch_size) for patch_size in patch_sizes]
        super().__init__(
            img_size=image_size,
            patch_size=patch_sizes,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dims,
            depth=depths,
            num_heads=num_heads,
            mlp_ratio=(4.0, 4.0, 1.0),
            drop_path_rate=drop_path,
        )

    def fitted(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of timm's model, adapted to the patches, images and bands of this one."""
        weights = {name: weight for name, weight in published.items() if not name.startswith("head.")}
        for branch, (side, patch_size) in enumerate(self.grids):
            positions, patches = f"pos_embed_{branch}", f"patch_embed.{branch}.proj.weight"
            weights[positions] = resample_abs_pos_embed(weights[positions], [side, side])  # type: ignore[operator]
            resampled = resample_patch_embed(weights[patches], [patch_size, patch_size])
            weights[patches] = adapt_input_conv(self.in_chans, resampled)
        return weights
