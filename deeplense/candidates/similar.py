"""Images that are similar by their embeddings. N images, D numbers each."""

import numpy as np

ROWS = 1024


def most_similar(embeddings: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """Return for each image the most similar other ones, the most similar first, with the cosine of the angle between
    the embeddings. An embedding that is zero or not finite is similar to none.

    Args:
        embeddings: (N, D).
        count: number of similar images for each, fewer if there are not as many.

    Example:
        >>> most_similar(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), 1)
        [[(2, 1.0)], [(0, 0.0)], [(0, 1.0)]]
    """
    values = np.asarray(embeddings, dtype=np.float64)
    norms = np.linalg.norm(values, axis=1)
    known = np.isfinite(norms) & (norms > 0)
    units = np.where(known[:, None], values, 0.0) / np.where(known, norms, 1.0)[:, None]
    found: list[list[tuple[int, float]]] = []
    for start in range(0, len(units), ROWS):
        cosines = units[start : start + ROWS] @ units.T
        cosines[:, ~known] = -np.inf
        numbers = np.arange(start, start + len(cosines))
        cosines[np.arange(len(cosines)), numbers] = -np.inf
        cosines[~known[numbers]] = -np.inf
        for row in cosines:
            order = np.argsort(-row, kind="stable")[:count]
            found.append([(int(k), float(row[k])) for k in order if np.isfinite(row[k])])
    return found
