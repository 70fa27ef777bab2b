"""The physics-informed LensViT-PINN. Shapes: B batch, C bands, S pixels per side."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from deeplense.models.source_plane import pixel_grid, sis_deflection, source_image, trace_back

PENALTY_WEIGHT = 0.01


class LensViTPINN(nn.Module):
    """A vision transformer estimates the deflection, the lens equation gives the source, and a ResNet-18 sees both.

    After Abdelhaleem (2025, github.com/EmanAbdelhaleem/PINN-for-lensing-images-multi-classification); the defaults are
    its ViT-S/16. A linear layer gives a deflection alpha for each pixel. Their mean modulus is the Einstein radius
    theta_E of a singular isothermal sphere, by which the image is traced back: theta_S = theta_I - alpha_SIS. The
    penalty is 0.01 times the mean square, in pixels, of theta_S - (theta_I - alpha).

    In the published code theta_I is not a position but the brightness, and theta_E the mean of the signed deflections:
    its source is the image less a constant, cut at zero. Here the equation is about angles, and the image is warped.
    """

    has_penalty = True
    published = "vit_small_patch16_224.dino"
    num_features = 512

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: int,
        drop_path: float = 0.0,
        encoder: str = "vit_small_patch16_224",
        patch_size: int = 16,
        depth: int = 12,
        gradient: bool = False,
    ) -> None:
        """Args beyond those of all backbones:

        encoder: what timm calls the vision transformer.
        patch_size: of the encoder; 8 suits images of 64 pixels.
        depth: blocks of the encoder.
        gradient: the encoder sees `edges` of the image instead of the image.
        """
        super().__init__()
        options = {"patch_size": patch_size, "depth": depth, "drop_path_rate": drop_path}
        self.encoder: Any = timm.create_model(encoder, in_chans=in_chans, img_size=image_size, num_classes=0, **options)
        self.deflection = nn.Linear(self.encoder.num_features, 2 * image_size**2)
        self.classifier = timm.create_model("resnet18", in_chans=2 * in_chans, num_classes=0, zero_init_last=False)
        self.gradient = gradient
        self.init_deflection(image_size)

    @torch.no_grad()
    def init_deflection(self, image_size: int) -> None:
        """Start at a sphere with theta_E of a quarter of half the image; features change it by tenths of a pixel."""
        sphere = sis_deflection(*pixel_grid(torch.empty(image_size, image_size)), theta_E=torch.tensor(image_size / 8))
        self.deflection.bias.copy_(torch.stack(sphere).flatten())
        nn.init.trunc_normal_(self.deflection.weight, std=0.02)

    def fitted(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the published weights of the encoder, adapted to the patches, images and bands of this one; the rest
        unchanged."""
        weights, embed = dict(published), self.encoder.patch_embed
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], list(embed.grid_size))  # type: ignore[operator]
        patches = resample_patch_embed(weights["patch_embed.proj.weight"], list(embed.patch_size))
        weights["patch_embed.proj.weight"] = adapt_input_conv(embed.proj.in_channels, patches)
        return self.state_dict() | {f"encoder.{name}": weight for name, weight in weights.items()}

    def estimate_deflection(self, images: Tensor) -> Tensor:
        """Return deflections (B, 2, S, S), x and y, in pixels; in float32, as bfloat16 would round
        them to sixteenths."""
        tokens = self.encoder(edges(images) if self.gradient else images)
        with torch.autocast(images.device.type, enabled=False):
            alpha = self.deflection(tokens.to(self.deflection.weight.dtype))
        return alpha.unflatten(1, (2, *images.shape[2:]))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return features (B, 512) of images (B, C, S, S); in training with the penalty (B,), already weighted."""
        alpha = self.estimate_deflection(images)
        theta_E = torch.linalg.vector_norm(alpha, dim=1).mean((1, 2))
        sphere = sis_deflection(*pixel_grid(alpha), theta_E=theta_E[:, None, None])
        source = source_image(images, trace_back(sphere))
        features = self.classifier(torch.cat([images, source], dim=1))
        if not self.training:
            return features
        return features, PENALTY_WEIGHT * (alpha - torch.stack(sphere, dim=1)).square().mean((1, 2, 3))


def edges(images: Tensor) -> Tensor:
    """Return the modulus of the gradient of arsinh(brightness) per pixel, of images (B, C, S, S).

    It replaces the published derivative of log(I_max / I)^2, which is infinite or NaN where noise brings I to zero or
    below: arsinh is linear within the noise of a normalised image and logarithmic far above it.
    """
    along_y, along_x = torch.gradient(torch.asinh(images), dim=(-2, -1))
    return torch.sqrt(along_x.square() + along_y.square() + 1e-12)
