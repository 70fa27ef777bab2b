"""Copies of training images are found, however they are turned, dimmed or noisy; new images are let through."""

import numpy as np
import pytest
from toy_lenses import blurred, normalised_one_by_one, toy_lenses

from deeplense.evaluation.memorisation import (
    Memorisation,
    memorisation,
    nearest,
    nearest_of,
    orientations,
    pooled_pixels,
    ratio_of_quantiles,
)
from deeplense.evaluation.metrics import Estimate


@pytest.fixture(scope="module")
def lenses() -> np.ndarray:
    """Many lenses of one population."""
    return toy_lenses(1500, 0)[0]


@pytest.fixture(scope="module")
def parts(lenses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New, held-out and training images."""
    return lenses[:200], lenses[200:400], lenses[400:800]


def random_features(images: np.ndarray) -> np.ndarray:
    """A layer of random filters and a nonlinearity, as an untrained network has."""
    filters = np.random.default_rng(9).normal(size=(images[0].size, 40)) / 10
    return np.tanh(images.reshape(len(images), -1) @ filters)


def test_new_images_pass_as_often_as_they_should(lenses: np.ndarray) -> None:
    generator, covered = np.random.default_rng(0), 0
    for seed in range(30):
        order = generator.permutation(len(lenses))
        found = memorisation(lenses[order[:150]], lenses[order[150:300]], lenses[order[300:600]], seed=seed)
        assert found.passed, found
        covered += found.median.low <= 1 <= found.median.high
    assert covered >= 26


def test_noisy_copies_are_refused_in_pixels_and_in_features(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, held_out, train = parts
    noise = np.random.default_rng(1).normal(scale=0.02, size=train.shape)
    copies = (train + noise)[::2]
    for describe in (pooled_pixels, random_features):
        found = memorisation(copies, held_out, train, describe=describe, space="the space")
        assert not found.passed
        assert found.median.high < 0.5
        assert "the space: distance to the nearest of 400 training images, as a ratio of 200 generated" in str(found)
        assert "Copies (gate 0.9): most images are closer" in str(found)
        np.testing.assert_array_equal(found.nearest, np.arange(0, 400, 2))


def test_a_few_copies_among_new_images_are_refused_by_the_lowest_hundredth(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    new, held_out, train = parts
    found = memorisation(np.concatenate([new[:180], train[:20]]), held_out, train)
    assert found.median.value > 0.9
    assert found.lowest.high < 0.1
    assert "some images are closer" in str(found)


def test_copies_that_are_turned_flipped_dimmed_and_on_another_background_are_found(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, held_out, train = parts
    for turned in orientations(train[:40]):
        found = nearest_of(0.3 * turned + 2, pooled_pixels(train), pooled_pixels)
        np.testing.assert_array_equal(found.indices, np.arange(40))
        assert found.relative.max() < 1e-5
    assert not memorisation(0.3 * orientations(train)[5] + 2, held_out, train).passed


def test_images_that_are_blurred_or_normalised_one_by_one_are_no_copies(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    new, held_out, train = parts
    for images in (blurred(new), normalised_one_by_one(new)):
        assert memorisation(images, held_out, train).passed


def test_there_are_eight_orientations_closed_under_turning() -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, 4, 4))
    all_eight = {turned.tobytes() for turned in orientations(image)}
    assert len(all_eight) == 8
    for turned in orientations(image):
        again = {twice.tobytes() for twice in orientations(turned)}
        assert again == all_eight


def test_the_distance_of_two_is_that_of_their_correlation() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 1, 1, 6, 6))
    means = [image.reshape(3, 2, 3, 2).mean(axis=(1, 3)).ravel() for image in (first, second)]
    correlation = np.corrcoef(*means)[0, 1]
    distance = np.linalg.norm(pooled_pixels(first) - pooled_pixels(second))
    assert distance == pytest.approx(np.sqrt(2 - 2 * correlation))


def test_held_out_images_that_were_trained_on_are_refused(parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    new, held_out, train = parts
    leaked = np.concatenate([held_out, orientations(train[:3])[6]])
    with pytest.raises(ValueError, match="3 of 203 held-out images are training images"):
        memorisation(new, leaked, train)
    with pytest.raises(ValueError, match="1 training images are too few"):
        memorisation(new, held_out, train[:1])


def test_a_ratio_of_quantiles_holds_the_truth_in_95_percent_of_cases() -> None:
    generator, covered = np.random.default_rng(0), 0
    for seed in range(200):
        first, second = generator.lognormal(0.2, 1, 100), generator.lognormal(0, 1, 150)
        estimate = ratio_of_quantiles(first, second, 0.5, seed=seed)
        covered += estimate.low <= np.exp(0.2) <= estimate.high
    assert 180 <= covered <= 199


def test_distances_are_in_units_of_those_of_the_fifty_nearest() -> None:
    known = np.arange(1.0, 201.0)[:, None]
    found = nearest([np.array([[0.0]]), np.array([[-7.0]])], known)
    assert found.relative == pytest.approx(1 / np.arange(1, 51).mean())
    assert found.indices == [0]
    few = nearest([np.array([[0.0]])], known[:4])
    assert few.relative == pytest.approx(1 / 2.5)


def test_either_ratio_can_refuse_the_lowest_hundredth_only_where_it_is_certain() -> None:
    def passed(median: float, low: float, high: float) -> bool:
        estimates = Estimate(median, median, median), Estimate((low + high) / 2, low, high)
        return Memorisation("f", *estimates, 0.9, 10, 10, 10, np.ones(10), np.arange(10)).passed

    assert passed(0.95, 0.7, 1.1)
    assert not passed(0.85, 0.7, 1.1)
    assert not passed(0.95, 0.3, 0.6)


def test_a_gate_may_be_another(parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found = memorisation(*parts, gate=1.5)
    assert isinstance(found, Memorisation)
    assert not found.passed
