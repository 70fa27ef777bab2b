"""Groups: which samples belong together, and must never be on both sides of a split."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

ARCSEC = np.pi / 180 / 3600


def groups_of_values(values: Sequence[object]) -> np.ndarray:
    """The number of the group of each sample (N,), the same for equal values, counted as they come."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def groups_on_sky(ra: np.ndarray, dec: np.ndarray, radius: float) -> np.ndarray:
    """The number of the group of each position (N,): friends of friends within `radius`.

    Args:
        ra, dec: positions (N,), degrees.
        radius: of the friendship, arcsec, along a great circle.
    """
    longitude, latitude = np.radians(ra), np.radians(dec)
    around = np.cos(latitude)
    vectors = np.stack([around * np.cos(longitude), around * np.sin(longitude), np.sin(latitude)], axis=1)
    # A chord: exact on all of the sphere, also at the poles and across RA 0. The margin is for rounding.
    chord = 2 * np.sin(min(radius * ARCSEC, np.pi) / 2) * (1 + 1e-9)
    return components(KDTree(vectors).query_pairs(chord, output_type="ndarray"), len(vectors))


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """The number of the connected part that each of `count` nodes is in (count,), given pairs (P, 2) of them."""
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def united(groupings: Sequence[np.ndarray]) -> np.ndarray:
    """The groups (N,) in which samples are together that are so in any of some groupings (N,) each."""
    count = len(groupings[0])
    sizes = [int(groups.max(initial=-1)) + 1 for groups in groupings]
    starts = count + np.cumsum([0, *sizes[:-1]])
    pairs = [
        np.stack([np.arange(count), groups + start], axis=1) for groups, start in zip(groupings, starts, strict=True)
    ]
    parts = components(np.concatenate(pairs), count + sum(sizes))[:count]
    return groups_of_values(parts.tolist())
