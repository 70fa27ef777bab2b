"""Conformal sets: the coverage that is stated, for each class, also where classes are rarer."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import softmax

from deeplense.evaluation.conformal import cross_calibration, cross_sets, sets, thresholds


def classifier(fractions: tuple[float, ...], number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 3) of an overconfident classifier, and labels (N,)."""
    labels = rng.choice(3, size=number, p=fractions)
    return softmax(5 * (rng.normal(size=(number, 3)) + 1.5 * np.eye(3)[labels]), axis=1), labels


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_sets_contain_the_true_class_as_often_as_stated_whatever_the_class_fractions(coverage: float) -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        given, labels = classifier((0.4, 0.3, 0.3), 150, rng)
        least = thresholds(given, labels, coverage)
        asked, truth = classifier((0.9, 0.08, 0.02), 400, rng)
        found = sets(asked, least)[np.arange(400), truth]
        inside.append([found[truth == k].mean() if (truth == k).any() else np.nan for k in range(3)])
    reached = np.nanmean(inside, axis=0)
    assert (reached > coverage - 0.01).all()
    # With some 50 validation images of a class it is at most 1/51 more.
    assert (reached < coverage + 0.035).all()


def test_a_threshold_is_the_quantile_of_the_rank_of_vovk() -> None:
    given = np.stack([np.arange(1, 20) / 20, 1 - np.arange(1, 20) / 20], axis=1)
    # Of 19 images and a coverage of 0.9, the set must have the 18 of the highest probability.
    assert thresholds(given, np.zeros(19, dtype=int), 0.9).tolist() == [2 / 20, 0.0]
    assert thresholds(given[:8], np.zeros(8, dtype=int), 0.9).tolist() == [0.0, 0.0]


def test_a_coverage_out_of_range_is_refused() -> None:
    for coverage in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            thresholds(np.ones((1, 2)), np.zeros(1, dtype=int), coverage)
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            cross_calibration([([0], np.ones((1, 2)), np.zeros(1, dtype=int))], coverage)


def overfitted(images: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A linear classifier (of images (N, D), three classes) that knows its training images by heart."""
    weights = np.linalg.solve(images.T @ images + np.eye(images.shape[1]), images.T @ np.eye(3)[labels])
    return lambda given: softmax(6 * given @ weights, axis=1)


def blurred(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 31), of which three numbers tell the class, and labels."""
    labels = rng.choice(3, size=number, p=(0.4, 0.35, 0.25))
    images = np.c_[rng.normal(size=(number, 30)), np.ones(number)]
    images[:, :3] += 1.2 * np.eye(3)[labels]
    return images, labels


@pytest.mark.parametrize(("num_folds", "number"), [(2, 150), (5, 90), (5, 300)])
def test_networks_of_folds_reach_the_coverage_and_would_not_if_they_were_calibrated_on_their_own_images(
    num_folds: int, number: int
) -> None:
    rng, inside, leaky, sizes = np.random.default_rng(0), [], [], []
    for _ in range(120):
        (images, labels), (new, truth) = blurred(number, rng), blurred(300, rng)
        fold = np.arange(number) % num_folds
        networks = [overfitted(images[fold != k], labels[fold != k]) for k in range(num_folds)]
        groups = [([k], each(images[fold == k]), labels[fold == k]) for k, each in enumerate(networks)]
        asked = [each(new) for each in networks]
        found = cross_sets(asked, cross_calibration(groups, 0.9))
        inside.append([found[truth == k, k].mean() for k in range(3)])
        sizes.append(found.sum(axis=1).mean())
        own = np.mean([each(images) for each in networks], axis=0)
        leaky.append(sets(np.mean(asked, axis=0), thresholds(own, labels, 0.9))[np.arange(300), truth].mean())
    assert (np.mean(inside, axis=0) > 0.9 - 0.01).all()
    assert np.mean(leaky) < 0.85
    # Not by giving all classes to every image.
    assert np.mean(sizes) < 2.7


def test_images_that_all_networks_held_out_give_the_sets_of_one_threshold() -> None:
    rng = np.random.default_rng(0)
    for number in (5, 9, 60, 200):
        given, labels = classifier((0.4, 0.3, 0.3), number, rng)
        asked = [classifier((0.4, 0.3, 0.3), 400, rng)[0] for _ in range(2)]
        for coverage in (0.5, 0.8, 0.9):
            one = sets(np.mean(asked, axis=0), thresholds(given, labels, coverage))
            assert np.array_equal(cross_sets(asked, cross_calibration([([0, 1], given, labels)], coverage)), one)


def test_a_class_is_in_a_set_if_enough_images_of_all_groups_have_no_higher_probability() -> None:
    def rows(*first: float) -> np.ndarray:
        return np.array([[each, 1 - each] for each in first])

    groups = [([0], rows(0.5, 0.3), np.array([0, 0])), ([1, 2], rows(0.6, 0.2), np.array([0, 0]))]
    calibration = cross_calibration(groups, 0.4)
    # Of 4 images, 5 * 0.6 = 3 must not be above. There is no image of the second class.
    assert calibration.needed == [3, 0]
    asked = [rows(0.5, 0.5, 0.4, 0.9), rows(0.1, 0.0, 0.9, 0.1), rows(0.3, 0.3, 0.9, 0.1)]
    # In the group of two networks, their means are 0.2, 0.15, 0.9 and 0.1.
    assert cross_sets(asked, calibration).tolist() == [[True, True], [False, True], [True, True], [False, True]]


def test_only_as_many_probabilities_are_kept_as_can_matter() -> None:
    given, labels = classifier((0.4, 0.3, 0.3), 1000, np.random.default_rng(0))
    calibration = cross_calibration([([0], given[:500], labels[:500]), ([1], given[500:], labels[500:])], 0.95)
    for group in calibration.lowest:
        assert all(len(values) <= need for values, need in zip(group, calibration.needed, strict=True))
    assert sum(calibration.needed) == pytest.approx(50, abs=2)
