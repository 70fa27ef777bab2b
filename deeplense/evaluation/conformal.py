"""Sets of classes that contain the true class of an image with a stated probability. N images, K classes.

Split conformal prediction, separately for each class (Vovk et al. 2005, Algorithmic Learning in a Random World, section
4.5; Sadinle et al. 2019, JASA 114, 223). The coverage holds for the images of each class, so it also holds where the
classes have other fractions than in the validation images, such as in a survey.
"""

import math

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
