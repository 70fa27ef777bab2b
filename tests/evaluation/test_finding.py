"""How well a rare class is found: the values agree with scikit-learn and with published ones, and extreme sets of
images have honest numbers."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import roc_curve

from deeplense.evaluation.finding import (
    NO_PREVALENCE,
    Ranked,
    Survey,
    expected_with,
    finding_report,
    in_words,
    numbers_of,
    rate_with_interval,
    true_positive_rate,
    with_false_positives,
)
from deeplense.evaluation.metrics import Estimate, log_odds
from deeplense.evaluation.purity import Bound
from deeplense.evaluation.roc_draws import Curves

SURVEY = Survey(prevalence=0.01, top=20, size=1000)


def normal(num: int, num_positive: int, shift: float, *, seed: int = 0) -> Ranked:
    """Normal scores."""
    positive = np.arange(num + num_positive) >= num
    return Ranked(np.random.default_rng(seed).normal(size=len(positive)) + shift * positive, positive)


@pytest.mark.parametrize("seed", range(20))
def test_the_rate_is_the_highest_that_scikit_learn_finds_with_so_few_false_positives(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(200) < 0.4
    # Half of them with many ties.
    scores = np.round(random.normal(size=200) + positive, 1 if seed % 2 else 8)
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    for rate in (0.0, 0.004, 0.01, 0.1, 0.5, 1.0):
        assert true_positive_rate(scores, positive, rate) == pytest.approx(true[false <= rate].max())


def lens_scores(folder: Path) -> Ranked:
    """A published table of scores."""
    rows = list(csv.DictReader((folder / "lens_scores" / "scores.csv").read_text().splitlines()))
    positive = np.array([row["is_lens"] == "1" for row in rows])
    return Ranked(np.array([float(row["probs"]) for row in rows]), positive)


def test_the_numbers_of_a_published_table_of_scores_come_out(public_data: Path) -> None:
    found = numbers_of(lens_scores(public_data), Survey())
    names = ("tpr_at_fpr_0.01", "tpr_at_fpr_0.001", "tpr0", "tpr10")
    values = [found[name].value for name in names]  # type: ignore[union-attr]
    assert values == pytest.approx([0.5796, 0.3632, 0.0, 0.4819], abs=5e-5)
    assert found["tpr_at_fpr_0.0001"] == "needs 20,000 images of other classes, has 2,373"


def test_ten_false_positives_are_allowed_and_not_nine(public_data: Path) -> None:
    ranked = lens_scores(public_data)
    assert with_false_positives(*ranked.pair, 10) > with_false_positives(*ranked.pair, 9)
    negatives = np.sort(ranked.scores[~ranked.positive])[::-1]
    above = ranked.scores > negatives[10]
    assert (above & ~ranked.positive).sum() <= 10
    assert with_false_positives(*ranked.pair, 10) == above[ranked.positive].mean()


def test_the_expected_rate_is_that_of_new_images_of_other_classes() -> None:
    # Of a curve t = f ** 0.5, the rate above the highest of n uniform numbers is the integral of its density.
    false = np.r_[0, np.geomspace(1e-7, 1, 4000)][None]
    curve = Curves(false, false**0.5)
    for allowed, num in ((0, 50), (10, 400)):
        exact = special.beta(allowed + 1.5, num - allowed) / special.beta(allowed + 1, num - allowed)
        assert expected_with(curve, allowed, num)[0] == pytest.approx(exact, rel=0.01)


def test_the_value_with_few_false_positives_is_on_average_the_expected_one() -> None:
    random, false = np.random.default_rng(0), np.geomspace(1e-9, 1, 20_000)
    curve = Curves(false[None], stats.norm.sf(stats.norm.isf(false) - 2)[None])
    positive = np.arange(150) >= 100
    for allowed in (0, 10):
        values = [with_false_positives(random.normal(size=150) + 2 * positive, positive, allowed) for _ in range(1500)]
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected_with(curve, allowed, 100)[0]) < 4 * error


def test_a_rate_that_few_images_cannot_tell_is_not_given() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 60])
    probabilities = random.dirichlet([1, 1], size=360)
    report = finding_report(probabilities, labels, ["other", "lens"])
    assert set(report["lens"]["tpr_at_fpr_0.01"]) == {"value", "low", "high"}
    assert report["lens"]["tpr_at_fpr_0.001"] == {"undefined": "needs 2,000 images of other classes, has 300"}
    assert report["other"]["tpr_at_fpr_0.01"] == {"undefined": "needs 200 images of other classes, has 60"}
    assert report["lens"]["purity_at_completeness_0.5"] == {"undefined": NO_PREVALENCE}
    assert "--prevalence" in NO_PREVALENCE


def test_the_value_lies_in_its_interval_and_the_seed_repeats_it() -> None:
    ranked = normal(1000, 100, 2.0)
    first, again = (rate_with_interval(Ranked(*ranked.pair), 0.01) for _ in range(2))
    other = rate_with_interval(Ranked(*ranked.pair, seed=1), 0.01)
    assert first == again != other
    assert not isinstance(first, str)
    assert first.low < first.value < first.high


@pytest.mark.parametrize("missing", ["lens", "other"])
def test_without_images_of_the_class_or_of_others_no_number_is_given_and_why(missing: str) -> None:
    labels = np.full(30, 0 if missing == "lens" else 1)
    report = finding_report(np.random.default_rng(0).normal(size=(30, 2)), labels, ["other", "lens"], survey=SURVEY)
    why = "no image of the class" if missing == "lens" else "no image of other classes"
    assert {tuple(number.items()) for number in report["lens"].values()} == {(("undefined", why),)}


@pytest.mark.parametrize("right", [True, False])
def test_one_image_of_each_has_numbers_that_cover_almost_everything(right: bool) -> None:
    ranked = Ranked(np.array([0.0, 1.0]), np.array([not right, right]))
    found = numbers_of(ranked, Survey(prevalence=0.01, top=1))
    rate = found["tpr0"]
    assert isinstance(rate, Estimate)
    assert rate.value == right
    assert rate.high - rate.low > 0.75
    assert found["tpr10"] == "needs 11 images of other classes, has 1"
    assert isinstance(found["purity_at_completeness_0.5"], Bound)


def test_equal_scores_find_nothing_at_any_threshold_below_them() -> None:
    positive = np.arange(1000) < 100
    found = numbers_of(Ranked(np.full(1000, 0.7), positive), Survey(prevalence=0.01, top=200, size=1000))
    for name in ("tpr_at_fpr_0.01", "tpr0", "tpr10"):
        rate = found[name]
        assert isinstance(rate, Estimate)
        assert (rate.value, rate.low) == (0, 0)
        assert rate.high < 0.06
    values = {name: each.value for name, each in found.items() if isinstance(each, Estimate)}
    assert values["average_precision"] == pytest.approx(0.1)
    # All images are above the only threshold: the purity is the prevalence.
    assert values["purity_at_completeness_0.5"] == pytest.approx(0.01)
    # In random order, a fifth of all images are chosen.
    assert values["in_top_200"] == pytest.approx(20)
    assert values["in_top_200_of_1000"] == pytest.approx(2)


def test_a_perfect_classifier_has_intervals_that_end_at_one() -> None:
    positive = np.arange(3000) < 50
    found = numbers_of(Ranked(positive + np.random.default_rng(2).random(3000) / 2, positive), SURVEY)
    for name in ("tpr_at_fpr_0.01", "tpr0", "tpr10", "average_precision", "completeness_at_purity_0.5"):
        number = found[name]
        assert isinstance(number, Estimate)
        assert (number.value, number.high) == (1, 1)
        # Above the highest other image the curve may fall steeply, which matters most for the rate without any.
        assert (0.25 if name == "tpr0" else 0.5) < number.low < 1
    bound = found["purity_at_completeness_0.5"]
    assert isinstance(bound, Bound)
    assert 0.8 < bound.at_least < 1
    assert bound.reason == "0 of 2,950 images of other classes are above the threshold, 2 are needed"


def test_scores_that_are_nan_are_refused() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 2))
    scores[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 scores are NaN"):
        finding_report(scores, np.arange(20) % 2, ["other", "lens"])


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_prevalence_that_no_survey_has_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        Survey(prevalence=prevalence)


def test_more_than_there_are_images_is_not_given() -> None:
    found = numbers_of(normal(80, 20, 1.0), Survey(top=101))
    assert found["in_top_101"] == "needs 101 images, has 100"
    all_of_them = numbers_of(normal(80, 20, 1.0), Survey(top=100))["in_top_100"]
    assert isinstance(all_of_them, Estimate)
    assert all_of_them.value == pytest.approx(20)


def test_probabilities_that_are_rounded_to_one_do_not_hide_the_order() -> None:
    positive = np.arange(400) >= 300
    margin = np.random.default_rng(0).normal(size=400) + 3 * positive
    logits = np.c_[np.zeros(400), 40 + margin].astype(np.float32)
    probabilities = special.softmax(logits, axis=1)
    assert (probabilities[:, 1] == 1).all()
    labels = positive.astype(int)
    ranked = finding_report(log_odds(logits), labels, ["other", "lens"])["lens"]["tpr0"]
    expected = with_false_positives(margin.astype(np.float32), positive, 0)
    assert ranked["value"] == pytest.approx(expected, abs=0.02)
    assert expected > 0.3
    # The rounded probabilities tell nothing, and say so.
    assert finding_report(probabilities, labels, ["other", "lens"])["lens"]["tpr0"]["value"] == 0


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    assert log_odds(logits) == pytest.approx(special.logit(special.softmax(logits, axis=1)))


def test_every_number_has_a_title_in_plain_words() -> None:
    found = numbers_of(normal(300, 30, 1.0), SURVEY)
    titles: dict[str, Any] = {name: in_words(name) for name in found}
    assert len(set(titles.values())) == len(titles) == 10
    assert [title for title in titles.values() if "_" in title] == []
    assert in_words("in_top_1000_of_200000") == "number expected among the best 1,000 of 200,000 objects of the survey"
