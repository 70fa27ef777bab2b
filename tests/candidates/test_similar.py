"""Similar images, against scikit-learn."""

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

from deeplense.candidates import similar
from deeplense.candidates.similar import most_similar


def test_the_most_similar_are_those_of_scikit_learn_also_piece_by_piece(monkeypatch: object) -> None:
    embeddings = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)
    cosines = cosine_similarity(embeddings.astype(np.float64))
    np.fill_diagonal(cosines, -2)
    right = np.argsort(-cosines, axis=1)[:, :5]
    for rows in (7, 1024):
        monkeypatch.setattr(similar, "ROWS", rows)  # type: ignore[attr-defined]
        found = most_similar(embeddings, 5)
        np.testing.assert_array_equal([[k for k, _ in some] for some in found], right)
        values = np.array([[value for _, value in some] for some in found])
        np.testing.assert_allclose(values, np.take_along_axis(cosines, right, axis=1), rtol=1e-9)


def test_embeddings_that_are_zero_or_not_finite_are_similar_to_none() -> None:
    embeddings = np.array([[1.0, 0], [0, 0], [np.nan, 1], [1, 1]])
    found = most_similar(embeddings, 9)
    assert [[k for k, _ in some] for some in found] == [[3], [], [], [0]]
