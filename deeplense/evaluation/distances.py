"""Distances between generated and real images in feature space, with reference values and intervals. n and m images,
D features, R resamples. Everything is computed in float64.

The Frechet distance of finite samples is above 0 even if both have the same distribution. Its expected value in that
case is known in closed form, and its value between real images is measured; both are reported with it.

Intervals come from half samples: each distance is recomputed on random halves of both sets, sampled without
replacement, whose spread equals that of the whole sets (Shao and Wu 1989, Annals of Statistics 17, 1176: delete-half
jackknife). The bootstrap is not used because it repeats images, which hides the bias if there are many features and
makes an image its own neighbour. A bias proportional to one over the number of images is twice as large in the halves,
so the same resamples remove it (Chong and Forsyth 2020, arXiv:1911.07023, extrapolate similarly). If two distributions
are nearly equal, the intervals are up to twice as wide as necessary.
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
    """Mean (D,) of features and a root R of their covariance R^T R, with at most D rows."""

    mean: Array
    root: Array


@dataclass(frozen=True)
class Distance:
    """One distance between generated and held-out real images.

    Attributes:
        name: frechet, kernel, precision or recall.
        features: name and number of the features.
        value: the usual estimate, as commonly published.
        expected: its mean for two sets of this size with equal distributions; None if unknown.
        estimate: the value corrected for the finite number of images, with its 95 % interval; for precision and recall,
            which have no such limit, the value itself.
        floor_value: the usual estimate between real images and the held-out ones.
        floor: the same, corrected for the finite number of images.
        num_generated: number of generated images, n.
        num_real: number of held-out images, m.
        num_floor: number of images on either side of the floor.
        caution: why the expected value or the estimate is unreliable; empty if they are reliable.
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
        chance = f" ({self.expected:.4g} expected for equal distributions)" if self.expected else ""
        first, second = self.num_floor
        return (
            f"{self.name} on {self.features}: {in_words(self.value, self.estimate)}{chance}; {self.num_generated} "
            f"generated against {self.num_real} held-out. Real against real: "
            f"{in_words(self.floor_value, self.floor)}; {first} against {second}.{self.caution and ' '}{self.caution}"
        )


def in_words(value: float, estimate: Estimate) -> str:
    """Format a value with its interval and, if it differs, the value corrected for the number of images."""
    limit = "" if estimate.value == value else f", corrected for sample size {estimate.value:.4g}"
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
    """Compute all distances between generated features (n, D) and held-out real features (m, D).

    The floor is measured between the held-out images and as many training images as there are generated ones; without
    training images, between two halves of the held-out ones.

    Args:
        generated: features of generated images, each image once.
        real: features of images that the generator was not trained on.
        train: features of its training images.
        features: name of the features, for the texts.
        num_resamples: number of half samples.
        seed: random seed of the half samples and of the choice of training images.

    Raises ValueError if there are too few images, or if features differ in number or are not finite.
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
    """Return, for each distance, the function that computes its value and its estimate for two sets."""
    return {
        "frechet": partial(compare_frechet, num_resamples=num_resamples, seed=seed),
        "kernel": partial(compare_kernel, num_resamples=num_resamples, seed=seed),
        "precision": partial(compare_precision, num_resamples=num_resamples, seed=seed),
        "recall": lambda first, second: compare_precision(second, first, num_resamples=num_resamples, seed=seed),
    }


def check_features(first: Array, second: Array) -> None:
    """Raise ValueError unless both sets are finite features (n, D) with the same D, of enough images."""
    if first.ndim != 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"features have the shapes {first.shape} and {second.shape}; both must be (images, D) with the same D."
        )
    for features in (first, second):
        if len(features) < FEWEST:
            raise ValueError(f"{len(features)} images are too few; give at least {FEWEST}, better thousands.")
        if bad := int((~np.isfinite(features)).any(axis=1).sum()):
            raise ValueError(f"features of {bad} of {len(features)} images are not finite; check the network.")


def real_pair(real: Array, train: Array | None, count: int, *, seed: int) -> tuple[Array, Array]:
    """Return two sets of real features: `count` random training images (or all if there are fewer) and the held-out
    images; without a training set, two random halves of the held-out images."""
    generator = np.random.default_rng((seed, len(real)))
    if train is None:
        order = generator.permutation(len(real))
        train, real = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    check_features(train, real)
    return train[generator.permutation(len(train))[:count]], real


def caution(num_images: int, num_known: int, num_features: int) -> str:
    """Say why a Frechet distance is unreliable if the sets are too small; else return an empty text."""
    if num_images < ENOUGH * num_features:
        return (
            f"{num_images} images are fewer than {ENOUGH} times the {num_features} features: the value corrected for "
            "sample size is too high; compare the usual estimates instead."
        )
    if num_known < ENOUGH_KNOWN * num_features:
        return (
            f"{num_known} real images are fewer than {ENOUGH_KNOWN} times the {num_features} features: the expected "
            "value is too low; use real against real instead."
        )
    return ""


def halves(num_first: int, num_second: int, num_resamples: int, *, seed: int) -> Halves:
    """Return which images are in each half sample, (R, n) and (R, m), sampled independently."""
    generator = np.random.default_rng((seed, num_first, num_second))
    first, second = (
        generator.permuted(np.tile(np.arange(count) < count // 2, (num_resamples, 1)), axis=1)
        for count in (num_first, num_second)
    )
    return first, second


def about(value: float, draws: Array) -> Estimate:
    """Return an estimate with the 95 % interval from the spread of its half samples (R,)."""
    half_width = 1.96 * float(draws.std(ddof=1))
    return Estimate(value, value - half_width, value + half_width)


def moments(features: Array) -> Moments:
    """Return the mean and the root of the covariance (with n - 1) of features (n, D)."""
    mean = features.mean(axis=0, dtype=np.float64)
    rows = (features - mean) / np.sqrt(len(features) - 1)
    if len(rows) > rows.shape[1]:
        rows = np.asarray(np.linalg.qr(rows, mode="r"))
    return Moments(mean, rows)


def frechet_of_moments(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982): |mu_1 - mu_2|^2 + tr(S_1 + S_2 -
    2 (S_1 S_2)^(1/2)). The last trace is computed as the sum of the singular values of R_1 R_2^T, which needs no
    matrix root and also works with fewer images than features."""
    shift = first.mean - second.mean
    overlap = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (first.root**2).sum() + (second.root**2).sum() - 2 * overlap))


def frechet_distance(first: Array, second: Array) -> float:
    """Frechet distance of two sets of features (n, D) and (m, D); with Inception features this is FID (Heusel et al.
    2017, arXiv:1706.08500)."""
    return frechet_of_moments(moments(first), moments(second))


def frechet_bias(eigenvalues: Array, num_first: int, num_second: int) -> float:
    """Expected Frechet distance of two samples of one Gaussian distribution whose covariance has these eigenvalues
    (D,), to first order in one over the number of images:

    k tr S + k / 2 (sum_ij l_i l_j / (l_i + l_j) + tr S / 2), k = 1 / n + 1 / m

    Eigenvalues estimated from few images are too spread out, so the result is too low: by an eighth for 2 D images. For
    features with heavy tails, the true value is larger.
    """
    l = eigenvalues[eigenvalues > 0].astype(np.float64)
    rate = 1 / num_first + 1 / num_second
    pairs = (np.outer(l, l) / np.add.outer(l, l)).sum()
    return float(rate * l.sum() + rate / 2 * (pairs + l.sum() / 2))


def eigenvalues_of(features: Array) -> Array:
    """Return the eigenvalues of the covariance of features (n, D), largest first."""
    return np.linalg.svd(moments(features).root, compute_uv=False) ** 2


def compare_frechet(first: Array, second: Array, *, num_resamples: int, seed: int) -> tuple[float, Estimate]:
    """Compute the Frechet distance, and its bias-corrected value with an interval."""
    value = frechet_distance(first, second)
    chosen = halves(len(first), len(second), num_resamples, seed=seed)
    draws = np.array([frechet_distance(first[rows], second[others]) for rows, others in zip(*chosen, strict=True)])
    return value, about(2 * value - float(draws.mean()), draws)


def kernel_distance(first: Array, second: Array) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3; with Inception features this is KID
    (Binkowski et al. 2018, arXiv:1801.01401)."""
    everything = np.ones((1, len(first)), bool), np.ones((1, len(second)), bool)
    return float(kernel_distances(first, second, everything)[0])


def kernel_distances(first: Array, second: Array, chosen: Halves) -> Array:
    """Kernel distance for each choice of images (R, n) and (R, m), (R,)."""
    of_first, of_second = (members.astype(np.float64) for members in chosen)
    across = kernel_sums(first, second, of_first, of_second) / of_first.sum(axis=1) / of_second.sum(axis=1)
    return within(first, of_first) + within(second, of_second) - 2 * across


def within(features: Array, chosen: Array) -> Array:
    """Mean of the kernel over all pairs of different images of each choice, (R,)."""
    count = chosen.sum(axis=1)
    itself = ((features.astype(np.float64) ** 2).sum(axis=1) / features.shape[1] + 1) ** 3
    return (kernel_sums(features, features, chosen, chosen) - chosen @ itself) / (count * (count - 1))


def kernel_sums(first: Array, second: Array, of_first: Array, of_second: Array) -> Array:
    """Sum of the kernel over all pairs of each choice, (R,), computed in blocks of rows."""
    total, columns = np.zeros(len(of_first)), second.astype(np.float64).T / second.shape[1]
    for start in range(0, len(first), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        kernel = (first[rows].astype(np.float64) @ columns + 1) ** 3
        total += ((of_first[:, rows] @ kernel) * of_second).sum(axis=1)
    return total


def compare_kernel(first: Array, second: Array, *, num_resamples: int, seed: int) -> tuple[float, Estimate]:
    """Compute the kernel distance, which is unbiased, and the same value with an interval."""
    value = kernel_distance(first, second)
    draws = kernel_distances(first, second, halves(len(first), len(second), num_resamples, seed=seed))
    return value, about(value, draws)


def precision(first: Array, second: Array) -> float:
    """Fraction of the first set that lies on the manifold of the second: within the distance of a member of the second
    set to its third nearest neighbour (Kynkaanniemi et al. 2019, arXiv:1904.06991). Recall swaps the sets."""
    return share_covered(euclidean_distances(first, second), euclidean_distances(second))


def share_covered(across: Array, inside: Array) -> float:
    """Fraction of rows of the distances (n, m) that are within the radius of any column; the radii are the distances to
    the third neighbours in the distances (m, m), where each image is its own nearest."""
    radii = np.partition(inside, NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return float((across <= radii).any(axis=1).mean())


def compare_precision(first: Array, second: Array, *, num_resamples: int, seed: int) -> tuple[float, Estimate]:
    """Compute the precision, and the same value with an interval."""
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
    """Limit an interval to [0, 1]. A fraction of exactly 0 or 1 is not certain, so it gets the interval of Clopper and
    Pearson (1934)."""
    if estimate.value == 0.0:
        return Estimate(0.0, 0.0, 1 - 0.025 ** (1 / num_images))
    within_bounds = Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high))
    return widen_if_perfect(within_bounds, num_images)
