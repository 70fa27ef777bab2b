"""`deeplense benchmark views`: compare random views of a batch with torchvision's transforms of each image."""

from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from deeplense.ssl.views import FWHM_PER_SIGMA, PRESETS, Crops, ViewSettings, crops_of, make_views, num_uniforms
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, compare

STAMP, NUM_BANDS = 32, 3


def measure(settings: Settings) -> list[Row]:
    """Compare both on a batch of stamps of 32 pixels in 3 bands, on one core; one row per preset."""
    torch.set_num_threads(1)
    images = torch.randn(settings.batch_size, NUM_BANDS, STAMP, STAMP)
    return [row_for(name, images, rounds=settings.rounds) for name in PRESETS]


def row_for(name: str, images: Tensor, *, rounds: int) -> Row:
    """Compare one preset: all of our augmentations with crop, flips, rotation, blur and noise of torchvision, without
    colour augmentation."""
    settings = PRESETS[name]
    title = f"{settings.num_global} + {settings.num_local} views of {STAMP} x {STAMP}, {name}"
    ours, theirs = partial(view_batch, images, settings), partial(view_each, images, transforms_of(settings))
    return compare(title, ours, theirs, other_name="torchvision, each image", rounds=rounds)


def view_batch(images: Tensor, settings: ViewSettings) -> int:
    """Make views with this package, including the random numbers."""
    uniforms = torch.rand(len(images), num_uniforms(settings))
    make_views(images, uniforms, settings, sky=torch.ones(NUM_BANDS))
    return len(images)


def view_each(images: Tensor, transforms: list[list[v2.Transform]]) -> int:
    """Make views with torchvision, for each image and view separately, as in a loader's workers, and batch them."""
    for views in transforms:
        torch.stack([torch.stack([transform(image) for image in images]) for transform in views])
    return len(images)


def transforms_of(settings: ViewSettings) -> list[list[v2.Transform]]:
    """Return the equivalent torchvision transforms, one list per resolution with one transform per view."""
    return [[transform_of(crops, share, settings) for share in crops.blur_shares] for crops in crops_of(settings)]


def transform_of(crops: Crops, blur_share: float, settings: ViewSettings) -> v2.Transform:
    """Return the torchvision transform of one view."""
    ratio = (1 / settings.aspect, settings.aspect)
    steps: list[v2.Transform] = [v2.RandomResizedCrop(crops.size, scale=crops.scale, ratio=ratio)]
    if settings.flips:
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if settings.rotation:
        steps.append(v2.RandomRotation([-settings.rotation, settings.rotation], v2.InterpolationMode.BILINEAR))
    if settings.blur_fwhm:
        blur = v2.GaussianBlur(7, sigma=(0.01, settings.blur_fwhm / FWHM_PER_SIGMA))
        steps.append(v2.RandomApply([blur], p=blur_share))
    if settings.noise[1]:
        steps.append(v2.GaussianNoise(sigma=settings.noise[1], clip=False))
    return v2.Compose(steps)
