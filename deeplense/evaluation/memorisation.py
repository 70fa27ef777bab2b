"""Detect whether a generator reproduces its training images. n query images, N training images, V = 8 orientations, D
numbers per image.

For each generated image, the distance to the nearest training image is computed over its eight flips and quarter turns,
relative to the mean distance to the fifty nearest. A copy is much closer to one training image than to all others (as
in Carlini et al. 2023, arXiv:2301.13188), whereas a faint, smooth or common image is close to many. Held-out images,
which cannot have been copied, define the normal value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeplense.evaluation.metrics import Estimate, percentiles

Array = NDArray[np.floating]
GATE = 0.9
NEIGHBOURHOOD = 50
LOWEST = 0.01
NUM_RESAMPLES = 1000
ROWS_AT_A_TIME = 512
SAME = 1e-6


class Nearest(NamedTuple):
    """Distance of each image (n,) to the nearest training image, relative to the mean of the fifty nearest, and the
    index of that training image."""

    relative: NDArray[np.floating]
    indices: NDArray[np.integer]


@dataclass(frozen=True)
class Memorisation:
    """How close generated images are to training images, as ratios to held-out images: of the medians and of the 1st
    percentiles of the relative distances. 1 is ideal, 0 is a copy. Per generated image (n,): `relative` is the relative
    distance to the nearest training image, `nearest` is the index of that image."""

    space: str
    median: Estimate
    lowest: Estimate
    gate: float
    num_generated: int
    num_held_out: int
    num_train: int
    relative: NDArray[np.floating]
    nearest: NDArray[np.integer]

    @property
    def passed(self) -> bool:
        """Whether neither ratio indicates copies: the ratio of medians is above the gate, and the interval of the 1st
        percentile is not entirely below it."""
        return self.median.value > self.gate and self.lowest.high > self.gate

    def __str__(self) -> str:
        facts = (
            f"{self.space}: distance to the nearest of {self.num_train} training images, as a ratio of "
            f"{self.num_generated} generated to {self.num_held_out} held-out images: median {self.median}, "
            f"1st percentile {self.lowest}."
        )
        if self.passed:
            return f"{facts} No sign of copies (gate {self.gate:g})."
        which = "most images are" if self.median.value <= self.gate else "some images are"
        return f"{facts} Copies (gate {self.gate:g}): {which} closer to training images than new images would be."


def orientations(images: Array) -> list[Array]:
    """Return the eight flips and quarter turns of images (n, C, S, S), starting with the images themselves."""
    turned = [np.rot90(images, quarter, axes=(2, 3)) for quarter in range(4)]
    return [np.ascontiguousarray(image) for image in (*turned, *(image[..., ::-1] for image in turned))]


def pooled_pixels(images: Array) -> Array:
    """Average images (n, C, S, S) over 2 x 2 pixels, subtract the mean and scale to length 1, (n, D), so that a copy is
    close regardless of brightness and background. The distance of two images is sqrt(2 - 2 * their correlation)."""
    size = images.shape[-1] // 2 * 2
    blocks = images[..., :size, :size].astype(np.float64).reshape(*images.shape[:2], size // 2, 2, size // 2, 2)
    flat = blocks.mean(axis=(3, 5)).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 0, length, 1.0)


def memorisation(
    generated: Array,
    held_out: Array,
    train: Array,
    *,
    describe: Callable[[Array], Array] = pooled_pixels,
    space: str = "pixels pooled 2 x 2",
    gate: float = GATE,
    seed: int = 0,
) -> Memorisation:
    """Compare generated with held-out images, (n, C, S, S) each, by their distance to the training images.

    Args:
        generated: generated images.
        held_out: real images that the generator was not trained on.
        train: all images that it was trained on.
        describe: maps images to vectors (n, D) for the distances: pixels, or the features of a network.
        space: name of these vectors, for the texts.
        gate: ratio below which the generated images are reported as copies.
        seed: random seed of the bootstrap over generated and held-out images.

    Raises ValueError if held-out images are among the training images, or there are fewer than two of these.
    """
    if len(train) < 2:
        raise ValueError(f"{len(train)} training images are too few to search for copies; give all training images.")
    known = describe(train)
    ours, expected = (nearest_of(images, known, describe) for images in (generated, held_out))
    if same := int((expected.relative < SAME).sum()):
        raise ValueError(
            f"{same} of {len(held_out)} held-out images are training images, perhaps rotated or flipped, so they are "
            "no reference for copies. Hold out other images."
        )
    median, lowest = (ratio_of_quantiles(ours.relative, expected.relative, level, seed=seed) for level in (0.5, LOWEST))
    return Memorisation(space, median, lowest, gate, len(generated), len(held_out), len(train), *ours)


def nearest_of(images: Array, known: Array, describe: Callable[[Array], Array]) -> Nearest:
    """Find the nearest of the known vectors (N, D) to each image (n, C, S, S), over its eight orientations."""
    center = known.mean(axis=0, dtype=np.float64)
    known = known - center
    parts = [
        nearest([describe(turned) - center for turned in orientations(images[start : start + ROWS_AT_A_TIME])], known)
        for start in range(0, len(images), ROWS_AT_A_TIME)
    ]
    return Nearest(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def nearest(turned: list[Array], known: Array) -> Nearest:
    """Find the nearest of the known vectors (N, D) to each image, given its orientations (n, D) each."""
    squares = (known**2).sum(axis=1)
    best = np.full((len(turned[0]), len(known)), np.inf)
    for rows in turned:
        best = np.minimum(best, (rows**2).sum(axis=1)[:, None] + squares - 2 * rows @ known.T)
    distances = np.sqrt(best.clip(min=0))
    count = min(NEIGHBOURHOOD, len(known))
    around = np.partition(distances, count - 1, axis=1)[:, :count].mean(axis=1)
    first = distances.min(axis=1)
    return Nearest(np.where(around > 0, first / np.where(around > 0, around, 1), 0.0), distances.argmin(axis=1))


def ratio_of_quantiles(first: Array, second: Array, level: float, *, seed: int) -> Estimate:
    """Return the ratio of a quantile of two samples, with the 95 % interval of a bootstrap over both."""
    generator = np.random.default_rng((seed, len(first), len(second)))

    def resampled(values: Array) -> Array:
        drawn = generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))
        return np.quantile(values[drawn], level, axis=1)

    value = float(np.quantile(first, level) / np.quantile(second, level))
    return Estimate(value, *percentiles(resampled(first) / resampled(second)))
