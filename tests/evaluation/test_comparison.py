"""Models compared: intervals that cover the seeds and the images, against SciPy, with negative controls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from deeplense.evaluation.comparison import (
    Predicted,
    Scores,
    difference,
    over_seeds,
    put_together,
    rate_names,
    score_classes,
    score_numbers,
    score_predictions,
    seeds_half_width,
)
from deeplense.evaluation.finding import true_positive_rate
from deeplense.evaluation.metrics import Estimate, percentiles, softmax

CLASSES = ("no_sub", "cdm", "axion")
NOWHERE = (-np.inf, np.inf)


def probabilities(labels: np.ndarray, *, skill: float, seed: int) -> np.ndarray:
    """What a made-up model says: noise, with more for the right class."""
    scores = np.random.default_rng(seed).normal(size=(len(labels), len(CLASSES)))
    scores[np.arange(len(labels)), labels] += skill
    scores = np.exp(scores)
    return scores / scores.sum(axis=1, keepdims=True)


def scores_of(*, skill: float, seed: int, num_images: int = 120) -> Scores:
    """The scores of such a model."""
    labels = np.arange(num_images) % 3
    made = probabilities(labels, skill=skill, seed=seed)
    return score_classes(made, labels, np.arange(num_images), classes=CLASSES, num_samples=num_images)


def test_rates_at_low_false_positive_rates_are_those_of_a_report_and_need_ten_false_positives() -> None:
    labels = np.repeat([0, 1], [1000, 150])
    logits = np.random.default_rng(0).normal(size=(1150, 2)) + 2 * np.eye(2)[labels]
    made = softmax(logits)
    found = score_classes(made, labels, np.arange(1150), classes=("other", "lens"), num_samples=1150)
    expected = true_positive_rate(made[:, 1], labels == 1, 0.01)
    rates = {name: value for name, value in found.values.items() if name.startswith("tpr")}
    assert rates == {"tpr_at_fpr_0.01_lens": pytest.approx(expected)}
    low, high = percentiles(found.draws["tpr_at_fpr_0.01_lens"])
    assert low < expected < high
    with_more = rate_names(np.repeat([0, 1], 10_000), ("other", "lens"), 1e-3)
    assert with_more == {0: "tpr_at_fpr_0.001_other", 1: "tpr_at_fpr_0.001_lens"}
    assert rate_names(np.repeat([0, 1], [999, 100]), ("other", "lens"), 0.01) == {}
    assert rate_names(np.zeros(2000, dtype=int), ("other", "lens"), 0.01) == {}


def test_rounded_probabilities_are_ranked_by_their_logits() -> None:
    labels = np.repeat([0, 1], [1000, 150])
    logits = np.c_[np.zeros(1150), 60 + np.random.default_rng(0).normal(size=1150) + 2 * labels]
    predicted = Predicted(logits, labels, np.zeros(1150), np.arange(1150), 1150)
    found = score_predictions(predicted, np.arange(1150), ("other", "lens"))
    expected = true_positive_rate(logits[:, 1], labels == 1, 0.01)
    assert found.values["tpr_at_fpr_0.01_lens"] == pytest.approx(expected)
    assert expected > 0.1


def plain(value: float, draws: np.ndarray) -> Scores:
    """Scores with one metric."""
    return Scores({"accuracy": value}, {"accuracy": draws}, {}, 100)


def test_the_numbers_are_those_of_scikit_learn_under_the_names_of_the_classes() -> None:
    labels = np.arange(120) % 3
    made = probabilities(labels, skill=0.7, seed=1)
    found = scores_of(skill=0.7, seed=1)
    expected = np.asarray(roc_auc_score(labels, made, multi_class="ovr", average=None))  # type: ignore[arg-type]
    assert [found.values[f"auc_{name}"] for name in CLASSES] == pytest.approx(expected)
    assert found.values["auc_macro"] == pytest.approx(expected.mean())
    assert found.values["accuracy"] == pytest.approx((made.argmax(axis=1) == labels).mean())
    assert {draws.shape for draws in found.draws.values()} == {(1000,)}


def test_without_spread_of_the_images_the_interval_is_students() -> None:
    values = np.array([0.71, 0.64, 0.69, 0.73])
    found = over_seeds([plain(value, np.full(1000, value)) for value in values], "accuracy")
    expected = stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(values.mean())


def test_without_spread_of_the_seeds_the_interval_is_the_bootstraps() -> None:
    draws = np.random.default_rng(0).normal(0.7, 0.02, size=1000)
    found = over_seeds([plain(0.7, draws)] * 3, "accuracy")
    assert (found.low, found.high) == pytest.approx(percentiles(draws))


def test_one_training_has_the_interval_of_the_images_alone() -> None:
    only = scores_of(skill=0.5, seed=3)
    found = over_seeds([only], "auc_macro")
    assert (found.low, found.high) == pytest.approx(percentiles(only.draws["auc_macro"]))
    assert seeds_half_width(np.array([0.9])) == 0


@settings(derandomize=True, max_examples=50)
@given(st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_an_interval_put_together_is_wider_than_each_and_narrower_than_their_sum(
    below: float, above: float, half: float
) -> None:
    found = put_together(Estimate(0.5, 0.5 - below, 0.5 + above), half, bounds=NOWHERE)
    for end, part in ((0.5 - found.low, below), (found.high - 0.5, above)):
        assert max(part, half) - 1e-9 <= end <= part + half + 1e-9


def test_the_interval_covers_the_truth_where_seeds_and_images_both_vary() -> None:
    generator, covered, too_narrow = np.random.default_rng(5), 0, 0
    for _ in range(1000):
        # The images shift all trainings alike by an error that the bootstrap knows the size of.
        values = 0.8 + generator.normal(0, 0.02) + generator.normal(0, 0.02, size=4)
        draws = values[:, None] + generator.normal(0, 0.02, size=500)
        found = over_seeds([plain(v, d) for v, d in zip(values, draws, strict=True)], "accuracy")
        covered += found.low <= 0.8 <= found.high
        images = percentiles(draws.mean(axis=0))
        too_narrow += images[0] <= 0.8 <= images[1]
    assert 940 <= covered <= 985
    assert too_narrow < 925, "the control: an interval of the images alone is too narrow"


def test_a_perfect_score_has_a_lower_end_below_it_and_nothing_is_above_one() -> None:
    labels = np.arange(60) % 3
    perfect = score_classes(np.eye(3)[labels], labels, np.arange(60), classes=CLASSES, num_samples=60)
    found = over_seeds([perfect, perfect], "auc_cdm")
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    spread = over_seeds([plain(value, np.full(1000, value)) for value in (0.9, 0.99)], "accuracy")
    assert spread.high == 1.0


def test_a_paired_difference_agrees_with_scipy() -> None:
    labels = np.arange(300) % 3
    right = [
        probabilities(labels, skill=skill, seed=seed).argmax(axis=1) == labels for skill, seed in ((0.9, 1), (0.6, 2))
    ]
    ours, other = (
        score_classes(probabilities(labels, skill=s, seed=k), labels, np.arange(300), classes=CLASSES, num_samples=300)
        for s, k in ((0.9, 1), (0.6, 2))
    )
    found = difference({0: ours}, {0: other}, "accuracy")
    oracle = stats.bootstrap(
        right,
        lambda a, b: a.mean() - b.mean(),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=0,
    ).confidence_interval
    assert found is not None
    assert found.value == pytest.approx(right[0].mean() - right[1].mean())
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=0.1 * (oracle.high - oracle.low))


def test_a_paired_difference_over_seeds_agrees_with_scipy() -> None:
    ours, other = np.array([0.91, 0.93, 0.9]), np.array([0.88, 0.91, 0.89])
    models = [{seed: plain(v, np.full(10, v)) for seed, v in enumerate(values)} for values in (ours, other)]
    found = difference(models[0], models[1], "accuracy")
    expected = stats.ttest_rel(ours, other).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_model_does_not_differ_from_itself() -> None:
    model = {seed: scores_of(skill=0.6, seed=seed) for seed in range(3)}
    assert difference(model, model, "auc_macro") == Estimate(0.0, 0.0, 0.0)


def test_two_models_of_the_same_skill_seldom_differ_and_two_of_different_skill_do() -> None:
    def differ(skill: float, number: int) -> bool:
        ours, other = ({0: scores_of(skill=s, seed=2 * number + k, num_images=90)} for k, s in enumerate((0.5, skill)))
        found = difference(ours, other, "accuracy")
        assert found is not None
        return not found.low <= 0 <= found.high

    assert sum(differ(0.5, number) for number in range(40)) <= 5
    assert sum(differ(1.5, number) for number in range(40)) >= 36


def test_pairing_makes_the_interval_of_alike_models_narrower() -> None:
    ours = scores_of(skill=0.8, seed=1)
    near = Scores({"accuracy": 0.5}, {"accuracy": ours.draws["accuracy"] - 0.01}, {}, 120)
    paired = difference({0: ours}, {0: near}, "accuracy")
    shuffled = Scores({"accuracy": 0.5}, {"accuracy": np.roll(near.draws["accuracy"], 7)}, {}, 120)
    unpaired = difference({0: ours}, {0: shuffled}, "accuracy")
    assert paired is not None
    assert unpaired is not None
    assert paired.high - paired.low < 0.1 * (unpaired.high - unpaired.low)


def test_only_seeds_that_both_models_have_are_compared() -> None:
    ours = {seed: plain(0.9 + seed / 100, np.full(10, 0.9)) for seed in (0, 1, 2)}
    other = {seed: plain(0.8, np.full(10, 0.8)) for seed in (2, 3)}
    found = difference(ours, other, "accuracy")
    assert found is not None
    assert found.value == pytest.approx(0.12)
    assert difference(ours, {7: other[3]}, "accuracy") is None


def test_resamples_are_of_the_whole_split_and_do_not_depend_on_the_order_of_the_predictions() -> None:
    labels, order = np.arange(90) % 3, np.random.default_rng(0).permutation(90)
    made = probabilities(labels, skill=0.6, seed=1)
    straight = score_classes(made, labels, np.arange(90), classes=CLASSES, num_samples=100)
    turned = score_classes(made[order], labels[order], np.arange(90)[order], classes=CLASSES, num_samples=100)
    assert straight.draws["auc_macro"] == pytest.approx(turned.draws["auc_macro"])
    few = score_classes(made[:60], labels[:60], np.arange(60), classes=CLASSES, num_samples=100)
    assert np.corrcoef(few.draws["accuracy"], straight.draws["accuracy"])[0, 1] > 0.6


def test_the_gain_of_a_regression_is_what_it_has_over_guessing() -> None:
    truth = np.random.default_rng(0).normal(size=80)
    told = score_numbers(truth + 0.1, truth, np.arange(80), chance=0.0, num_samples=80)
    assert told.values["mae"] == pytest.approx(0.1)
    assert told.values["gain"] == pytest.approx(np.abs(truth).mean() - 0.1)
    assert over_seeds([told], "gain").low > 0
    blind = score_numbers(np.roll(truth, 1), truth, np.arange(80), chance=0.0, num_samples=80)
    assert over_seeds([blind], "gain").high < 0
