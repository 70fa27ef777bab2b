"""Random views of images for self-supervised training: crop, rotation, zoom, seeing, sky and calibration, sampled for
each image and view, and computed for a whole batch at once on its device.

Images are linear flux; the stretch comes after. The operations follow the light: its colours (dust, calibration), its
position (crop, zoom, rotation), the seeing, and then the noise of the sky, which no seeing smooths.

B batch, C bands, H x W pixels of an image, S pixels per side of a view, V views.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.choices import Choices
from deeplense.constants import constant, kept
from deeplense.random.noise import fast_normals, fast_uniforms

EXTINCTION = {"g": 3.303, "r": 2.285, "i": 1.698}
"""A_band / E(B-V) of the SDSS bands for R_V = 3.1 (Schlafly & Finkbeiner 2011, table 6); those of other surveys differ
by up to 6 %."""
WINDOW = ("x", "y", "area", "aspect", "angle", "mirror", "zoom")
LIGHT = ("blur", "noise", "gain", "dust")
KEYS = ("key", "second_key")
DRAWS: tuple[str, ...] = (*WINDOW, *LIGHT, *KEYS)
"""The meaning of each random number of a view; the keys make all noise per band and pixel."""
FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))
MAD_PER_SIGMA = 0.6744897501960817

Draws = dict[str, Tensor]
"""Random numbers in [0, 1[ by name, (V, B) each."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """The parameters of the views; the defaults are the preset `lenses`.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> settings = ViewSettings(global_size=32, num_local=0)
        >>> num_uniforms(settings)
        26
    """

    global_size: int = 32
    """pixels per side of a large view"""
    num_global: int = 2
    global_scale: tuple[float, float] = (0.5, 1.0)
    """fraction of the stamp's area in the window of a large view: minimum, maximum (uniform, as in
    torchvision.transforms.RandomResizedCrop)"""
    global_spread: float = 1.0
    """how far the centre of the window may be from that of the stamp: 1 anywhere, as long as the window fits, 0 not at
    all"""
    local_size: int = 16
    num_local: int = 8
    local_scale: tuple[float, float] = (0.15, 0.45)
    local_spread: float = 0.7
    stamp_size: int = 0
    """pixels per side of the centre of the image where windows are taken from, 0 for the shorter side; the surroundings
    are seen in rotated windows, and beyond the image its reflection"""
    aspect: float = 1.0
    """largest ratio of the longer to the shorter side of a window; above 1 distorts"""
    flips: bool = True
    """flip along each axis, in half of the views"""
    rotation: float = 180.0
    """largest rotation in degrees, either way"""
    zoom: float = 1.1
    """factors between 1 / zoom and zoom, uniform in their logarithm; the total flux is conserved (that of a star within
    a few per cent, as the interpolation is linear)"""
    blur_fwhm: float = 1.5
    """largest additional seeing: FWHM of a Gaussian in pixels of the view"""
    blur_share: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """fraction of views that are blurred: the first large one, the other large ones, the local ones"""
    noise: tuple[float, float] = (0.0, 0.5)
    """additional sky noise in units of the existing one: minimum, maximum"""
    gain: tuple[float, float] = (0.8, 1.25)
    """factor for all bands: minimum, maximum"""
    gain_share: float = 1.0
    """fraction of views with another gain"""
    zero_point: float = 0.03
    """largest error of the zero point of each band in magnitudes"""
    reddening: float = 0.1
    """largest E(B-V) of foreground dust in magnitudes"""
    bands: tuple[str, ...] = ()
    """names of the bands, for the reddening; a band that is not in EXTINCTION is not reddened"""

    def __post_init__(self) -> None:
        for name in ("global_size", "num_global", "local_size", "aspect", "zoom"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_local", "stamp_size", "rotation", "blur_fwhm", "zero_point", "reddening"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("global_scale", "local_scale"):
            least, most = getattr(self, name)
            require(
                self,
                name,
                0 < least <= most <= 1,
                "two fractions of the area, above 0 and at most 1, the smaller first",
            )
        for name in ("noise", "gain"):
            least, most = getattr(self, name)
            require(self, name, 0 <= least <= most, "two numbers of 0 or more, the smaller first")
        shares = ("global_spread", "local_spread", "gain_share", "blur_share")
        for name in shares:
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            require(self, name, all(0 <= each <= 1 for each in values), "between 0 and 1")


def require(settings: ViewSettings, name: str, right: bool, what: str) -> None:
    """Raise an error unless a value is right.

    Args:
        settings: settings with the value.
        name: name of the setting.
        right: whether the value is right.
        what: what would be right, in words.

    Raises:
        ValueError: the value is wrong.
    """
    if not right:
        raise ValueError(f"{name}={getattr(settings, name)} is invalid for views; it must be {what}.")


LENSES = ViewSettings()
"""The default for stamps with a lens in the centre. Large views always contain the centre, as a window of half the area
covers it wherever it is; local views contain it or its neighbourhood, where arcs are, by `local_spread`. Windows keep
their shape, as a stretched ring is another lens."""

PUBLISHED = ViewSettings(
    global_scale=(0.14, 1.0),
    local_size=20,
    num_local=16,
    local_scale=(0.01, 0.14),
    local_spread=1.0,
    stamp_size=32,
    aspect=4 / 3,
    rotation=0.0,
    zoom=1.0,
    blur_fwhm=4.5,
    blur_share=(1.0, 0.3, 0.5),
    noise=(0.0, 0.0),
    gain=(0.2, 1.8),
    gain_share=0.1,
    zero_point=0.0,
    reddening=0.0,
)
"""The augmentation of DeepLense_SSL (Sreehari 2024) for DINO with ViT-S: 2 crops of 14 % to 100 % of the area of the
inner 32 pixels, resized to 32 pixels, and 16 of 1 % to 14 % (that is 3 to 12 pixels) resized to 20, aspect up to 4/3;
flipped along both axes; blurred always, in 3 of 10 and in half of the views; brightness between 0.2 and 1.8 in one of
10. No rotation, no noise. It had 28 pixels for local crops of ViT-B, and 8 or 12 of them for iBOT.

Differences: bilinear instead of bicubic interpolation; no change of contrast, no clipping at 0 and 1 (which
torchvision's ColorJitter does where fluxes are higher); its sigma of up to 4 pixels, cut at 7, is the FWHM of 4.5
pixels of such a kernel, and by a mistake its blur went along one axis only, ours along both.
"""

PRESETS = Choices("views", {"lenses": LENSES, "published": PUBLISHED})


@dataclass(frozen=True)
class Crops:
    """The views of one resolution.

    Args:
        size: S, pixels per side.
        scale: fraction of the stamp's area: minimum, maximum.
        spread: how far the centre of the window may be from that of the stamp, 0 to 1.
        blur_shares: probability of a blur for each of the V views.
    """

    size: int
    scale: tuple[float, float]
    spread: float
    blur_shares: tuple[float, ...]


def crops_of(settings: ViewSettings) -> Iterator[Crops]:
    """Yield the large views first, then the local ones if there are any."""
    first, other, local = settings.blur_share
    shares = (first, *[other] * (settings.num_global - 1))
    yield Crops(settings.global_size, settings.global_scale, settings.global_spread, shares)
    if settings.num_local:
        shares = (local,) * settings.num_local
        yield Crops(settings.local_size, settings.local_scale, settings.local_spread, shares)


def num_uniforms(settings: ViewSettings) -> int:
    """Return the number of random numbers that the views of a sample take."""
    return (settings.num_global + settings.num_local) * len(DRAWS)


def make_views(images: Tensor, uniforms: Tensor, settings: ViewSettings, *, sky: Tensor) -> list[Tensor]:
    """Return views of each image, a function of the image and its own random numbers.

    Args:
        images: (B, C, H, W), linear flux, finite.
        uniforms: (B, num_uniforms(settings)) in [0, 1[.
        settings: parameters of the views.
        sky: standard deviation of the sky in a pixel of each band, (C,), in the unit of the images.

    Returns:
        (V, B, C, S, S) in float32 for each resolution, the large views first.

    Raises:
        ValueError: shapes and settings do not fit.

    Example:
        >>> settings = ViewSettings(global_size=16, local_size=8, num_local=3)
        >>> images = torch.randn(2, 1, 32, 32)
        >>> large, local = make_views(images, torch.rand(2, num_uniforms(settings)), settings, sky=estimate_sky(images))
        >>> large.shape, local.shape
        (torch.Size([2, 2, 1, 16, 16]), torch.Size([3, 2, 1, 8, 8]))
    """
    check_fit(images, uniforms, settings, sky)
    views, first = [], 0
    numbers = uniforms.float().unflatten(1, (-1, len(DRAWS))).permute(2, 1, 0).contiguous()
    # Half precision would move windows by pixels, and round faint arcs away.
    with torch.autocast(images.device.type, enabled=False):
        for crops in crops_of(settings):
            last = first + len(crops.blur_shares)
            draws = dict(zip(DRAWS, numbers[:, first:last], strict=True))
            views.append(views_of(images.float(), draws, crops, settings, sky.to(images.device).float()))
            first = last
    return views


def check_fit(images: Tensor, uniforms: Tensor, settings: ViewSettings, sky: Tensor) -> None:
    """Raise an error unless images, random numbers and settings fit.

    Args:
        images: (B, C, H, W).
        uniforms: (B, num_uniforms(settings)).
        settings: parameters of the views.
        sky: (C,).

    Raises:
        ValueError: they do not fit.
    """
    num_bands, shorter = images.shape[1], min(images.shape[-2:])
    expected = (len(images), num_uniforms(settings))
    if tuple(uniforms.shape) != expected:
        raise ValueError(f"uniforms have shape {tuple(uniforms.shape)}; these views and images need {expected}.")
    if tuple(sky.shape) != (num_bands,):
        raise ValueError(f"sky has shape {tuple(sky.shape)}; for {num_bands} bands it must be ({num_bands},).")
    if settings.bands and len(settings.bands) != num_bands:
        raise ValueError(
            f"bands={settings.bands} has {len(settings.bands)} names, but the images have {num_bands} bands; "
            "give one each."
        )
    if settings.stamp_size > shorter:
        raise ValueError(
            f"stamp_size={settings.stamp_size} is larger than the images ({shorter} pixels); use a smaller value."
        )


def views_of(images: Tensor, draws: Draws, crops: Crops, settings: ViewSettings, sky: Tensor) -> Tensor:
    """Return all views of one resolution, (V, B, C, S, S).

    Args:
        images: (B, C, H, W), linear flux.
        draws: random numbers of these views, (V, B) each.
        crops: the views.
        settings: parameters of the views.
        sky: standard deviation of the sky in a pixel of each band, (C,).
    """
    views = resample(images, draws, crops, settings)
    if settings.blur_fwhm:
        views = blur(views, fwhm_of(draws, crops, settings))
    factors = (gains(draws, settings, images.shape[1]) / zoom_of(draws, settings)[..., None] ** 2)[..., None, None]
    if not settings.noise[1]:
        return (views * factors).contiguous()
    sigma = (between(draws["noise"], settings.noise)[..., None] * sky)[..., None, None]
    return (fast_normals(keys_of(draws), views.shape[2:]) * sigma).addcmul_(views, factors)


def between(draw: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Map a random number from [0, 1[ to an interval, linearly.

    Args:
        draw: any shape, in [0, 1[.
        bounds: minimum and maximum.
    """
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def zoom_of(draws: Draws, settings: ViewSettings) -> Tensor:
    """Return zoom factors (V, B).

    Args:
        draws: random numbers, (V, B) each.
        settings: parameters of the views.
    """
    return torch.exp((2 * draws["zoom"] - 1) * math.log(settings.zoom))


def fwhm_of(draws: Draws, crops: Crops, settings: ViewSettings) -> Tensor:
    """Return the FWHM of the additional seeing in pixels of the view, (V, B).

    One random number decides whether a view is blurred, and how much: below the probability it is uniform again.

    Args:
        draws: random numbers, (V, B) each.
        crops: the views.
        settings: parameters of the views.
    """
    shares = constant(crops.blur_shares, draws["blur"].dtype, draws["blur"].device)[:, None]
    return torch.where(draws["blur"] < shares, settings.blur_fwhm * draws["blur"] / shares.clamp(min=1e-12), 0)


def gains(draws: Draws, settings: ViewSettings, num_bands: int) -> Tensor:
    """Return factors of the flux (V, B, C): a common gain, zero-point errors, and foreground dust.

    Args:
        draws: random numbers, (V, B) each.
        settings: parameters of the views.
        num_bands: C.
    """
    draw, share = draws["gain"], max(settings.gain_share, 1e-12)
    common = torch.where(draw < settings.gain_share, between(draw / share, settings.gain), 1)
    magnitudes = settings.zero_point * (2 * fast_uniforms(keys_of(draws), num_bands, first=ZERO_POINTS) - 1)
    extinction = tuple(EXTINCTION.get(band, 0.0) for band in settings.bands) or (0.0,) * num_bands
    dust = constant(extinction, magnitudes.dtype, magnitudes.device)
    magnitudes = magnitudes + settings.reddening * draws["dust"][..., None] * dust
    return common[..., None] * 10 ** (-0.4 * magnitudes)


def resample(images: Tensor, draws: Draws, crops: Crops, settings: ViewSettings) -> Tensor:
    """Return the pixels of the windows, (V, B, C, S, S): crop, zoom, rotation and flip in one bilinear interpolation.

    If a pixel of the view covers s > 1 pixels of the image in each direction, it is the mean of k x k points, with k
    the nearest integer to the largest possible s, sqrt((s^2 - 1) / (k^2 - 1)) pixels apart: s = k gives the mean of the
    covered pixels, s = 1 the one pixel, and s between them a footprint of the right variance. For s below 1.5 there is
    one point: what is then aliased is not resolved by the seeing.

    Args:
        images: (B, C, H, W).
        draws: random numbers, (V, B) each.
        crops: the views.
        settings: parameters of the views.
    """
    draws = {name: draw.T for name, draw in draws.items()}
    stamp, size = settings.stamp_size or min(images.shape[-2:]), crops.size
    num_points = points_a_side(crops, settings, stamp=stamp)
    halves, middles = windows(draws, crops, settings, stamp=stamp)
    across, down = (half[..., None] * places(2 * half / size, size, num_points) for half in halves)
    angle = (2 * draws["angle"] - 1) * math.radians(settings.rotation)
    cos, sin, x, y = (each[..., None] for each in (torch.cos(angle), torch.sin(angle), *middles))
    height, width = images.shape[-2:]
    to_x = (cos * across + x) * (2 / width), -sin * down * (2 / width)
    to_y = (sin * across + y) * (2 / height), cos * down * (2 / height)
    grid = images.new_empty(*down.shape, across.shape[-1], 2)
    for axis, (columns, rows) in enumerate((to_x, to_y)):
        torch.add(columns[..., None, :], rows[..., None], out=grid[..., axis])
    grid = grid.flatten(1, 2)
    seen = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if num_points > 1:
        seen = functional.avg_pool2d(seen, num_points)
    return seen.unflatten(2, (-1, size)).permute(2, 0, 1, 3, 4)


def windows(
    draws: Draws, crops: Crops, settings: ViewSettings, *, stamp: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return half sides and centres of the windows along x and y, in pixels of the image from its centre, in the shape
    of the draws; a negative half side flips.

    Args:
        draws: random numbers, one shape for all.
        crops: the views.
        settings: parameters of the views.
        stamp: pixels per side of the stamp.
    """
    area = between(draws["area"], crops.scale)
    aspect = torch.exp((2 * draws["aspect"] - 1) * math.log(settings.aspect))
    zoom, ways = zoom_of(draws, settings), (draws["mirror"] * 4).int()
    halves, middles = [], []
    for draw, square, bit in ((draws["x"], area * aspect, 1), (draws["y"], area / aspect, 2)):
        share = square.sqrt().clamp(max=1)
        middles.append((2 * draw - 1) * (1 - share) * crops.spread * stamp / 2)
        sign = torch.where((ways & bit == 0) | (not settings.flips), 1, -1)
        halves.append(sign * share * stamp / 2 / zoom)
    return (halves[0], halves[1]), (middles[0], middles[1])


def points_a_side(crops: Crops, settings: ViewSettings, *, stamp: int) -> int:
    """Return k: a pixel of a view is the mean of k x k points of the image.

    Args:
        crops: the views.
        settings: parameters of the views.
        stamp: pixels per side of the stamp.
    """
    share = min(math.sqrt(crops.scale[1] * settings.aspect), 1)
    return max(round(share * stamp * settings.zoom / crops.size), 1)


def places(step: Tensor, size: int, num_points: int) -> Tensor:
    """Return the positions of the points of a view along one axis, (..., S k), from -1 to 1 over the window.

    Args:
        step: pixels of the image per pixel of the view, (...).
        size: S.
        num_points: k.
    """
    pixels = (torch.arange(size, device=step.device) * 2 + 1) / size - 1
    if num_points == 1:
        return pixels
    covered = step.abs().clamp(min=1)
    apart = torch.sqrt((covered**2 - 1) / (num_points**2 - 1)) / covered * (2 / size)
    offsets = torch.arange(num_points, device=step.device) - (num_points - 1) / 2
    return (pixels[:, None] + apart[..., None, None] * offsets).flatten(-2)


def blur(views: Tensor, fwhm: Tensor) -> Tensor:
    """Convolve each view with a Gaussian of its own.

    The standing waves of the view, reflected at its borders, are damped as a Gaussian damps waves (heat diffusion). So
    the flux is conserved, the width is right even below a pixel, and the operation is one matrix (S, S) per view, in a
    third of the time of grouped convolutions.

    Args:
        views: (V, B, C, S, S).
        fwhm: full width at half maximum in pixels, (V, B); 0 for no blur.

    Example:
        >>> views = blur(torch.ones(1, 2, 1, 8, 8), torch.tensor([[0.0, 2.0]]))
        >>> round(float(views.mean()), 4)
        1.0
    """
    num_views, batch, num_bands, size, _ = views.shape
    waves, rates = waves_of(size, views.device)
    decay = torch.exp(-((fwhm.flatten()[:, None] / FWHM_PER_SIGMA) ** 2) * rates)
    kernels = (waves.T * decay[:, None, :]) @ waves
    rows = (num_views * batch, num_bands * size, size)
    along_x = torch.bmm(views.reshape(rows), kernels).view(views.shape)
    along_both = torch.bmm(along_x.transpose(-1, -2).reshape(rows), kernels)
    return along_both.view(views.shape).transpose(-1, -2)


@kept
def waves_of(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return standing waves (frequencies, pixels), orthonormal (the cosine transform), and the rates at which a
    variance in square pixels damps them.

    Args:
        size: number of pixels.
        device: device of the tensors.
    """
    frequencies = torch.arange(size, dtype=torch.float64) * (math.pi / size)
    waves = torch.cos(frequencies[:, None] * (torch.arange(size) + 0.5)) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves.float().to(device), (frequencies**2 / 2).float().to(device)


ZERO_POINTS = 2**30
"""The first counter of the random numbers per band; those of pixels begin at 0."""


def keys_of(draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the two keys of each view, (V, B), for the random numbers per band and pixel."""
    first, second = (draws[name] for name in KEYS)
    return first, second


def estimate_sky(images: Tensor) -> Tensor:
    """Return the standard deviation of the sky in a pixel of each band, (C,), in the unit of the images.

    It is estimated in the outermost eighth on each side: the median absolute deviation from the median of each image,
    and the median of that over images, so that neither objects at a border nor the level of an image matter. NaN are
    ignored.

    Args:
        images: (B, C, H, W).

    Raises:
        ValueError: a band has no finite pixel there.

    Example:
        >>> images = 3.0 * torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(estimate_sky(images) - 3.0) < 0.1)
        True
    """
    height, width = images.shape[-2:]
    rows, columns = max(height // 8, 1), max(width // 8, 1)
    inner = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    inner[rows : height - rows, columns : width - columns] = True
    border = images[..., ~inner].float()
    border = torch.where(border.isfinite(), border, torch.nan)
    middle = border.nanmedian(dim=-1, keepdim=True).values
    deviation = (border - middle).abs().nanmedian(dim=-1).values
    sky = deviation.nanmedian(dim=0).values / MAD_PER_SIGMA
    if sky.isnan().any():
        raise ValueError(
            f"the sky cannot be measured in bands {sky.isnan().nonzero().flatten().tolist()}: they have no "
            "finite pixel."
        )
    return sky
