"""Random views of images for self-supervised training: crops, turns, zoom, seeing, sky and calibration, drawn for each
sample and each view, made for a whole batch at once on its device.

Images are linear flux: a stretch comes after. What is done follows the light: its colours (dust, calibration), where
it falls (crop, zoom, turn), the seeing, and then the noise of the sky, which no seeing smooths.

B batch, C bands, H W pixels of an image, S pixels of a side of a view, V views.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from deeplense.choices import Choices

EXTINCTION = {"g": 3.303, "r": 2.285, "i": 1.698}
"""A_band / E(B-V) of the SDSS bands for R_V = 3.1 (Schlafly & Finkbeiner 2011, table 6); those of other surveys differ
by up to 6 %."""
WINDOW = ("x", "y", "area", "aspect", "angle", "mirror", "zoom")
LIGHT = ("blur", "noise", "gain", "dust")
KEYS = ("key", "second_key")
DRAWS: tuple[str, ...] = (*WINDOW, *LIGHT, *KEYS)
"""What each number of a view decides; the keys, all that is drawn for each band and pixel."""
FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))
MAD_PER_SIGMA = 0.6744897501960817

Draws = dict[str, Tensor]
"""Numbers in [0, 1[, each (V, B)."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How views are made; the defaults are the preset `lenses`."""

    global_size: int = 32
    """Pixels of a side of a large view."""
    num_global: int = 2
    global_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the stamp's area in the window that a large view shows: least, most (drawn evenly, as in
    torchvision.transforms.RandomResizedCrop)."""
    global_spread: float = 1.0
    """How far the middle of the window may be from that of the stamp: 1 wherever the window fits, 0 not at all."""
    local_size: int = 16
    num_local: int = 8
    local_scale: tuple[float, float] = (0.15, 0.45)
    local_spread: float = 0.7
    stamp_size: int = 0
    """Pixels of the middle of the image where windows are taken from, 0 for the shorter side. What lies around it is
    seen where a window is turned; beyond the image, its reflection."""
    aspect: float = 1.0
    """Longer over shorter side of a window at most; above 1 distorts."""
    flips: bool = True
    """Mirror along each axis, half of the views."""
    rotation: float = 180.0
    """Degrees at most, either way."""
    zoom: float = 1.1
    """Factors between 1 / zoom and zoom, evenly in their logarithm; the total flux is kept (that of a star within a few
    per cent, for the interpolation is linear)."""
    blur_fwhm: float = 1.5
    """Seeing to be added: FWHM of a Gaussian in pixels of the view, at most."""
    blur_share: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Share of views that are blurred: the first large one, the other large ones, the local ones."""
    noise: tuple[float, float] = (0.0, 0.5)
    """Sky to be added, in units of the sky that is there: least, most."""
    gain: tuple[float, float] = (0.8, 1.25)
    """Factors for all bands: least, most."""
    gain_share: float = 1.0
    """Share of views with another gain."""
    zero_point: float = 0.03
    """Errors of the zero point of each band, in magnitudes, at most."""
    reddening: float = 0.1
    """E(B-V) of dust in front, in magnitudes, at most."""
    bands: tuple[str, ...] = ()
    """Their names, for the reddening; a band that EXTINCTION does not have is not reddened."""

    def __post_init__(self) -> None:
        for name in ("global_size", "num_global", "local_size", "aspect", "zoom"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_local", "stamp_size", "rotation", "blur_fwhm", "zero_point", "reddening"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("global_scale", "local_scale"):
            least, most = getattr(self, name)
            require(self, name, 0 < least <= most <= 1, "two shares of an area above 0, the smaller first")
        for name in ("noise", "gain"):
            least, most = getattr(self, name)
            require(self, name, 0 <= least <= most, "two numbers from 0 on, the smaller first")
        shares = ("global_spread", "local_spread", "gain_share", "blur_share")
        for name in shares:
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            require(self, name, all(0 <= each <= 1 for each in values), "between 0 and 1")


def require(settings: ViewSettings, name: str, right: bool, what: str) -> None:
    """Refuse a value, saying what is right."""
    if not right:
        raise ValueError(f"{name}={getattr(settings, name)} is wrong for views; it must be {what}.")


LENSES = ViewSettings()
"""Our default for stamps with a lens in the middle. Large views hold the middle always, for a window of half the area
reaches over it wherever it is; local ones hold it or what is near, where arcs are, by `local_spread`. Windows keep
their shape, for a stretched ring is another lens."""

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
"""What DeepLense_SSL (Sreehari 2024) did for DINO with ViT-S: 2 crops of 14 % to 100 % of the area of the inner 32
pixels, shown in 32 pixels, and 16 of 1 % to 14 % (that is 3 to 12 pixels) in 20, aspect up to 4/3; mirrored both ways;
blurred always, in 3 of 10 and in half of the views; brightness between 0.2 and 1.8 in one of 10. No turn, no noise.
It had 28 pixels for local crops of ViT-B, and 8 or 12 of them for iBOT.

Not as there: bilinear, not bicubic; no change of contrast, no cut at 0 and 1 (which torchvision's ColorJitter makes
where fluxes are higher); its sigma of up to 4 pixels, cut at 7, is the FWHM of 4.5 pixels of such a kernel, and its
blur went along one axis alone, by a mistake, ours along both."""

PRESETS = Choices("views", {"lenses": LENSES, "published": PUBLISHED})


@dataclass(frozen=True)
class Crops:
    """Views of one resolution."""

    size: int
    scale: tuple[float, float]
    spread: float
    blur_shares: tuple[float, ...]


def crops_of(settings: ViewSettings) -> Iterator[Crops]:
    """Large views first; local ones where there are any."""
    first, other, local = settings.blur_share
    shares = (first, *[other] * (settings.num_global - 1))
    yield Crops(settings.global_size, settings.global_scale, settings.global_spread, shares)
    if settings.num_local:
        shares = (local,) * settings.num_local
        yield Crops(settings.local_size, settings.local_scale, settings.local_spread, shares)


def num_uniforms(settings: ViewSettings) -> int:
    """How many random numbers the views of a sample take."""
    return (settings.num_global + settings.num_local) * len(DRAWS)


def make_views(images: Tensor, uniforms: Tensor, settings: ViewSettings, *, sky: Tensor) -> list[Tensor]:
    """Views of each image, a function of the image and of its own random numbers.

    Args:
        images: (B, C, H, W), linear flux, finite.
        uniforms: (B, num_uniforms(settings)) in [0, 1[.
        settings: what may be done.
        sky: (C,) standard deviation of the sky in a pixel, in the unit of the images.

    Returns:
        (V, B, C, S, S) in float32 for each resolution, the large ones first.
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
    """Refuse images, numbers and settings that do not belong together."""
    num_bands, shorter = images.shape[1], min(images.shape[-2:])
    expected = (len(images), num_uniforms(settings))
    if tuple(uniforms.shape) != expected:
        raise ValueError(f"uniforms are {tuple(uniforms.shape)}; these views of these images take {expected}.")
    if tuple(sky.shape) != (num_bands,):
        raise ValueError(f"sky has shape {tuple(sky.shape)}; {num_bands} bands take ({num_bands},).")
    if settings.bands and len(settings.bands) != num_bands:
        raise ValueError(f"bands={settings.bands} are {len(settings.bands)}, but the images have {num_bands}.")
    if settings.stamp_size > shorter:
        raise ValueError(f"stamp_size={settings.stamp_size} is more than the {shorter} pixels of the images; use less.")


def views_of(images: Tensor, draws: Draws, crops: Crops, settings: ViewSettings, sky: Tensor) -> Tensor:
    """All views of one resolution, (V, B, C, S, S)."""
    views = resample(images, draws, crops, settings)
    if settings.blur_fwhm:
        views = blur(views, fwhm_of(draws, crops, settings))
    factors = (gains(draws, settings, images.shape[1]) / zoom_of(draws, settings)[..., None] ** 2)[..., None, None]
    if not settings.noise[1]:
        return (views * factors).contiguous()
    sigma = (between(draws["noise"], settings.noise)[..., None] * sky)[..., None, None]
    return (normals(draws, views.shape) * sigma).addcmul_(views, factors)


def between(draw: Tensor, bounds: tuple[float, float]) -> Tensor:
    """From [0, 1[ to these bounds, evenly."""
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def zoom_of(draws: Draws, settings: ViewSettings) -> Tensor:
    """Factors (V, B)."""
    return torch.exp((2 * draws["zoom"] - 1) * math.log(settings.zoom))


def fwhm_of(draws: Draws, crops: Crops, settings: ViewSettings) -> Tensor:
    """Of the seeing to be added, in pixels of the view, (V, B). One number decides whether a view is blurred, and how
    much: below the share it is even again."""
    shares = torch.tensor(crops.blur_shares, device=draws["blur"].device)[:, None]
    return torch.where(draws["blur"] < shares, settings.blur_fwhm * draws["blur"] / shares.clamp(min=1e-12), 0)


def gains(draws: Draws, settings: ViewSettings, num_bands: int) -> Tensor:
    """Factors of the flux (V, B, C): a common one, errors of the zero points, dust in front."""
    draw, share = draws["gain"], max(settings.gain_share, 1e-12)
    common = torch.where(draw < settings.gain_share, between(draw / share, settings.gain), 1)
    magnitudes = settings.zero_point * (2 * bits_to_uniforms(words(draws, num_bands, first=ZERO_POINTS)) - 1)
    extinction = torch.tensor([EXTINCTION.get(band, 0.0) for band in settings.bands] or [0.0] * num_bands)
    magnitudes = magnitudes + settings.reddening * draws["dust"][..., None] * extinction.to(magnitudes)
    return common[..., None] * 10 ** (-0.4 * magnitudes)


def resample(images: Tensor, draws: Draws, crops: Crops, settings: ViewSettings) -> Tensor:
    """What the windows show, (V, B, C, S, S): crop, zoom, turn and mirror in one bilinear interpolation.

    Where a pixel of the view covers s > 1 pixels of the image in each direction, the mean of k x k points stands for
    it, k the nearest number to the largest s that can be drawn, sqrt((s^2 - 1) / (k^2 - 1)) pixels apart: s = k gives
    the mean of the pixels below it, s = 1 the one pixel, and between them a footprint of the right variance. At s
    below 1.5 the points are one: what aliases then is not resolved by the seeing.
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
    """Half sides and middles of the windows along x and y, in pixels of the image from its middle, in the shape
    of the draws; a half side below 0 mirrors."""
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
    """How many points of the image a side of a pixel of a view is the mean of."""
    share = min(math.sqrt(crops.scale[1] * settings.aspect), 1)
    return max(round(share * stamp * settings.zoom / crops.size), 1)


def places(step: Tensor, size: int, num_points: int) -> Tensor:
    """Places of the points of a view along one axis (..., S k), from -1 to 1 over the window; `step` (...) is how many
    pixels of the image a pixel of the view covers."""
    pixels = (torch.arange(size, device=step.device) * 2 + 1) / size - 1
    if num_points == 1:
        return pixels
    covered = step.abs().clamp(min=1)
    apart = torch.sqrt((covered**2 - 1) / (num_points**2 - 1)) / covered * (2 / size)
    offsets = torch.arange(num_points, device=step.device) - (num_points - 1) / 2
    return (pixels[:, None] + apart[..., None, None] * offsets).flatten(-2)


def blur(views: Tensor, fwhm: Tensor) -> Tensor:
    """Views (V, B, C, S, S) seen through a Gaussian of this FWHM in pixels (V, B), each its own.

    The standing waves of the view, which borders reflect, are damped as a Gaussian damps waves: heat that flows for a
    time. So no flux is lost, the width is right even below a pixel, and what makes it is a matrix (S, S) for each
    view, in a third of the time of grouped convolutions.
    """
    num_views, batch, num_bands, size, _ = views.shape
    waves, rates = waves_of(size, views.device)
    decay = torch.exp(-((fwhm.flatten()[:, None] / FWHM_PER_SIGMA) ** 2) * rates)
    kernels = (waves.T * decay[:, None, :]) @ waves
    rows = (num_views * batch, num_bands * size, size)
    along_x = torch.bmm(views.reshape(rows), kernels).view(views.shape)
    along_both = torch.bmm(along_x.transpose(-1, -2).reshape(rows), kernels)
    return along_both.view(views.shape).transpose(-1, -2)


@lru_cache
def waves_of(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Standing waves on `size` pixels, (frequencies, pixels), orthonormal (the cosine transform), and the rates at
    which they are damped by a variance in square pixels."""
    frequencies = torch.arange(size, dtype=torch.float64) * (math.pi / size)
    waves = torch.cos(frequencies[:, None] * (torch.arange(size) + 0.5)) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves.float().to(device), (frequencies**2 / 2).float().to(device)


ZERO_POINTS = 2**30
"""The first counter of what is drawn for each band; those of pixels begin at 0."""


def normals(draws: Draws, shape: torch.Size) -> Tensor:
    """White Gaussian noise of this shape (V, B, ...), a function of the keys of each view (Box and Muller 1958)."""
    count = math.prod(shape[2:])
    pairs = -(-count // 2)
    numbers = bits_to_uniforms(words(draws, 2 * pairs)).unflatten(-1, (2, pairs))
    radius, angle = numbers[..., 0, :].log().mul_(-2).sqrt_(), numbers[..., 1, :] * (2 * math.pi)
    both = torch.empty_like(numbers)
    torch.cos(angle, out=both[..., 0, :])
    torch.sin(angle, out=both[..., 1, :])
    return both.mul_(radius[..., None, :]).flatten(-2)[..., :count].reshape(shape)


def words(draws: Draws, count: int, *, first: int = 0) -> Tensor:
    """Random int32 words (V, B, count) with the counters from `first` on, a function of the keys of each view: the
    scrambled counter goes through a function that the keys choose, and is scrambled again."""
    keys = [(draws[name] * 2**24).int()[..., None] for name in KEYS]
    counters = torch.arange(first, first + count, dtype=torch.int32, device=keys[0].device)
    return scramble(scramble(counters) * (2 * keys[0] + 1) + keys[1])


def scramble(values: Tensor) -> Tensor:
    """Scramble int32 words, one to one: lowbias32 (Wellons 2018); what overflows is lost, as it should."""
    values = (values ^ (values >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    values ^= (values >> 15).bitwise_and_(0x1FFFF)
    values *= 0x846CA68B - 2**32
    values ^= (values >> 16).bitwise_and_(0xFFFF)
    return values


def bits_to_uniforms(values: Tensor) -> Tensor:
    """Numbers above 0 and up to 1 from the upper 24 bits of int32 words."""
    return (values >> 8).bitwise_and_(0xFFFFFF).float().add_(0.5).mul_(2.0**-24)


def estimate_sky(images: Tensor) -> Tensor:
    """Standard deviation of the sky in a pixel of each band (C,), in the unit of the images (B, C, H, W).

    From the outermost eighth on each side: the median absolute deviation from the median of each image, and the median
    of that over images, so that neither what stands at a border nor the level of an image counts. NaN are left out.

    Raises:
        ValueError: where a band has no finite pixel there.
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
        raise ValueError(f"the sky of bands {sky.isnan().nonzero().flatten().tolist()} has no finite pixel.")
    return sky
