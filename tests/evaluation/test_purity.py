"""Purity and completeness at the prevalence of a survey: against scikit-learn, whose weights change the prevalence, and
against a survey that is drawn."""

from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import average_precision_score, precision_recall_curve

from deeplense.evaluation.finding import HALF, Ranked
from deeplense.evaluation.metrics import Estimate
from deeplense.evaluation.purity import (
    Bound,
    area_under_purity,
    average_precision,
    completeness_at,
    completeness_with_interval,
    lenses_in_top,
    purity,
    purity_at,
    purity_with_interval,
    top_with_interval,
)
from deeplense.evaluation.roc_draws import Curves, sample_curve

FALSE = np.r_[0, np.geomspace(1e-9, 1, 5000)]


def binormal(shift: float) -> Curves:
    """The ROC curve of normal scores."""
    return Curves(FALSE[None], stats.norm.sf(stats.norm.isf(FALSE) - shift)[None])


def drawn(seed: int, *, digits: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, which are of the class, and weights that make one in a hundred of the class."""
    random = np.random.default_rng(seed)
    positive = random.random(600) < 0.3
    scores = np.round(random.normal(size=600) + 1.5 * positive, digits)
    weights = np.where(positive, 0.01 / positive.sum(), 0.99 / (~positive).sum())
    return scores, positive, weights


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [8, 1])
def test_average_precision_is_that_of_scikit_learn_at_any_prevalence(seed: int, digits: int) -> None:
    scores, positive, weights = drawn(seed, digits=digits)
    curve = sample_curve(scores, positive)
    assert average_precision(curve, positive.mean()) == pytest.approx(average_precision_score(positive, scores))
    weighted = average_precision_score(positive, scores, sample_weight=weights)
    assert average_precision(curve, 0.01) == pytest.approx(weighted)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [8, 1])
def test_purity_and_completeness_are_those_of_scikit_learn_with_weights(seed: int, digits: int) -> None:
    scores, positive, weights = drawn(seed, digits=digits)
    ranked = Ranked(scores, positive)
    precision, recall, _ = precision_recall_curve(positive, scores, sample_weight=weights)
    found = purity_with_interval(*ranked.pair, ranked.draws, completeness=HALF, prevalence=0.01)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(precision[np.flatnonzero(recall >= HALF - 1e-9)[-1]])
    assert found.low < found.value < found.high
    most = completeness_with_interval(*ranked.pair, ranked.draws, least=0.05, prevalence=0.01)
    assert isinstance(most, Estimate)
    assert most.value == pytest.approx(recall[precision >= 0.05].max())


def test_purity_of_one_threshold_is_computed_by_hand() -> None:
    # Of a million objects, 500 are lenses: 250 are found, with 0.001 of the 999,500 others.
    assert purity(np.array(0.5), np.array(0.001), 5e-4) == pytest.approx(250 / (250 + 999.5))
    assert purity(np.array(0.0), np.array(0.0), 5e-4) == 1


def test_the_numbers_of_a_known_curve_are_exact() -> None:
    curve = binormal(2.0)
    at_half = stats.norm.sf(2.0)
    assert purity_at(curve, 0.5, 0.01)[0] == pytest.approx(0.005 / (0.005 + 0.99 * at_half), rel=1e-3)

    def purity_of(threshold: float) -> float:
        true, false = stats.norm.sf(threshold - 2), stats.norm.sf(threshold)
        return float(0.01 * true / (0.01 * true + 0.99 * false))

    most = completeness_at(curve, 0.5, 0.01)[0]
    assert purity_of(float(2 + stats.norm.isf(most))) == pytest.approx(0.5, abs=1e-3)
    exact, _ = integrate.quad(lambda t: purity_of(t) * stats.norm.pdf(t - 2), -8, 12)
    assert area_under_purity(curve, 0.01)[0] == pytest.approx(exact, abs=1e-3)


def test_a_purity_that_every_threshold_has_finds_all_and_one_that_none_has_finds_nothing() -> None:
    chance = Curves(FALSE[None], FALSE[None])
    assert completeness_at(chance, 0.3, 0.4)[0] == 1
    assert completeness_at(chance, 0.5, 0.4)[0] == 0


def test_the_number_in_the_top_is_that_of_a_survey_that_is_drawn() -> None:
    random, counts = np.random.default_rng(0), []
    for _ in range(60):
        lens = np.arange(20_000) < 400
        scores = random.normal(size=20_000) + 2 * lens
        counts.append(lens[np.argsort(-scores)[:300]].sum())
    expected = lenses_in_top(binormal(2.0), 300, 20_000, 0.02)[0]
    assert abs(np.mean(counts) - expected) < 4 * np.std(counts) / np.sqrt(60)
    assert expected > 100


def test_the_top_of_the_images_themselves_is_counted() -> None:
    scores, positive, _ = drawn(1)
    best = positive[np.argsort(-scores)[:50]].sum()
    found = lenses_in_top(sample_curve(scores, positive), 50, 600, positive.mean())
    assert found[0] == pytest.approx(best)


@pytest.mark.parametrize("changes", [{"top": 0}, {"top": 1001}, {"prevalence": 0.0}, {"prevalence": 1.0}])
def test_a_top_or_prevalence_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        lenses_in_top(binormal(1.0), **{"top": 10, "size": 1000, "prevalence": 0.1} | changes)


def test_with_fewer_than_two_false_positives_there_is_only_a_bound() -> None:
    positive = np.arange(2000) >= 1900
    scores = np.random.default_rng(0).normal(size=2000) + 5 * positive
    ranked = Ranked(scores, positive)
    found = purity_with_interval(*ranked.pair, ranked.draws, completeness=HALF, prevalence=5e-4)
    assert isinstance(found, Bound)
    # No false positive in 1,900: with 95 %, less than ln 20 of them are expected.
    assert found.at_least == pytest.approx(purity(np.array(0.5), np.array(np.log(20) / 1900), 5e-4), rel=0.1)
    top = top_with_interval(*ranked.pair, ranked.draws, top=10, size=100_000, prevalence=5e-4)
    assert isinstance(top, Bound)
    assert top.at_least < 10
    wide = purity_with_interval(*ranked.pair, ranked.draws, completeness=1.0, prevalence=5e-4)
    assert isinstance(wide, Estimate)
