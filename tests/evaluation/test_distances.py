"""Distances are those of other programs, obey their laws, and their bias, floor and intervals are what they say."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.stats import special_ortho_group

from deeplense.evaluation.distances import (
    about,
    compare_features,
    compare_frechet,
    compare_kernel,
    compare_precision,
    eigenvalues_of,
    frechet_bias,
    frechet_distance,
    halves,
    kernel_distance,
    precision,
)

SHAPES = [(300, 300, 24), (60, 200, 100), (200, 60, 100), (40, 30, 64)]


def features(count: int, num_features: int, seed: int, *, decay: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Gaussian features whose eigenvalues fall as i^-decay, in coordinates that mix them."""
    generator = np.random.default_rng((seed, count))
    mixing = special_ortho_group.rvs(num_features, random_state=1)
    scale = np.arange(1, num_features + 1) ** (-decay / 2)
    return (generator.normal(size=(count, num_features)) * scale) @ mixing + shift


def frechet_by_matrix_roots(first: np.ndarray, second: np.ndarray) -> float:
    """The formula of Heusel et al. 2017 as it stands, with scipy's root of a matrix."""
    covariances = [np.cov(each, rowvar=False) for each in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def kernel_in_plain_loops(first: np.ndarray, second: np.ndarray) -> float:
    """Equation 4 of Binkowski et al. 2018, pair by pair."""
    n, m, scale = len(first), len(second), first.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / scale + 1) ** 3

    own = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(x, y) for x in first for y in second) / (n * m)


@pytest.mark.parametrize(("count", "other", "num_features"), SHAPES)
def test_the_frechet_distance_is_that_of_torch_fidelity(count: int, other: int, num_features: int) -> None:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    first, second = features(count, num_features, 0), features(other, num_features, 1, decay=0.6, shift=0.02)
    one, two = ({"mu": each.mean(axis=0), "sigma": np.cov(each, rowvar=False)} for each in (first, second))
    expected = fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_is_that_of_its_formula_and_of_gaussians_in_closed_form() -> None:
    first, second = features(300, 24, 0), features(400, 24, 1, decay=0.3, shift=0.1)
    assert frechet_distance(first, second) == pytest.approx(frechet_by_matrix_roots(first, second), rel=1e-9)
    assert frechet_distance(first, 3 * first + 2) == pytest.approx(
        4 * np.trace(np.cov(first, rowvar=False)) + ((2 * first.mean(axis=0) + 2) ** 2).sum()
    )


@pytest.mark.parametrize(("count", "other", "num_features"), SHAPES)
def test_laws_of_the_frechet_distance(count: int, other: int, num_features: int) -> None:
    first, second = features(count, num_features, 0), features(other, num_features, 1, decay=0.5)
    distance = frechet_distance(first, second)
    assert frechet_distance(first, first[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-10)
    rotation = special_ortho_group.rvs(num_features, random_state=3)
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(5 * first, 5 * second) == pytest.approx(25 * distance, rel=1e-9)
    move = np.linspace(-1, 1, num_features)
    between_means = first.mean(axis=0) - second.mean(axis=0)
    gained = move @ move + 2 * move @ between_means
    assert frechet_distance(first + move, second) == pytest.approx(distance + gained, rel=1e-9)
    assert frechet_distance(first + move, first) == pytest.approx(move @ move, rel=1e-9)


def test_float32_features_far_from_the_origin_lose_nothing() -> None:
    first, second = ((features(200, 16, seed) + 1000).astype(np.float32) for seed in (0, 1))
    expected = frechet_distance(first.astype(np.float64), second.astype(np.float64))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("num_features", "decay"), [(8, 1.0), (32, 0.3), (32, 1.5)])
def test_the_bias_in_closed_form_is_what_is_seen_to_5_percent(num_features: int, decay: float) -> None:
    count, other = 400, 250
    draws = [
        frechet_distance(features(count, num_features, s, decay=decay), features(other, num_features, s, decay=decay))
        for s in range(400)
    ]
    eigenvalues = np.arange(1, num_features + 1) ** -decay
    error = np.std(draws) / np.sqrt(len(draws))
    assert error < 0.02 * np.mean(draws)
    assert frechet_bias(eigenvalues, count, other) == pytest.approx(np.mean(draws), rel=0.05)


def test_the_bias_of_equal_eigenvalues_goes_with_the_square_of_their_number() -> None:
    for num_features in (10, 1000):
        expected = 0.02 * num_features + 0.01 * (num_features**2 / 2 + num_features / 2)
        assert frechet_bias(np.ones(num_features), 100, 100) == pytest.approx(expected)
    assert frechet_bias(np.array([1.0, 0.0]), 100, 100) == frechet_bias(np.array([1.0]), 100, 100)


def test_eigenvalues_are_those_of_the_covariance() -> None:
    for count in (50, 8):
        sample = features(count, 12, 0)
        expected = np.linalg.eigvalsh(np.cov(sample, rowvar=False))[::-1][: min(count, 12)]
        np.testing.assert_allclose(eigenvalues_of(sample), expected, atol=1e-12)


def test_the_kernel_distance_is_that_of_its_definition() -> None:
    first, second = features(40, 6, 0), features(25, 6, 1, shift=0.3)
    assert kernel_distance(first, second) == pytest.approx(kernel_in_plain_loops(first, second), rel=1e-9)
    assert kernel_distance(second, first) == pytest.approx(kernel_distance(first, second), rel=1e-9)


def test_the_kernel_distance_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kernel_mmd

    first, second = features(700, 6, 0), features(700, 6, 1, shift=0.3)
    assert kernel_distance(first, second) == pytest.approx(kernel_mmd(first, second, kid_kernel="poly"), rel=1e-9)


def test_the_kernel_distance_of_equal_distributions_is_zero_in_the_mean_though_not_each_time() -> None:
    draws = np.array([kernel_distance(features(30, 8, s), features(50, 8, s)) for s in range(400)])
    assert abs(draws.mean()) < 3 * draws.std() / np.sqrt(400)
    assert (draws < 0).mean() > 0.3
    assert frechet_distance(features(30, 8, 0), features(50, 8, 0)) > 0.1


def test_precision_is_that_of_its_definition() -> None:
    first, second = features(50, 3, 0, shift=0.6), features(40, 3, 1)
    radii = [sorted(float(np.linalg.norm(x - y)) for y in second)[3] for x in second]
    near = [any(np.linalg.norm(x - y) <= r for y, r in zip(second, radii, strict=True)) for x in first]
    assert 0.1 < np.mean(near) < 0.9
    assert precision(first, second) == pytest.approx(np.mean(near))


def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    first, second = features(120, 5, 0, shift=0.5), features(90, 5, 1)
    expected = calculate_precision_recall_full(torch.from_numpy(first), torch.from_numpy(second))
    assert 0.1 < expected[1] < 0.9
    assert (precision(first, second), precision(second, first)) == pytest.approx(expected, abs=1e-6)


def test_a_set_covers_itself_and_none_that_is_far_and_a_narrow_one_has_precision_alone() -> None:
    whole = features(200, 6, 0)
    assert precision(whole, whole) == 1.0
    assert precision(whole, whole + 100) == precision(whole + 100, whole) == 0.0
    narrow = 0.2 * features(200, 6, 1)
    assert precision(narrow, whole) > 0.95
    assert precision(whole, narrow) < 0.1


def test_a_half_sample_is_half_of_each_set_drawn_apart() -> None:
    first, second = halves(51, 51, 400, seed=0)
    assert set(first.sum(axis=1)) == set(second.sum(axis=1)) == {25}
    counts = first.sum(axis=0)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert not np.array_equal(first, second)


def test_the_spread_of_half_samples_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    chosen, _ = halves(300, 2, 4000, seed=0)
    draws = np.array([values[rows].mean() for rows in chosen])
    expected = 1.96 * values.std(ddof=1) / np.sqrt(300)
    assert about(0.0, draws).high == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("moved", [0.0, 0.8])
@pytest.mark.parametrize("name", ["frechet", "kernel", "precision"])
def test_intervals_hold_the_truth_in_95_percent_of_cases_or_more(name: str, moved: float) -> None:
    """More often only where both are of one distribution. The truth of a Frechet distance is known, of the others it is
    the mean over many draws, which have no bias to speak of at one number of images."""
    measure = {"frechet": compare_frechet, "kernel": compare_kernel, "precision": compare_precision}[name]
    single = {"kernel": kernel_distance, "precision": precision}
    move = moved * np.array([1.0, 0, 0, 0])

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng((seed, 77))
        return generator.normal(size=(120, 4)) + move, generator.normal(size=(150, 4))

    truth = moved**2 if name == "frechet" else np.mean([single[name](*draw(s)) for s in range(1000, 1400)])
    estimates = [measure(*draw(seed), num_resamples=60, seed=seed)[1] for seed in range(150)]
    covered = sum(estimate.low <= truth <= estimate.high for estimate in estimates)
    assert covered >= stats.binom.ppf(0.001, 150, 0.95)
    if moved:
        assert covered < 150
        halved = sum(abs(e.value - truth) <= (e.high - e.low) / 4 for e in estimates)
        assert halved < stats.binom.ppf(0.001, 150, 0.95)


def test_what_is_left_of_any_number_of_images_has_no_bias_where_the_value_has() -> None:
    pairs = [(features(100, 24, s), 1.3 * features(120, 24, s)) for s in range(40)]
    measured = [compare_frechet(*pair, num_resamples=20, seed=0) for pair in pairs]
    truth = 0.3**2 * (1 / np.arange(1, 25)).sum()
    values, estimates = np.array([[value, estimate.value] for value, estimate in measured]).T
    assert values.mean() > 2 * truth
    assert abs(estimates.mean() - truth) < 0.1 * truth


def test_a_comparison_says_all_that_is_needed_to_believe_it() -> None:
    generated, real, train = features(150, 8, 0, shift=0.4), features(200, 8, 1), features(500, 8, 2)
    found = {d.name: d for d in compare_features(generated, real, train, features="classifier", num_resamples=30)}
    assert list(found) == ["frechet", "kernel", "precision", "recall"]
    frechet = found["frechet"]
    assert frechet.value == frechet_distance(generated, real)
    assert (frechet.num_generated, frechet.num_real, frechet.num_floor) == (150, 200, (150, 200))
    eigenvalues = eigenvalues_of(np.concatenate([real, train]))
    assert frechet.expected == pytest.approx(frechet_bias(eigenvalues, 150, 200))
    assert frechet.estimate.low > frechet.floor.high
    assert frechet.floor.low < 0 < frechet.floor.high
    assert found["recall"].value == precision(real, generated)
    assert found["precision"].floor_value > found["precision"].value
    assert json.loads(json.dumps(asdict(frechet)))["features"] == "classifier (8)"
    text = str(frechet)
    expected = f"{frechet.expected:.4g} expected for equal distributions"
    for part in ("classifier (8)", "150 generated against 200 held-out", expected, "150 against 200"):
        assert part in text
    assert "expected" not in str(found["recall"])


def test_what_is_expected_of_equal_distributions_is_the_mean_of_real_against_real() -> None:
    real = [(features(150, 8, 3 * s), features(200, 8, 3 * s + 1), features(500, 8, 3 * s + 2)) for s in range(60)]
    found = [compare_features(*each, features="f", num_resamples=2)[0] for each in real]
    floors, expected = np.array([(each.floor_value, each.expected) for each in found]).T
    assert floors.mean() == pytest.approx(expected.mean(), rel=0.1)


def test_without_training_images_the_halves_of_the_held_out_are_the_floor() -> None:
    frechet = compare_features(features(60, 4, 0), features(101, 4, 1), None, features="f", num_resamples=10)[0]
    assert frechet.num_floor == (50, 51)
    assert frechet.floor.low < 0.2


def test_too_few_images_for_the_features_are_said() -> None:
    few = compare_features(features(30, 20, 0), features(35, 20, 1), None, features="f", num_resamples=10)[0]
    assert "30 images are fewer than 2 times the 20 features" in few.caution
    assert str(few).endswith(few.caution)
    more = compare_features(features(50, 20, 0), features(60, 20, 1), None, features="f", num_resamples=10)[0]
    assert "60 real images are fewer than 4 times the 20 features" in more.caution
    train = features(100, 20, 2)
    assert (
        compare_features(features(50, 20, 0), features(60, 20, 1), train, features="f", num_resamples=10)[0].caution
        == ""
    )


def test_a_share_of_all_or_none_is_not_certain() -> None:
    whole = features(60, 4, 0)
    _, all_of_it = compare_precision(whole, whole, num_resamples=10, seed=0)
    _, none = compare_precision(whole, whole + 100, num_resamples=10, seed=0)
    exact = stats.binomtest(60, 60).proportion_ci(0.95, method="exact")
    assert (all_of_it.low, all_of_it.high) == (pytest.approx(exact.low), 1.0)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - exact.low))


def test_features_that_do_not_fit_are_refused() -> None:
    good = features(20, 4, 0)
    with pytest.raises(ValueError, match=r"\(20, 5\) and \(20, 4\); both must be .* with the same D"):
        compare_features(features(20, 5, 0), good, None, features="f")
    with pytest.raises(ValueError, match="7 images are too few"):
        compare_features(good[:7], good, None, features="f")
    with pytest.raises(ValueError, match="features of 1 of 20 images are not finite"):
        compare_features(np.where(np.arange(20)[:, None] == 3, np.nan, good), good, None, features="f")


def test_the_seed_decides_the_intervals() -> None:
    sets = features(40, 4, 0), features(50, 4, 1), features(60, 4, 2)
    first, again, other = (compare_features(*sets, features="f", num_resamples=10, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
