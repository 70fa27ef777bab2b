"""Distances of generated from real images in a space of features, with what is needed to believe them. n and m images,
D features, R resamples. Everything is in float64.

A Frechet distance of finitely many images is not 0 even where both are of one distribution. What it is expected to be
then is known in closed form, and what it is between real images is measured: both stand beside it.

Intervals are of half samples: each distance is taken again of random halves of both sets, drawn without replacement,
whose spread is that of the whole sets (Shao and Wu 1989, Annals of Statistics 17, 1176: the jackknife that leaves out
half). The bootstrap draws images twice, which makes it blind to a bias where features are many and gives every image
itself as a neighbour. As a bias that goes with one over the number of images is twice as large in the halves, the same
resamples take it away (Chong and Forsyth 2020, arXiv:1911.07023, extrapolate it likewise). Where
two distributions are nearly equal, the intervals are up to twice as wide as they need be.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from deeplense.evaluation.metrics import Estimate, widen_if_perfect

Array = NDArray[np.floating]
Halves = tuple[NDArray[np.bool_], NDArray[np.bool_]]
ENOUGH, ENOUGH_KNOWN = 2, 4
NEIGHBOURS = 3
FEWEST = 2 * (NEIGHBOURS + 1)
ROWS_AT_A_TIME = 512


class Moments(NamedTuple):
    """Mean (D,) and a root R of the covariance, R^T R, of some features; its rows are no more than D."""

    mean: Array
    root: Array


@dataclass(frozen=True)
class Distance:
    """One distance of generated from held-out real images.

    Attributes:
        name: frechet, kernel, precision or recall.
        features: which features these are, with their number.
        value: the number as others publish it.
        expected: what it is in the mean for two sets of one distribution of that many images; None where this is not
            known.
        estimate: what it would be for any number of images, with its 95 % interval; of precision and recall, which
            have no such limit, the number itself.
        floor_value: the number as others publish it, of real images against the held-out ones.
        floor: the same for any number of images.
        num_generated: number of generated images, n.
        num_real: number of held-out images, m.
        num_floor: number of images on either side of the floor.
        caution: why the expected value or the estimate is not to be relied on, or nothing.
    """

    name: str
    features: str
    value: float
    expected: float | None
    estimate: Estimate
    floor_value: float
    floor: Estimate
    num_generated: int
    num_real: int
    num_floor: tuple[int, int]
    caution: str

    def __str__(self) -> str:
        chance = f" ({self.expected:.4g} expected of equal distributions)" if self.expected else ""
        first, second = self.num_floor
        return (
            f"{self.name} on {self.features}: {in_words(self.value, self.estimate)}{chance}; {self.num_generated} "
            f"generated against {self.num_real} held-out. Real against real: "
            f"{in_words(self.floor_value, self.floor)}; {first} against {second}.{self.caution and ' '}{self.caution}"
        )


def in_words(value: float, estimate: Estimate) -> str:
    """A value with its interval, and what it would be for any number of images where that is another."""
    limit = "" if estimate.value == value else f", for any number of images {estimate.value:.4g}"
    return f"{value:.4g}{limit} [{estimate.low:.4g}, {estimate.high:.4g}]"


def compare_features(
    generated: Array,
    real: Array,
    train: Array | None,
    *,
    features: str,
    num_resamples: int = 100,
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
        num_resamples: number of half samples.
        seed: of the half samples and of the choice of training images.

    Raises ValueError where features are too few, of another number, or no finite numbers.
    """
    check_features(generated, real)
    pair = real_pair(real, train, len(generated), seed=seed)
    known = real if train is None else np.concatenate([real, train])
    bias = frechet_bias(eigenvalues_of(known), len(generated), len(real))
    cautions = {"frechet": caution(min(len(generated), len(real)), len(known), real.shape[1])}
    measured = {
        name: (of_both(generated, real), of_both(*pair))
        for name, of_both in comparisons(num_resamples=num_resamples, seed=seed).items()
    }
    return [
        Distance(
            name=name,
            features=f"{features} ({real.shape[1]})",
            value=ours[0],
            expected={"frechet": bias, "kernel": 0.0}.get(name),
            estimate=ours[1],
            floor_value=floor[0],
            floor=floor[1],
            num_generated=len(generated),
            num_real=len(real),
            num_floor=(len(pair[0]), len(pair[1])),
            caution=cautions.get(name, ""),
        )
        for name, (ours, floor) in measured.items()
    ]


def comparisons(*, num_resamples: int, seed: int) -> Mapping[str, Callable[[Array, Array], tuple[float, Estimate]]]:
    """How each distance is measured of two sets: its value, and its estimate."""
    return {
        "frechet": partial(compare_frechet, num_resamples=num_resamples, seed=seed),
        "kernel": partial(compare_kernel, num_resamples=num_resamples, seed=seed),
        "precision": partial(compare_precision, num_resamples=num_resamples, seed=seed),
        "recall": lambda first, second: compare_precision(second, first, num_resamples=num_resamples, seed=seed),
    }


def check_features(first: Array, second: Array) -> None:
    """Raise ValueError unless both are finite features (n, D) of one number D, of enough images."""
    if first.ndim != 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"features of shapes {first.shape} and {second.shape} differ in number; both are (images, D).")
    for features in (first, second):
        if len(features) < FEWEST:
            raise ValueError(f"{len(features)} images are too few for a distance; give {FEWEST}, better thousands.")
        if bad := int((~np.isfinite(features)).any(axis=1).sum()):
            raise ValueError(f"features of {bad} of {len(features)} images are no finite numbers.")


def real_pair(real: Array, train: Array | None, count: int, *, seed: int) -> tuple[Array, Array]:
    """Two sets of real features: `count` of the training set, or all where it has fewer, against the held-out; without
    a training set the halves of the held-out, chosen at random."""
    generator = np.random.default_rng((seed, len(real)))
    if train is None:
        order = generator.permutation(len(real))
        train, real = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    check_features(train, real)
    return train[generator.permutation(len(train))[:count]], real


def caution(num_images: int, num_known: int, num_features: int) -> str:
    """Why numbers about a Frechet distance are not to be relied on: of the smaller set, and of the eigenvalues."""
    if num_images < ENOUGH * num_features:
        return (
            f"{num_images} images are fewer than {ENOUGH} times the {num_features} features: what is left of any "
            "number of images is too high; compare the values themselves."
        )
    if num_known < ENOUGH_KNOWN * num_features:
        return (
            f"{num_known} real images are fewer than {ENOUGH_KNOWN} times the {num_features} features: the expected "
            "value is too low; rely on real against real."
        )
    return ""


def halves(num_first: int, num_second: int, num_resamples: int, *, seed: int) -> Halves:
    """Which images are in each half sample, (R, n) and (R, m), drawn apart."""
    generator = np.random.default_rng((seed, num_first, num_second))
    first, second = (
        generator.permuted(np.tile(np.arange(count) < count // 2, (num_resamples, 1)), axis=1)
        for count in (num_first, num_second)
    )
    return first, second


def about(value: float, draws: Array) -> Estimate:
    """An estimate with the 95 % interval of the spread of its half samples (R,)."""
    half_width = 1.96 * float(draws.std(ddof=1))
    return Estimate(value, value - half_width, value + half_width)


def moments(features: Array) -> Moments:
    """Mean and root of the covariance (with n - 1) of features (n, D)."""
    mean = features.mean(axis=0, dtype=np.float64)
    rows = (features - mean) / np.sqrt(len(features) - 1)
    if len(rows) > rows.shape[1]:
        rows = np.asarray(np.linalg.qr(rows, mode="r"))
    return Moments(mean, rows)


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
    return frechet_of_moments(moments(first), moments(second))


def frechet_bias(eigenvalues: Array, num_first: int, num_second: int) -> float:
    """What a Frechet distance is in the mean for two sets of one Gaussian distribution with these eigenvalues of its
    covariance (D,), to first order in one over the number of images:

    k tr S + k / 2 (sum_ij l_i l_j / (l_i + l_j) + tr S / 2), k = 1 / n + 1 / m

    Eigenvalues of few images are spread out, and make it too low: by an eighth at 2 D images. Features with heavy tails
    have more of it.
    """
    l = eigenvalues[eigenvalues > 0].astype(np.float64)
    rate = 1 / num_first + 1 / num_second
    pairs = (np.outer(l, l) / np.add.outer(l, l)).sum()
    return float(rate * l.sum() + rate / 2 * (pairs + l.sum() / 2))


def eigenvalues_of(features: Array) -> Array:
    """Eigenvalues of the covariance of features (n, D), largest first."""
    return np.linalg.svd(moments(features).root, compute_uv=False) ** 2


def compare_frechet(first: Array, second: Array, *, num_resamples: int, seed: int) -> tuple[float, Estimate]:
    """Frechet distance, and what it would be without its bias, with an interval."""
    value = frechet_distance(first, second)
    chosen = halves(len(first), len(second), num_resamples, seed=seed)
    draws = np.array([frechet_distance(first[rows], second[others]) for rows, others in zip(*chosen, strict=True)])
    return value, about(2 * value - float(draws.mean()), draws)


def kernel_distance(first: Array, second: Array) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias: KID on Inception features
    (Binkowski et al. 2018, arXiv:1801.01401)."""
    everything = np.ones((1, len(first)), bool), np.ones((1, len(second)), bool)
    return float(kernel_distances(first, second, everything)[0])


def kernel_distances(first: Array, second: Array, chosen: Halves) -> Array:
    """The same of each choice of images (R, n) and (R, m), (R,)."""
    of_first, of_second = (members.astype(np.float64) for members in chosen)
    across = kernel_sums(first, second, of_first, of_second) / of_first.sum(axis=1) / of_second.sum(axis=1)
    return within(first, of_first) + within(second, of_second) - 2 * across


def within(features: Array, chosen: Array) -> Array:
    """Mean of the kernel over all pairs of two different images of each choice, (R,)."""
    count = chosen.sum(axis=1)
    itself = ((features.astype(np.float64) ** 2).sum(axis=1) / features.shape[1] + 1) ** 3
    return (kernel_sums(features, features, chosen, chosen) - chosen @ itself) / (count * (count - 1))


def kernel_sums(first: Array, second: Array, of_first: Array, of_second: Array) -> Array:
    """Sum of the kernel over all pairs of each choice, (R,); some rows of the kernel at a time."""
    total, columns = np.zeros(len(of_first)), second.astype(np.float64).T / second.shape[1]
    for start in range(0, len(first), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        kernel = (first[rows].astype(np.float64) @ columns + 1) ** 3
        total += ((of_first[:, rows] @ kernel) * of_second).sum(axis=1)
    return total


def compare_kernel(first: Array, second: Array, *, num_resamples: int, seed: int) -> tuple[float, Estimate]:
    """Kernel distance, which has no bias, and the same with an interval."""
    value = kernel_distance(first, second)
    draws = kernel_distances(first, second, halves(len(first), len(second), num_resamples, seed=seed))
    return value, about(value, draws)


def precision(first: Array, second: Array) -> float:
    """Share of the first set that lies in the space of the second: no further from one of its members than that
    one's third neighbour is (Kynkaanniemi et al. 2019, arXiv:1904.06991). Recall is the same with the sets changed."""
    return share_covered(euclidean_distances(first, second), euclidean_distances(second))


def share_covered(across: Array, inside: Array) -> float:
    """Share of rows of the distances (n, m) that are within the radius of a column; the radii are those of the third
    neighbours in the distances (m, m), each image being its own nearest."""
    radii = np.partition(inside, NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return float((across <= radii).any(axis=1).mean())


def compare_precision(first: Array, second: Array, *, num_resamples: int, seed: int) -> tuple[float, Estimate]:
    """Precision, and the same with an interval."""
    across = euclidean_distances(first.astype(np.float64), second.astype(np.float64))
    inside = euclidean_distances(second.astype(np.float64))
    value = share_covered(across, inside)
    chosen = halves(len(first), len(second), num_resamples, seed=seed)
    draws = [
        share_covered(across[np.ix_(rows, others)], inside[np.ix_(others, others)])
        for rows, others in zip(*chosen, strict=True)
    ]
    return value, as_a_share(about(value, np.array(draws)), len(first))


def as_a_share(estimate: Estimate, num_images: int) -> Estimate:
    """An interval within 0 and 1. A share that is exactly 0 or 1 is not certain: its interval is that of Clopper and
    Pearson (1934)."""
    if estimate.value == 0.0:
        return Estimate(0.0, 0.0, 1 - 0.025 ** (1 / num_images))
    within_bounds = Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high))
    return widen_if_perfect(within_bounds, num_images)
