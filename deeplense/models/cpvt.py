"""CPVT: a transformer whose position encodings come from neighbouring patches. Shapes: B batch, C bands, S pixels per
side, N patches per side, D features."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deeplense.models.patches import patches_along


class CPVT(VisionTransformer):
    """Conditional positional encodings and the mean of all patches (Chu et al. 2021, arXiv:2102.10882).

    The defaults are CPVT-Ti-GAP, with patches of 8 pixels for small images where the paper has 16. Maps images
    (B, C, S, S) to features (B, D).
    """

    num_features: int

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        patch_size: int = 8,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
    ) -> None:
        side = patches_along(image_size, patch_size)
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path,
            class_token=False,
            pos_embed="none",
            global_pool="avg",
            fc_norm=False,
        )
        first, *others = self.blocks
        self.blocks = nn.Sequential(first, PositionalEncoding(embed_dim, side=side), *others)


class PositionalEncoding(nn.Module):
    """Adds a depthwise 3 x 3 convolution to the patches (B, N * N, D). The zero padding shows where the border is."""

    def __init__(self, dim: int, *, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, patches: Tensor) -> Tensor:
        grid = patches.mT.unflatten(2, (self.side, self.side))
        return patches + self.conv(grid).flatten(2).mT
