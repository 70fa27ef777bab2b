"""Whether a generator gives back its training images. n images asked about, N training images, V = 8 orientations, D
numbers of each image.

For each generated image the distance of the nearest training image is taken, over its eight flips and quarter turns,
in units of the mean distance of the fifty nearest: a copy has one training image far nearer than all others (as in
Carlini et al. 2023, arXiv:2301.13188), whereas an image that is faint, smooth or common has all of them
near. What is normal is seen on held-out images, which cannot have been copied.
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
    """Distance of each image (n,) to the nearest training image over the mean of the fifty nearest, and its number."""

    relative: NDArray[np.floating]
    indices: NDArray[np.integer]


@dataclass(frozen=True)
class Memorisation:
    """How near generated images are to training images, as ratios to held-out ones: of the medians, and of the lowest
    hundredth of the relative distances. 1 is as it should be, 0 is a copy. Of each generated image (n,): `relative`,
    how far the nearest training image is, and `nearest`, which one that is."""

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
        """Whether neither ratio shows copies: the median is above the gate, and the lowest hundredth is not certain to
        be below it."""
        return self.median.value > self.gate and self.lowest.high > self.gate

    def __str__(self) -> str:
        facts = (
            f"{self.space}: {self.num_generated} generated images are {self.median} times as far from the nearest of "
            f"{self.num_train} training images as {self.num_held_out} held-out ones are (medians), and "
            f"{self.lowest} times in the lowest hundredth."
        )
        if self.passed:
            return f"{facts} No sign of copies (gate {self.gate:g})."
        which = "Most images are" if self.median.value <= self.gate else "Some images are"
        return f"{facts} Refused (gate {self.gate:g}): {which} nearer to training images than new lenses would be."


def orientations(images: Array) -> list[Array]:
    """The eight flips and quarter turns of images (n, C, S, S), the images themselves first."""
    turned = [np.rot90(images, quarter, axes=(2, 3)) for quarter in range(4)]
    return [np.ascontiguousarray(image) for image in (*turned, *(image[..., ::-1] for image in turned))]


def pooled_pixels(images: Array) -> Array:
    """Means over 2 x 2 pixels of images (n, C, S, S), (n, D), less their mean and of length 1: a copy is near whatever
    its brightness and background. The distance of two is sqrt(2 - 2 times their correlation)."""
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
    """Compare generated with held-out images, (n, C, S, S) each, by how near they come to training images.

    Args:
        generated: what the generator made.
        held_out: real images that it was not trained on.
        train: all images that it was trained on.
        describe: maps images to numbers (n, D) whose distance is taken: pixels, or the features of a network.
        space: what these numbers are, for the words.
        gate: the ratio below which the generator is refused.
        seed: of the bootstrap over generated and held-out images.

    Raises ValueError where held-out images are among the training images, or these are fewer than two.
    """
    if len(train) < 2:
        raise ValueError(f"{len(train)} training images are too few to say what near is; give all of them.")
    known = describe(train)
    ours, expected = (nearest_of(images, known, describe) for images in (generated, held_out))
    if same := int((expected.relative < SAME).sum()):
        raise ValueError(
            f"{same} of {len(held_out)} held-out images are training images, perhaps turned or flipped; they say "
            "nothing about copies. Hold out other images."
        )
    median, lowest = (ratio_of_quantiles(ours.relative, expected.relative, level, seed=seed) for level in (0.5, LOWEST))
    return Memorisation(space, median, lowest, gate, len(generated), len(held_out), len(train), *ours)


def nearest_of(images: Array, known: Array, describe: Callable[[Array], Array]) -> Nearest:
    """What is nearest to each of the images (n, C, S, S) among the known (N, D), in any of eight orientations."""
    center = known.mean(axis=0, dtype=np.float64)
    known = known - center
    parts = [
        nearest([describe(turned) - center for turned in orientations(images[start : start + ROWS_AT_A_TIME])], known)
        for start in range(0, len(images), ROWS_AT_A_TIME)
    ]
    return Nearest(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def nearest(turned: list[Array], known: Array) -> Nearest:
    """What is nearest to each image, given its orientations (n, D) each, among the known (N, D)."""
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
    """A quantile of one set of numbers over that of another, with the 95 % interval of a bootstrap over both."""
    generator = np.random.default_rng((seed, len(first), len(second)))

    def resampled(values: Array) -> Array:
        drawn = generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))
        return np.quantile(values[drawn], level, axis=1)

    value = float(np.quantile(first, level) / np.quantile(second, level))
    return Estimate(value, *percentiles(resampled(first) / resampled(second)))
