"""The replay itself: on images whose answer is in their features, or is not, or changes from one half to the other."""

from pathlib import Path

import numpy as np
import pytest

from tests.candidates.replay import BETWEEN, Known, found_in, halves, looks, read_space_warps, ring_features


def made(count: int = 400, *, signal: float, seed: int = 0, width: int = 4) -> Known:
    """Images of which every fifth is a lens; the first of their features says so."""
    random = np.random.default_rng(seed)
    lens = np.arange(count) % 5 == 0
    features = random.normal(size=(count, width))
    features[:, 0] += signal * lens
    return Known(features, lens, np.arange(count) // 2)


@pytest.mark.parametrize("feed_back", [True, False])
def test_each_image_is_looked_at_once_and_lenses_first_if_the_features_tell_them(feed_back: bool) -> None:
    for signal in (100.0, 0.0):
        known = made(signal=signal)
        train, pool = halves(known, fraction=0.5, seed=1)
        seen = looks(known, train, pool, feed_back=feed_back)
        assert sorted(seen) == sorted(pool)
        found, in_pool = found_in(known, seen)[0], known.lens[pool].sum()
        # By chance 12 of 50 looks are lenses, with a standard deviation of 2.6.
        assert (found == in_pool) if signal else (4 <= found <= 20)


def test_the_first_looks_are_alike_and_grades_that_flow_back_help_a_classifier_that_saw_few_images() -> None:
    gains = []
    for seed in range(10):
        known = made(signal=2.0, width=30, seed=seed)
        train, pool = halves(known, fraction=0.05, seed=seed)
        alone, fed = (looks(known, train, pool, feed_back=feed_back) for feed_back in (False, True))
        np.testing.assert_array_equal(alone[:BETWEEN], fed[:BETWEEN])
        gains.append(found_in(known, fed)[1] - found_in(known, alone)[1])
    assert np.mean(gains) > 3 * np.std(gains) / np.sqrt(len(gains)) > 0


@pytest.mark.parametrize("fraction", [0.5, 0.1])
def test_no_object_is_in_both_halves_and_the_images_to_look_at_do_not_depend_on_the_fraction(fraction: float) -> None:
    known = made(signal=1.0)
    train, pool = halves(known, fraction=fraction, seed=3)
    assert set(known.objects[train]).isdisjoint(known.objects[pool])
    assert len(train) == round(fraction * 400)
    np.testing.assert_array_equal(pool, halves(known, fraction=0.5, seed=3)[1])


def test_features_do_not_change_when_an_image_is_turned_or_flipped() -> None:
    images = np.random.default_rng(0).uniform(0, 255, size=(2, 107, 107, 3))
    right = ring_features(images)
    for turned in (np.rot90(images, axes=(1, 2)), images[:, ::-1], images[:, :, ::-1]):
        np.testing.assert_allclose(ring_features(turned), right, rtol=1e-5, atol=1e-3)


def test_the_real_images_have_as_many_lenses_as_their_catalogue_says(public_data: Path) -> None:
    known = read_space_warps(public_data / "space_warps")
    assert (known.lens.sum(), len(known.lens)) == (91, 342)
    assert np.isfinite(known.features).all()
