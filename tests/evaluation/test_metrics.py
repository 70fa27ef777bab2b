"""Metrics are scikit-learn's, and their intervals hold what they promise."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as oracle

from deeplense.evaluation.metrics import (
    Metrics,
    auc,
    bootstrap_draws,
    bootstrap_weights,
    classification_metrics,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    regression_metrics,
    regression_report,
    softmax,
    tpr_at_fpr,
    weighted_mean,
    with_intervals,
)

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40)
CLASSES = ("no_sub", "cdm", "axion")


def ones(num_samples: int) -> np.ndarray:
    """The weights of the estimate itself."""
    return np.ones((1, num_samples))


def guesses(num_samples: int, num_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of a classifier that is often right, every class present."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(num_samples) % num_classes)
    logits = generator.normal(size=(num_samples, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    return special.softmax(logits, axis=1), labels


@settings(derandomize=True, deadline=None)
@given(ROWS)
def test_auc_is_that_of_scikit_learn_with_ties_and_weights(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    (got,) = auc(scores.astype(float), positive, weights[None].astype(float))
    if weights[positive].sum() == 0 or weights[~positive].sum() == 0:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(oracle.roc_auc_score(positive, scores, sample_weight=weights))


@settings(derandomize=True, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0]))
def test_a_rate_at_a_false_positive_rate_is_that_of_scikit_learn_with_ties_and_weights(
    rows: list[tuple[int, bool, int]], rate: float
) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    (got,) = tpr_at_fpr(scores.astype(float), positive, weights[None].astype(float), rate)
    if weights[positive].sum() == 0 or weights[~positive].sum() == 0:
        assert np.isnan(got)
    else:
        false, true, _ = oracle.roc_curve(positive, scores, sample_weight=weights, drop_intermediate=False)
        assert got == pytest.approx(true[false <= rate + 1e-9].max())


@settings(derandomize=True, deadline=None)
@given(ROWS)
def test_auc_depends_on_the_order_of_scores_alone_and_is_mirrored_with_them(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, _ = (np.array(column) for column in zip(*rows, strict=True))
    first, stretched, mirrored = (auc(s, positive, ones(len(s))) for s in (scores * 1.0, np.exp(scores), -scores * 1.0))
    np.testing.assert_array_equal(first, stretched)
    np.testing.assert_allclose(first, 1 - mirrored)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_metrics_of_a_classifier_are_those_of_scikit_learn(num_classes: int) -> None:
    probabilities, labels = guesses(157, num_classes)
    got = {name: value.item() for name, value in classification_metrics(probabilities, labels, ones(157)).items()}
    truth, predicted = np.eye(num_classes)[labels], probabilities.argmax(axis=1)
    by_class = {f"auc_{k}": oracle.roc_auc_score(truth[:, k], probabilities[:, k]) for k in range(num_classes)}
    expected = by_class | {
        "auc_macro": oracle.roc_auc_score(truth, probabilities, average="macro"),
        "auc_micro": oracle.roc_auc_score(truth, probabilities, average="micro"),
        "accuracy": oracle.accuracy_score(labels, predicted),
        "log_loss": oracle.log_loss(labels, probabilities),
        "brier": oracle.brier_score_loss(labels, probabilities),
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    counts = oracle.confusion_matrix(labels, predicted)
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, num_classes), counts)
    assert classification_report(probabilities, labels, tuple("abcde")[:num_classes])["confusion"] == counts.tolist()


def test_metrics_of_a_regression_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    truth, weights = generator.normal(size=90), generator.integers(0, 4, 90).astype(float)
    predicted = truth + generator.normal(0.3, 0.5, size=90)
    got = {name: value.item() for name, value in regression_metrics(predicted, truth, 0.2, weights[None]).items()}
    assert got == pytest.approx(
        {
            "mae": oracle.mean_absolute_error(truth, predicted, sample_weight=weights),
            "rmse": oracle.root_mean_squared_error(truth, predicted, sample_weight=weights),
            "bias": np.average(predicted - truth, weights=weights),
            "mae_chance": oracle.mean_absolute_error(truth, np.full(90, 0.2), sample_weight=weights),
        }
    )


def calibration_error_in_plain_loops(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Equation 5 of Guo et al. (2017): sum over bins of |B| / n times |accuracy - confidence|."""
    total = 0.0
    for number in range(15):
        inside = [k for k, value in enumerate(confidence) if number / 15 < value <= (number + 1) / 15]
        if inside:
            accuracy = sum(correct[k] for k in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(confidence[k] for k in inside) / len(inside))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_is_that_of_its_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence, correct = generator.uniform(0, 1, 80), generator.integers(0, 2, 80).astype(float)
    (got,) = expected_calibration_error(confidence, correct, ones(80))
    assert got == pytest.approx(calibration_error_in_plain_loops(confidence, correct))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_proper_scores_with_weights_are_those_of_scikit_learn_where_a_probability_is_0_too(num_classes: int) -> None:
    probabilities, labels = guesses(50, num_classes)
    probabilities[3] = np.eye(num_classes)[(labels[3] + 1) % num_classes]
    probabilities[4] = np.eye(num_classes)[labels[4]]
    weights = bootstrap_weights(50, 3, seed=2)
    got = classification_metrics(probabilities, labels, weights)
    for row, counts in enumerate(weights):
        scores = {"log_loss": oracle.log_loss, "brier": oracle.brier_score_loss}
        for name, score in scores.items():
            assert got[name][row] == pytest.approx(score(labels, probabilities, sample_weight=counts)), name


def test_certainty_that_is_right_has_no_calibration_error_and_certainty_that_is_wrong_has_all() -> None:
    assert expected_calibration_error(np.ones(9), np.ones(9), ones(9)) == [0.0]
    assert expected_calibration_error(np.ones(9), np.zeros(9), ones(9)) == [1.0]


def test_a_resample_draws_as_many_samples_as_there_are_each_as_often_as_any_other() -> None:
    num_samples, num_resamples = 50, 4000
    weights = bootstrap_weights(num_samples, num_resamples, seed=0)
    np.testing.assert_array_equal(weights.sum(axis=1), num_samples)
    draws = [stats.binomtest(int(n), num_resamples * num_samples, 1 / num_samples).pvalue for n in weights.sum(axis=0)]
    assert min(draws) > 1e-3 / num_samples
    assert weights.var(axis=0) == pytest.approx(np.full(num_samples, 1 - 1 / num_samples), abs=0.15)


def test_a_metric_with_whole_weights_is_that_of_the_sample_with_repeats() -> None:
    probabilities, labels = guesses(60, 3)
    predicted, truth = np.random.default_rng(3).normal(size=(2, 60))

    def metrics(samples: np.ndarray, weights: np.ndarray) -> Metrics:
        of_numbers = regression_metrics(predicted[samples], truth[samples], 0.1, weights)
        return classification_metrics(probabilities[samples], labels[samples], weights) | of_numbers

    weights = bootstrap_weights(60, 4, seed=1)
    weighted = metrics(np.arange(60), weights)
    for row, counts in enumerate(weights.astype(int)):
        for name, value in metrics(np.repeat(np.arange(60), counts), ones(60)).items():
            assert weighted[name][row] == pytest.approx(value.item()), name


def test_the_resamples_are_those_of_blocks_of_fifty_from_seed_0_on() -> None:
    """Intervals that were told can be told again."""
    correct = np.random.default_rng(1).integers(0, 2, 30).astype(float)

    def metrics(weights: np.ndarray) -> Metrics:
        return {"accuracy": weighted_mean(correct, weights)}

    blocks = [
        weighted_mean(correct, bootstrap_weights(30, rows, seed=0, block=start))
        for start, rows in ((0, 50), (50, 50), (100, 20))
    ]
    assert bootstrap_draws(metrics, 30, num_resamples=120)["accuracy"].tolist() == np.concatenate(blocks).tolist()
    assert len(bootstrap_draws(metrics, 30)["accuracy"]) == 1000
    assert len(np.unique(np.concatenate(blocks)[[0, 50, 100]])) > 1
    probabilities, labels = guesses(60, 3)
    assert classification_report(probabilities, labels, CLASSES) == classification_report(
        probabilities, labels, CLASSES, seed=0
    )


def bernoulli(generator: np.random.Generator, repeats: int) -> Callable[[np.ndarray], Metrics]:
    """The accuracy of a classifier that is right in 80 % of all cases, on 150 images shown `repeats` times each."""
    correct = np.repeat((generator.uniform(size=150) < 0.8).astype(float), repeats)
    return lambda weights: {"metric": weighted_mean(correct, weights)}


def two_normals(generator: np.random.Generator, repeats: int) -> Callable[[np.ndarray], Metrics]:
    """The AUC of scores that are one standard deviation higher for positives: Phi(1 / sqrt 2)."""
    positive = np.arange(150) % 2 == 0
    scores = np.repeat(generator.normal(size=150) + positive, repeats)
    return lambda weights: {"metric": auc(scores, np.repeat(positive, repeats), weights)}


def coverage_is_95_percent(
    draw: Callable[[np.random.Generator, int], Callable[[np.ndarray], Metrics]], truth: float, *, repeats: int
) -> bool:
    """Whether as many of 300 intervals hold the truth as 95 % would: a two-sided binomial test at 1 in 1000."""
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        estimate = with_intervals(draw(generator, repeats), 150 * repeats, num_resamples=200, seed=1000 * seed)[
            "metric"
        ]
        covered += estimate.low <= truth <= estimate.high
    return bool(stats.binomtest(covered, 300, 0.95).pvalue > 1e-3)


@pytest.mark.parametrize(("draw", "truth"), [(bernoulli, 0.8), (two_normals, float(stats.norm.cdf(2**-0.5)))])
def test_intervals_hold_the_truth_in_95_percent_of_cases_but_not_when_images_are_counted_twice(
    draw: Callable[[np.random.Generator, int], Callable[[np.ndarray], Metrics]], truth: float
) -> None:
    assert coverage_is_95_percent(draw, truth, repeats=1)
    assert not coverage_is_95_percent(draw, truth, repeats=2)


def test_a_perfect_score_is_not_claimed_to_be_certain() -> None:
    labels = np.array([0] * 40 + [1] * 25 + [2] * 10)
    metrics = classification_report(0.9 * np.eye(3)[labels] + 0.1 / 3, labels, CLASSES)["metrics"]
    for name, trials in {"accuracy": 75, "auc_no_sub": 35, "auc_cdm": 25, "auc_axion": 10, "auc_macro": 10}.items():
        exact = stats.binomtest(trials, trials).proportion_ci(0.95, method="exact")
        assert metrics[name] == {"value": 1.0, "low": pytest.approx(exact.low), "high": 1.0}
    assert 0 < metrics["auc_micro"]["low"] < metrics["auc_micro"]["value"] == 1.0


def test_every_estimate_lies_in_its_interval_and_the_seed_decides_it() -> None:
    probabilities, labels = guesses(200, 3)
    report = classification_report(probabilities, labels, CLASSES, seed=4)
    names = {"auc_no_sub", "auc_cdm", "auc_axion", "auc_macro", "auc_micro", "accuracy", "log_loss", "brier", "ece"}
    assert report["metrics"].keys() == names
    ece = report["metrics"]["ece"]
    assert 0 <= ece["low"] <= ece["value"] < ece["high"]
    for name in names - {"ece"}:
        value = report["metrics"][name]
        assert value["low"] < value["value"] < value["high"]
    (plain,) = expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, ones(200))
    assert report["ece_as_published"] == plain > ece["value"]
    assert report == classification_report(probabilities, labels, CLASSES, seed=4)
    assert report != classification_report(probabilities, labels, CLASSES, seed=5)


def test_a_classifier_that_is_always_right_has_auc_1_however_its_logits_are_shifted() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    logits = 2.0 * np.eye(3)[labels] + generator.normal(0, 6, size=(300, 1))
    positive = np.eye(3, dtype=bool)[labels]
    raw = np.mean([auc(logits[:, k], positive[:, k], ones(300)) for k in range(3)])
    metrics = classification_report(softmax(logits), labels, CLASSES)["metrics"]
    assert raw < 0.7
    assert metrics["accuracy"]["value"] == metrics["auc_macro"]["value"] == 1.0


def test_softmax_is_that_of_scipy_and_bears_large_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 300, size=(20, 4)).astype(np.float32)
    np.testing.assert_allclose(softmax(logits), special.softmax(logits.astype(float), axis=1))


def test_a_class_without_samples_has_no_auc_and_the_rest_is_reported() -> None:
    probabilities, labels = guesses(60, 3)
    kept = labels != 2
    report = classification_report(probabilities[kept], labels[kept], CLASSES)
    assert np.isnan([report["metrics"][name]["value"] for name in ("auc_axion", "auc_macro")]).all()
    assert np.isfinite([report["metrics"][name]["low"] for name in ("auc_cdm", "log_loss", "brier", "ece")]).all()
    assert report["confusion"][2] == [0, 0, 0]


def test_outputs_that_are_no_numbers_are_refused_rather_than_ranked() -> None:
    probabilities, labels = guesses(60, 3)
    probabilities[7] = np.nan
    with pytest.raises(ValueError, match=r"(?i)finite|nan"):
        classification_report(probabilities, labels, CLASSES)


def test_a_regression_without_skill_is_as_good_as_chance() -> None:
    truth = np.random.default_rng(0).normal(size=400)
    metrics = regression_report(np.full(400, 0.3), truth, chance=0.3)["metrics"]
    assert metrics["mae"] == metrics["mae_chance"]
    better = regression_report(truth + 0.1, truth, chance=0.3)["metrics"]
    assert better["mae"]["high"] < better["mae_chance"]["low"]
    assert better["bias"] == {name: pytest.approx(0.1) for name in ("value", "low", "high")}
