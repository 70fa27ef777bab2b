"""A network on the residual of a smooth lens model.

B images, C bands, S pixels per side, P latents of a lens.
"""

import math

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.constants import constant
from deeplense.models.smooth_lens import NAMES, Fit, fit_lens, linearise, normal_equations, rates, solve

MULTIPLE = 4
PHOTON_NOISE = 0.03
FAINT_FRACTION = 0.25
MEDIAN_TO_SIGMA = 1 / 0.6745
SOURCE_PLACE = ("source_x", "source_y")
# Raises the diagonal of normal equations, so that what no pixel tells apart stays as it is.
STEADY = 1e-5
LEAST_LEFT = 3e-3


class LensResidual(nn.Module):
    """A smooth lens fitted to each image, then a small ResNet (He et al. 2015, arXiv 1512.03385) on the image, on the
    residual of the fit, and on the significance of a point mass at every place (gravitational imaging: Koopmans 2005,
    astro-ph/0501324; Vegetti and Koopmans 2009, arXiv 0805.0201).

    The fit needs no label; of it, only the photon noise is trained. Each image may have a unit and a background of its
    own: everything is in units of its noise. One lens is fitted to the sum of all bands. Light of the lens itself is
    not modelled.
    """

    def __init__(self, *, in_chans: int, image_size: int, drop_path: float = 0.0, network: str = "resnet10t") -> None:
        super().__init__()
        if image_size % MULTIPLE:
            raise ValueError(f"image_size={image_size} is not a multiple of {MULTIPLE}; pad the images.")
        # The variance of a pixel is 1 plus this times its light, in units of the noise of the background.
        self.log_photon_noise = nn.Parameter(torch.tensor(math.log(PHOTON_NOISE)))
        options = {"in_chans": in_chans + 2, "num_classes": 0, "zero_init_last": False}
        self.network = timm.create_model(network, drop_path_rate=drop_path, **options)
        self.num_features: int = self.network.num_features  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, C, S, S)."""
        with torch.autocast(images.device.type, enabled=False):
            maps = self.maps(images.float())
        return self.network(torch.asinh(maps))

    def maps(self, images: Tensor) -> Tensor:
        """Return the bands over ten times their noise, the residual and the significance of a point mass, (B, C + 2, S,
        S).

        Gradients reach the images and the noise; the lens is treated as constant.
        """
        bands = in_units_of_noise(images)
        stack = bands.sum(dim=1) / math.sqrt(bands.shape[1])
        sigma = self.noise_of(stack)
        with torch.no_grad():
            residual, significance = unexplained(fit_lens(stack, sigma), stack, sigma)
            model = stack - residual * sigma
        return torch.cat([bands / 10, torch.stack([(stack - model) / sigma, significance], dim=1)], dim=1)

    def noise_of(self, stack: Tensor) -> Tensor:
        """Return the noise of each pixel (B, S, S) of images in units of the noise of their background."""
        light = functional.avg_pool2d(stack, 3, stride=1, padding=1, count_include_pad=False).clamp(min=0)
        return torch.sqrt(1 + self.log_photon_noise.exp() * light)


def in_units_of_noise(images: Tensor) -> Tensor:
    """Return images (B, C, S, S) with a background of about zero, in units of the noise of the background.

    The noise is that of a filter that is blind to gradients (Immerkaer 1996, Computer Vision and Image Understanding
    64, 300) where the mean of its 3 x 3 pixels is among the faintest quarter; the two are independent, so this
    selection does not bias it.
    """
    pixels = images.flatten(0, 1)[:, None]
    kernel = constant((1, -2, 1, -2, 4, -2, 1, -2, 1), images.dtype, images.device).view(3, 3) / 6
    means = functional.avg_pool2d(pixels, 3, stride=1).flatten(1)
    levels, faint = means.topk(int(FAINT_FRACTION * means.shape[1]), dim=1, largest=False)
    filtered = functional.conv2d(pixels, kernel[None, None]).abs().flatten(1)
    noise = filtered.gather(1, faint).median(dim=1).values * MEDIAN_TO_SIGMA
    # Images without noise are fitted to a thousandth of their contrast.
    contrast = pixels.detach().flatten(1).std(dim=1)
    noise = torch.maximum(noise, 1e-3 * contrast).clamp(min=1e-20)
    return ((pixels - levels.mean(dim=1)[:, None, None, None]) / noise[:, None, None, None]).view_as(images)


def unexplained(best: Fit, images: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual of the smooth lens after one more step, to first order, and the significance of a point mass
    at each place, (B, S, S) each, in units of the noise.

    Args:
        best: fitted lenses.
        images: (B, S, S), in units of the noise of the background.
        sigma: noise of each pixel in this unit, (B, S, S).
    """
    linear = linearise(best, images, sigma)
    change = linear.size * solve(linear, linear.gradient[:, :, None], torch.full_like(best.loss, STEADY))[:, :, 0]
    residual = best.residual - (change[:, None] @ linear.columns).view_as(best.residual)
    columns = linear.columns.unflatten(2, residual.shape[-2:])
    significance = point_mass_significance(halved(residual[:, None])[:, 0], halved(columns), best.latents)
    return residual, functional.interpolate(significance[:, None], scale_factor=2.0, mode="nearest")[:, 0]


def halved(images: Tensor) -> Tensor:
    """Return images (B, K, S, S) in units of their noise, with each 2 x 2 pixels as one."""
    return 2 * functional.avg_pool2d(images, 2)


def point_mass_significance(residual: Tensor, columns: Tensor, latents: Tensor) -> Tensor:
    """Return by how many sigma a point mass in each pixel would improve the fit, to first order, (B, S, S).

    A mass at k changes the image at theta by the gradient of the source times (theta - k) / |theta - k|^2, up to a
    factor. All places are tested at once, as sums over pixels are correlations. Only the part of the change that the
    smooth lens and its source cannot produce counts.

    Args:
        residual: image minus model in units of the noise, (B, S, S).
        columns: derivatives by the free parameters in units of the noise, (B, P + 2, S, S).
        latents: (B, P).
    """
    by_x, by_y = (columns[:, k, None] / rates(latents)[:, k, None, None, None] for k in map(NAMES.index, SOURCE_PLACE))
    pull_x, pull_y = pulls(residual.shape[-1], residual.device)
    maps = torch.cat([residual[:, None], columns], dim=1)
    overlap = correlate((maps * by_x, pull_x), (maps * by_y, pull_y))
    power = correlate((by_x**2, pull_x**2), (2 * by_x * by_y, pull_x * pull_y), (by_y**2, pull_y**2))[:, 0]
    linear = normal_equations(columns.flatten(2), residual.flatten(1), latents)
    shared = linear.size[:, :, None] * overlap[:, 1:].flatten(2)
    through = solve(linear, shared, torch.full_like(power[:, 0, 0], STEADY))
    score = overlap[:, 0] - (linear.gradient[:, None] @ through).view_as(power)
    left = torch.maximum(power - (shared * through).sum(dim=1).view_as(power), LEAST_LEFT * power)
    return score / torch.sqrt(left.clamp(min=1e-12))


def pulls(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the deflection (x, y) / r^2 by a point mass at the origin, softened within a pixel, for all differences of
    positions (2 S, 2 S), the negative ones at the end.

    Args:
        size: S.
        device: device of the tensors.
    """
    along = torch.fft.fftfreq(2 * size, d=1 / 4, device=device)
    x, y = along[None, :], along[:, None]
    squared = x * x + y * y + (2 / size) ** 2
    return x / squared, y / squared


def correlate(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum over theta of map(theta) pull(theta - k), over all pairs of maps (B, K, S, S) and pulls (2 S, 2
    S)."""
    size = pairs[0][0].shape[-1]
    padded = (2 * size, 2 * size)
    products = [torch.fft.rfft2(each, s=padded) * torch.fft.rfft2(pull).conj() for each, pull in pairs]
    return torch.fft.irfft2(torch.stack(products).sum(dim=0), s=padded)[..., :size, :size]
