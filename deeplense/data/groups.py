"""Groups of samples that belong together, and must never be on both sides of a split."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

ARCSEC = np.pi / 180 / 3600


def groups_of_values(values: Sequence[object]) -> np.ndarray:
    """Return the number of the group of each sample, (N,): equal values are one group, numbered in order of appearance.

    Example:
        >>> groups_of_values(["a", "b", "a"]).tolist()
        [0, 1, 0]
    """
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def groups_on_sky(ra: np.ndarray, dec: np.ndarray, radius: float) -> np.ndarray:
    """Return the number of the group of each position, (N,): friends of friends within a radius.

    Args:
        ra: right ascension in degrees, (N,).
        dec: declination in degrees, (N,), -90 to 90.
        radius: linking length in arcsec, along a great circle.

    Example:
        >>> groups_on_sky(np.array([10.0, 10.0, 50.0]), np.array([0.0, 0.001, 0.0]), 5.0).tolist()
        [0, 0, 1]
    """
    longitude, latitude = np.radians(ra), np.radians(dec)
    around = np.cos(latitude)
    vectors = np.stack([around * np.cos(longitude), around * np.sin(longitude), np.sin(latitude)], axis=1)
    # A chord: exact on all of the sphere, also at the poles and across RA 0. The margin is for rounding.
    chord = 2 * np.sin(min(radius * ARCSEC, np.pi) / 2) * (1 + 1e-9)
    return components(KDTree(vectors).query_pairs(chord, output_type="ndarray"), len(vectors))


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return the number of the connected component of each node, (count,).

    Args:
        pairs: connected nodes, (P, 2).
        count: number of nodes.

    Example:
        >>> components(np.array([[0, 2]]), 3).tolist()
        [0, 1, 0]
    """
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def united(groupings: Sequence[np.ndarray]) -> np.ndarray:
    """Return the groups (N,) in which samples are together if they are so in any of some groupings, (N,) each.

    Example:
        >>> united([np.array([0, 0, 1]), np.array([0, 1, 1])]).tolist()
        [0, 0, 0]
    """
    count = len(groupings[0])
    sizes = [int(groups.max(initial=-1)) + 1 for groups in groupings]
    starts = count + np.cumsum([0, *sizes[:-1]])
    pairs = [
        np.stack([np.arange(count), groups + start], axis=1) for groups, start in zip(groupings, starts, strict=True)
    ]
    parts = components(np.concatenate(pairs), count + sum(sizes))[:count]
    return groups_of_values(parts.tolist())
