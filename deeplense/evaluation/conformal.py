"""Sets of classes that contain the true class of an image with a stated probability. N images, K classes.

Split conformal prediction, separately for each class (Vovk et al. 2005, Algorithmic Learning in a Random World, section
4.5; Sadinle et al. 2019, JASA 114, 223). The coverage holds for the images of each class, so it also holds where the
classes have other fractions than in the validation images, such as in a survey.

If several networks predict together and each was trained on the images that others are calibrated with, as those of
cross-validation are, one threshold of their mean has no such coverage: a network is surer of images that it was trained
on. Then a new image is compared with each calibration image by the networks that were not trained on that image. This
is cross-conformal prediction (Vovk 2015, Annals of Mathematics and Artificial Intelligence 74, 9), or CV+ (Barber et
al. 2021, Annals of Statistics 49, 486; for classes, Romano et al. 2020, NeurIPS 33, 3581).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def thresholds(probabilities: Array, labels: NDArray[np.integer], coverage: float) -> Array:
    """Return the smallest probability with which each class belongs to a set, (K,).

    If images of a class are exchangeable with its N_k validation images, its true class is in their set with a
    probability of at least `coverage`, and at most coverage + 1 / (N_k + 1). A class with too few validation images for
    this, N_k + 1 < 1 / (1 - coverage), is in every set: its threshold is 0.

    Args:
        probabilities: of validation images, (N, K).
        labels: number of the true class, (N,).
        coverage: above 0 and below 1.

    Raises:
        ValueError: the coverage is out of range.

    Example:
        >>> thresholds(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([0, 0, 0]), 0.5).tolist()
        [0.8, 0.0]
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage} must be above 0 and below 1.")
    found = np.zeros(probabilities.shape[1])
    for k in range(len(found)):
        own = np.sort(probabilities[labels == k, k])[::-1]
        place = math.ceil(round((len(own) + 1) * coverage, 9))
        if place <= len(own):
            found[k] = own[place - 1]
    return found


@dataclass(frozen=True)
class CrossCalibration:
    """What decides which classes are in a set, for G groups of calibration images that differ in the networks that were
    not trained on them.

    Args:
        networks: numbers of these networks, for each group.
        lowest: the lowest probabilities of each class among its own images, ascending, for each group and class.
        needed: number of images of each class, over all groups, that must not have a higher probability of the class
            than an image with this class in its set, (K,).
    """

    networks: Sequence[Sequence[int]]
    lowest: Sequence[Sequence[Array]]
    needed: Sequence[int]


def cross_calibration(
    groups: Sequence[tuple[Sequence[int], Array, NDArray[np.integer]]], coverage: float
) -> CrossCalibration:
    """Return what decides which classes are in the sets of several networks.

    The true class of a new image of a class is in its set with a probability of at least 2 `coverage` - 1, up to a
    term that vanishes for many images, if the images of the class are exchangeable and their division among the
    networks does not depend on their pixels; usually it is close to `coverage`. For one group it is at least
    `coverage`, and the sets are those of `thresholds`.

    Args:
        groups: for each group, the numbers of the networks that were not trained on its images, the mean of their
            probabilities (n, K), and the true classes (n,).
        coverage: above 0 and below 1.

    Raises:
        ValueError: the coverage is out of range.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage} must be above 0 and below 1.")
    counts = sum(np.bincount(labels, minlength=given.shape[1]) for _, given, labels in groups)
    needed = [math.floor(round((int(count) + 1) * (1 - coverage), 9)) for count in np.atleast_1d(counts)]
    lowest = [[np.sort(given[labels == k, k])[:need] for k, need in enumerate(needed)] for _, given, labels in groups]
    return CrossCalibration([list(networks) for networks, _, _ in groups], lowest, needed)


def cross_sets(probabilities: Sequence[Array], calibration: CrossCalibration) -> NDArray[np.bool_]:
    """Return which classes are in the set of each image, (N, K).

    Args:
        probabilities: of each network, (N, K).
        calibration: of `cross_calibration`.

    Example:
        >>> rows = np.array([[0.9, 0.1], [0.7, 0.3]])
        >>> groups = [([0], rows, np.array([0, 0])), ([1], rows - [[0.1, -0.1]], np.array([0, 0]))]
        >>> cross_sets([np.array([[0.8, 0.2]]), np.array([[0.5, 0.5]])], cross_calibration(groups, 0.75)).tolist()
        [[True, True]]
    """
    below = np.zeros(probabilities[0].shape, dtype=int)
    for networks, lowest in zip(calibration.networks, calibration.lowest, strict=True):
        mean = np.mean([probabilities[m] for m in networks], axis=0)
        below += np.stack([np.searchsorted(lowest[k], mean[:, k], side="right") for k in range(mean.shape[1])], axis=1)
    return below >= np.asarray(calibration.needed)


def sets(probabilities: Array, least: Array) -> NDArray[np.bool_]:
    """Return which classes are in the set of each image, (N, K).

    Args:
        probabilities: (N, K).
        least: thresholds (K,).

    Example:
        >>> sets(np.array([[0.9, 0.1]]), np.array([0.8, 0.2])).tolist()
        [[True, False]]
    """
    return probabilities >= least
