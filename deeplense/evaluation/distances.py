"""Distances of generated from real images in a space of features, with what is needed to believe them. n and m images,
D features, R resamples. Everything is in float64.

A Frechet distance of finitely many images is not 0 even where both are of one distribution. What it is expected to be
then is known in closed form, and what it is between real images is measured: both stand beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from deeplense.evaluation.metrics import Estimate, bootstrap_weights, percentiles, widen_if_perfect

Array = NDArray[np.floating]
FEW = 2
NEIGHBOURS = 3
NUM_BLOCKS = 20
ROWS_AT_A_TIME = 512


class Moments(NamedTuple):
    """Mean (D,) and a triangular root R of the covariance, R^T R, of some features."""

    mean: Array
    root: Array


@dataclass(frozen=True)
class Distance:
    """One distance of generated from held-out real images.

    Attributes:
        name: frechet, kernel, precision or recall.
        features: which features these are, with their number.
        value: the number as others publish it.
        expected: what part of it is there for two sets of one distribution of that many images, in the mean; None
            where this is not known.
        estimate: the value less what is expected, with its 95 % interval.
        floor: the same less what is expected, of real images against the same held-out ones.
        floor_value: the same, as others publish it.
        num_generated: number of generated images, n.
        num_real: number of held-out images, m.
        num_floor: number of images and of images that they are compared with, for the floor.
        caution: why the expected part is not to be relied on, or nothing.
    """

    name: str
    features: str
    value: float
    expected: float | None
    estimate: Estimate
    floor: Estimate
    floor_value: float
    num_generated: int
    num_real: int
    num_floor: tuple[int, int]
    caution: str

    def __str__(self) -> str:
        chance = "" if not self.expected else f" ({self.expected:.4g} expected of equal distributions)"
        less = "less that " if self.expected else ""
        first, second = self.num_floor
        return (
            f"{self.name} on {self.features}: {self.value:.4f}{chance}, {less}{self.estimate}; "
            f"{self.num_generated} generated against {self.num_real} held-out; real against real "
            f"{self.floor_value:.4f}, {less}{self.floor} ({first} against {second})"
            f"{self.caution and '; '}{self.caution}"
        )


class Comparison(NamedTuple):
    """A value, its part that is expected of equal distributions, and the estimate of what is left."""

    value: float
    expected: float | None
    estimate: Estimate


def compare_features(
    generated: Array,
    real: Array,
    train: Array | None,
    *,
    features: str,
    num_resamples: int = 200,
    seed: int = 0,
) -> list[Distance]:
    """All distances of generated (n, D) from held-out real features (m, D).

    The floor is measured on as many training images as there are generated ones, against the same held-out images;
    without training images on one half of the held-out ones against the other.

    Args:
        generated: features of generated images, each image once.
        real: features of images that the generator was not trained on.
        train: features of those that it was trained on.
        features: which features these are, for the words.
        num_resamples: of the bootstrap.
        seed: of the bootstrap and of the choice of training images.

    Raises ValueError where features are too few, of another number, or no finite numbers.
    """
    check_features(generated, real)
    pair = real_pair(real, train, len(generated), seed=seed)
    ours, floor = (
        {
            "frechet": compare_frechet(*sets, num_resamples=num_resamples, seed=seed),
            "kernel": compare_kernel(*sets, num_resamples=num_resamples, seed=seed),
            "precision": compare_precision(*sets, seed=seed),
            "recall": compare_precision(*sets[::-1], seed=seed),
        }
        for sets in ((generated, real), pair)
    )
    counts = (len(generated), len(real), (len(pair[0]), len(pair[1])))
    cautions = {"frechet": caution(real, min(len(generated), len(real)))}
    text = f"{features} ({real.shape[1]})"
    return [
        Distance(name, text, *ours[name], floor[name].estimate, floor[name].value, *counts, cautions.get(name, ""))
        for name in ours
    ]


def check_features(first: Array, second: Array) -> None:
    """Raise ValueError unless both are finite features (n, D) of one number D, of more images than neighbours are asked
    for."""
    if first.ndim != 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"features of shapes {first.shape} and {second.shape} differ in number; both are (images, D).")
    for features in (first, second):
        if len(features) <= NEIGHBOURS:
            raise ValueError(f"{len(features)} images are too few for a distance; give hundreds or more.")
        if bad := int((~np.isfinite(features)).any(axis=1).sum()):
            raise ValueError(f"features of {bad} of {len(features)} images are no finite numbers.")


def real_pair(real: Array, train: Array | None, count: int, *, seed: int) -> tuple[Array, Array]:
    """Two sets of real features: `count` of the training set, or all where it has fewer, against the held-out; without
    a training set the halves of the held-out, chosen at random."""
    generator = np.random.default_rng((seed, len(real)))
    if train is None:
        order = generator.permutation(len(real))
        return real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    check_features(train, real)
    return train[generator.permutation(len(train))[:count]], real


def caution(real: Array, num_images: int) -> str:
    """Why the closed form is not good for that many images, or nothing."""
    if num_images < FEW * real.shape[1]:
        return f"{num_images} images are fewer than twice the {real.shape[1]} features: rely on real against real"
    return ""


def moments(features: Array, counts: Array) -> Moments:
    """Mean and root of the covariance (with n - 1) of features (n, D), where each image counts so many times (n,)."""
    there = counts > 0
    chosen, times = features[there].astype(np.float64), counts[there]
    mean = times @ chosen / times.sum()
    rows = np.sqrt(times / (times.sum() - 1))[:, None] * (chosen - mean)
    return Moments(mean, np.asarray(np.linalg.qr(rows, mode="r")))


def frechet_of_moments(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982): |mu_1 - mu_2|^2 + tr(S_1 + S_2 -
    2 (S_1 S_2)^(1/2)). The last trace is the sum of the singular values of R_1 R_2^T, which needs no root of a matrix
    and bears fewer images than features."""
    shift = first.mean - second.mean
    overlap = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (first.root**2).sum() + (second.root**2).sum() - 2 * overlap))


def frechet_distance(first: Array, second: Array) -> float:
    """Frechet distance of two sets of features (n, D) and (m, D), as FID is of Inception features (Heusel et al. 2017,
    arXiv:1706.08500)."""
    return frechet_of_moments(*(moments(features, np.ones(len(features))) for features in (first, second)))


def frechet_bias(eigenvalues: Array, num_first: int, num_second: int) -> float:
    """What a Frechet distance is in the mean for two sets of one Gaussian distribution with these eigenvalues of its
    covariance (D,), to first order in one over the number of images:

    k tr S + k / 2 (sum_ij l_i l_j / (l_i + l_j) + tr S / 2), k = 1 / n + 1 / m

    It is good to a few per cent while it is below a quarter of tr S and there are more than 2 D images. Features with
    heavy tails have more.
    """
    l = eigenvalues[eigenvalues > 0].astype(np.float64)
    rate = 1 / num_first + 1 / num_second
    pairs = (np.outer(l, l) / np.add.outer(l, l)).sum()
    return float(rate * l.sum() + rate / 2 * (pairs + l.sum() / 2))


def eigenvalues_of(features: Array) -> Array:
    """Eigenvalues of the covariance of features (n, D), largest first."""
    return np.linalg.svd(moments(features, np.ones(len(features))).root, compute_uv=False) ** 2


def compare_frechet(first: Array, second: Array, *, num_resamples: int, seed: int) -> Comparison:
    """Frechet distance, what is expected of equal distributions, and the difference with the interval of a bootstrap
    over the images of both sets. A resample has the same bias once more, so only the spread of the resamples counts."""
    value = frechet_distance(first, second)
    expected = frechet_bias(eigenvalues_of(second), len(first), len(second))
    weights = resampled(len(first), len(second), num_resamples, seed=seed)
    draws = np.array([frechet_of_moments(moments(first, w), moments(second, v)) for w, v in zip(*weights, strict=True)])
    low, high = percentiles(draws - draws.mean() + value - expected)
    return Comparison(value, expected, Estimate(value - expected, low, high))


def resampled(num_first: int, num_second: int, num_resamples: int, *, seed: int) -> tuple[Array, Array]:
    """How often each image of both sets counts in each resample, (R, n) and (R, m), drawn apart."""
    first, second = (
        bootstrap_weights(count, num_resamples, seed=seed, block=side)
        for side, count in enumerate((num_first, num_second))
    )
    return first, second


def kernel_distance(first: Array, second: Array) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias: KID on Inception features
    (Binkowski et al. 2018, arXiv:1801.01401)."""
    ones = np.ones((1, len(first))), np.ones((1, len(second)))
    return float(kernel_distances(first, second, *ones)[0])


def kernel_distances(first: Array, second: Array, of_first: Array, of_second: Array) -> Array:
    """The same for each row of counts (R, n) and (R, m), (R,). Pairs of an image with itself are left out, also where
    it was drawn twice."""
    across = weighted_kernel(first, second, of_first, of_second) / of_first.sum(axis=1) / of_second.sum(axis=1)
    return within(first, of_first) + within(second, of_second) - 2 * across


def within(features: Array, counts: Array) -> Array:
    """Mean of the kernel over all pairs of different images, (R,)."""
    itself = ((features.astype(np.float64) ** 2).sum(axis=1) / features.shape[1] + 1) ** 3
    squares = counts**2
    pairs = weighted_kernel(features, features, counts, counts) - squares @ itself
    return pairs / (counts.sum(axis=1) ** 2 - squares.sum(axis=1))


def weighted_kernel(first: Array, second: Array, of_first: Array, of_second: Array) -> Array:
    """Sum of the kernel over all pairs, each as often as both images count, (R,); some rows of the kernel at a time."""
    total, columns = np.zeros(len(of_first)), second.astype(np.float64).T / second.shape[1]
    for start in range(0, len(first), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        kernel = (first[rows].astype(np.float64) @ columns + 1) ** 3
        total += ((of_first[:, rows] @ kernel) * of_second).sum(axis=1)
    return total


def compare_kernel(first: Array, second: Array, *, num_resamples: int, seed: int) -> Comparison:
    """Kernel distance with the interval of a bootstrap over the images of both sets; 0 is expected of equal
    distributions."""
    value = kernel_distance(first, second)
    draws = kernel_distances(first, second, *resampled(len(first), len(second), num_resamples, seed=seed))
    return Comparison(value, 0.0, Estimate(value, *percentiles(draws)))


def precision(first: Array, second: Array) -> float:
    """Share of the first set that lies in the space of the second: no further from one of its members than that
    one's third neighbour is (Kynkaanniemi et al. 2019, arXiv:1904.06991). Recall is the same with the sets changed."""
    return share_covered(euclidean_distances(first, second), euclidean_distances(second))


def share_covered(across: Array, inside: Array) -> float:
    """Share of rows of the distances (n, m) that are within the radius of a column; the radii are those of the third
    neighbours in the distances (m, m), each image being its own nearest."""
    radii = np.partition(inside, NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return float((across <= radii).any(axis=1).mean())


def compare_precision(first: Array, second: Array, *, seed: int) -> Comparison:
    """Precision with the 95 % interval of a jackknife that leaves out a twentieth of both sets at a time (Efron and
    Tibshirani 1993, chapter 11). A bootstrap would draw images twice, who are then their own neighbours."""
    across = euclidean_distances(first.astype(np.float64), second.astype(np.float64))
    inside = euclidean_distances(second.astype(np.float64))
    value = share_covered(across, inside)
    without = np.array(
        [share_covered(across[np.ix_(rows, kept)], inside[np.ix_(kept, kept)]) for rows, kept in left_out(across, seed)]
    )
    half = 1.96 * float(np.sqrt((NUM_BLOCKS - 1) * without.var()))
    estimate = Estimate(value, max(0.0, value - half), min(1.0, value + half))
    return Comparison(value, None, widen_at_ends(estimate, len(first)))


def left_out(across: Array, seed: int) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
    """Rows and columns that stay where one of twenty random blocks of both is left out."""
    generator = np.random.default_rng((seed, *across.shape))
    rows, columns = (generator.permutation(count) % NUM_BLOCKS for count in across.shape)
    for block in range(NUM_BLOCKS):
        yield np.flatnonzero(rows != block), np.flatnonzero(columns != block)


def widen_at_ends(estimate: Estimate, num_images: int) -> Estimate:
    """A share that is exactly 0 or 1 is not certain: its interval is that of Clopper and Pearson (1934)."""
    if estimate.value == 0.0:
        return Estimate(0.0, 0.0, 1 - 0.025 ** (1 / num_images))
    return widen_if_perfect(estimate, num_images)
