"""Temperatures and class fractions, against scikit-learn, the rule of Bayes and simulated classifiers."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from deeplense.evaluation.temperature import (
    at_fractions,
    fit_temperature,
    fractions_at,
    mean_log_loss,
    probabilities_of,
)


def drawn(number: int, temperature: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 3) and labels (N,) that are calibrated after division by a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(number, 3)) * 3
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return logits * temperature, (rng.random(number)[:, None] > chances).sum(axis=1).clip(max=2)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_with_which_labels_were_drawn_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_of_two_classes_it_is_the_inverse_slope_of_a_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    margin = rng.normal(size=5000) * 4
    labels = (rng.random(5000) < 1 / (1 + np.exp(-margin / 1.7))).astype(int)
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margin[:, None], labels)
    logits = np.stack([np.zeros(5000), margin], axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(1 / fitted.coef_.item(), rel=2e-3)


def test_few_images_that_are_all_right_change_little() -> None:
    logits = np.tile([[2.0, -2.0]], (10, 1))
    assert 0.5 < fit_temperature(logits, np.zeros(10, dtype=int)) < 1


def test_it_lowers_the_log_loss_of_images_it_was_not_fitted_to() -> None:
    logits, labels = drawn(4000, 3.0)
    temperature = fit_temperature(logits[:2000], labels[:2000])
    before, after = (mean_log_loss(logits[2000:], labels[2000:], each) for each in (1.0, temperature))
    assert after < 0.8 * before


def test_probabilities_at_other_class_fractions_are_calibrated_there() -> None:
    rng = np.random.default_rng(2)
    before, after = np.array([0.5, 0.5]), np.array([0.95, 0.05])
    labels = (rng.random(200_000) < after[1]).astype(int)
    seen = rng.normal(size=200_000) + 1.5 * labels
    # The classifier knows both densities, and believes in equal fractions.
    margin = 1.5 * seen - 1.5**2 / 2
    said = at_fractions(probabilities_of(np.stack([np.zeros_like(margin), margin], axis=1)), before, after)[:, 1]
    assert said.mean() == pytest.approx(0.05, abs=0.002)
    for low, high in ((0.0, 0.02), (0.02, 0.1), (0.1, 0.5), (0.5, 1.0)):
        inside = (said > low) & (said <= high)
        error = np.sqrt(said[inside].mean() / inside.sum())
        assert labels[inside].mean() == pytest.approx(said[inside].mean(), abs=4 * error)


def test_other_classes_keep_their_proportions() -> None:
    after = fractions_at(0.001, 0, np.array([0.5, 0.2, 0.3]))
    assert after.sum() == pytest.approx(1)
    assert after[1] / after[2] == pytest.approx(2 / 3)
    same = np.array([[0.2, 0.3, 0.5]])
    assert at_fractions(same, np.array([0.5, 0.2, 0.3]), np.array([0.5, 0.2, 0.3])) == pytest.approx(same)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="needs images with labels"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(np.array([[np.nan, 0.0]]), np.array([0]))
    with pytest.raises(ValueError, match="prevalence=1"):
        fractions_at(1, 0, np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="must all be above 0"):
        fractions_at(0.1, 0, np.array([0.0, 1.0]))


def test_other_class_fractions_of_the_validation_images_do_not_change_the_temperature() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(100_000) < 0.05).astype(int)
    seen = np.where(labels == 1, rng.normal(1.5, 2, size=100_000), rng.normal(size=100_000))
    # Exact for equal fractions: the ratio of the densities. The images have 5 % of the second class.
    margin = -np.log(2) - (seen - 1.5) ** 2 / 8 + seen**2 / 2
    logits, own = np.stack([np.zeros_like(margin), margin], axis=1), np.array([0.95, 0.05])
    offset = np.log(own / 0.5)
    assert fit_temperature(logits, labels, offset=offset) == pytest.approx(1, abs=0.03)
    assert fit_temperature(logits, labels) < 0.7
    exact, wrong = (
        mean_log_loss(logits, labels, each, offset=offset) for each in (1.0, fit_temperature(logits, labels))
    )
    assert exact < wrong
