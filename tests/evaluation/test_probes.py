"""Probes of frozen features: votes by their cosines, and a linear classifier that does not fill the log."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from deeplense.evaluation import probes
from deeplense.evaluation.probes import knn_probabilities, linear_probabilities


def test_each_neighbour_votes_with_the_exponential_of_its_cosine() -> None:
    """With the temperature of 0.07 of Wu et al. (2018), section 3.1, and DINO."""
    features, labels = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]), np.array([0, 2, 2])
    votes = np.exp(np.array([1.0, 0.0, np.sqrt(0.5)]) / 0.07)
    expected = np.array([votes[0], 0, votes[1] + votes[2]]) / votes.sum()
    np.testing.assert_allclose(knn_probabilities(features, labels, np.array([[5.0, 0.0]]), 3), [expected], atol=1e-12)


def test_twenty_neighbours_vote() -> None:
    labels = np.arange(30) // 20
    angles = np.linspace(0, 0.1, 30)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert knn_probabilities(features, labels, features[:1], 2).tolist() == [[1.0, 0.0]]
    votes = np.exp(features[1:] @ features[0] / 0.07)[:19]
    expected = votes[18] / votes.sum()
    labels[19] = 1
    assert knn_probabilities(features[1:], labels[1:], features[:1], 2)[0, 1] > expected / 2


def test_penalties_too_weak_to_come_to_an_end_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MOST_ITERATIONS", 5)
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    features = generator.normal(size=(240, 60))
    features[:, 0] += 2 * labels
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        said = linear_probabilities(features, labels, features, 3)
    assert [each for each in told if issubclass(each.category, ConvergenceWarning)] == []
    assert (said.argmax(axis=1) == labels).mean() > 0.5


def test_a_class_of_one_sample_is_refused_with_the_number() -> None:
    with pytest.raises(ValueError, match="a class has 1 training sample; a linear probe needs at least 2"):
        linear_probabilities(np.eye(5), np.array([0, 0, 1, 1, 2]), np.eye(5), 3)
