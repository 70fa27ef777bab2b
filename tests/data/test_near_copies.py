"""Near copies: each planted kind is found, and lenses that merely look alike, or are seen twice, are not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from deeplense.data.alignment import align, phase_images, turned, turns_of
from deeplense.data.building import build
from deeplense.data.copies import Copy, find_copy, worth_a_look
from deeplense.data.dataset import Split
from deeplense.data.fingerprints import fingerprints, likely_pairs
from deeplense.data.near_copies import Pair, Searched, group_numbers, near_copies
from deeplense.data.shards import Samples, Schema
from deeplense.simulation.images import PARAMETERS, expose, image_generator, render, simulate
from deeplense.simulation.populations import CLASSES, Preset, draw_system
from tests.conftest import population

NUM_LENSES = 60
PRESETS: tuple[Preset, ...] = ("noisy", "published", "physical")


@pytest.fixture(scope="module")
def lenses() -> dict[str, np.ndarray]:
    """Lenses of each preset, (n, 1, 64, 64)."""
    return {
        preset: simulate(range(NUM_LENSES), population=population("Model_III", preset), seed=0, split="train").images[
            :, None
        ]
        for preset in PRESETS
    }


def found(first: np.ndarray, second: np.ndarray) -> Copy | None:
    """What is found of a pair of images (C, H, W)."""
    aligned = align(phase_images(np.stack([first, second])), np.array([0]), np.array([1]))
    if not worth_a_look(first[None], second[None], aligned)[0]:
        return None
    return find_copy(first, second, int(aligned.turn[0]), (int(aligned.shift[0, 0]), int(aligned.shift[0, 1])))


def with_pixels(image: np.ndarray) -> np.ndarray:
    changed = image.copy()
    places = np.random.default_rng(1).choice(image.size, 5, replace=False)
    changed.reshape(-1)[places] += 1
    return changed


def with_noise(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=image.shape)
    return (image + 0.002 * image.max() * noise).astype(np.float32)


def emptied_edge(image: np.ndarray) -> np.ndarray:
    moved = np.zeros_like(image)
    moved[:, 2:, :-1] = image[:, :-2, 1:]
    return moved


def between_pixels(image: np.ndarray) -> np.ndarray:
    return np.stack([scipy.ndimage.shift(band, (0.3, -0.2), order=1, mode="nearest") for band in image])


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "turn 90": (lambda image: turned(image, 1), "turned by 90 degrees"),
    "turn 180": (lambda image: turned(image, 2), "turned by 180 degrees"),
    "turn 270": (lambda image: turned(image, 3), "turned by 270 degrees"),
    "flip": (lambda image: turned(image, 4), "flipped left to right"),
    "transpose": (lambda image: image.swapaxes(-2, -1), "mirrored along the other diagonal"),
    "flux": (lambda image: image * np.float32(1.1), "times 1.1"),
    "shift": (lambda image: np.roll(image, (3, -4), axis=(-2, -1)), "shifted by (3, -4)"),
    "edge": (emptied_edge, "shifted by (2, -1)"),
    "part of a pixel": (between_pixels, "shifted by (0.3, -0.2)"),
    "pixels": (with_pixels, "slightly changed"),
    "noise": (with_noise, ""),
    "half precision": (lambda image: image.astype(np.float16).astype(np.float32), "slightly changed"),
    "background": (lambda image: image + np.float32(0.5), "slightly changed"),
    "all": (
        lambda image: with_pixels(np.roll(turned(image, 5), (1, 2), axis=(-2, -1)) * np.float32(0.7)),
        "mirrored along one diagonal, shifted by (1, 2), times 0.7",
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_copy_is_found_and_named(lenses: dict[str, np.ndarray], preset: str, name: str) -> None:
    change, said = CHANGES[name]
    for image in lenses[preset][:6]:
        copy = found(image, change(image))
        assert copy is not None
        assert said in str(copy)
        assert copy.correlation > 0.9


@pytest.mark.parametrize("preset", PRESETS)
def test_a_copy_is_among_the_likely_pairs_and_different_lenses_are_no_copies(
    lenses: dict[str, np.ndarray], preset: str
) -> None:
    images = lenses[preset]
    copies = np.stack([change(image) for (change, _), image in zip(CHANGES.values(), images, strict=False)])
    likely = likely_pairs(fingerprints(np.concatenate([images, copies])), neighbours=(3, 4))
    planted = {(k, len(images) + k) for k in range(len(copies))}
    assert planted <= set(map(tuple, likely.tolist()))
    others = likely[likely[:, 1] < len(images)]
    assert len(others) > 50
    assert [found(images[a], images[b]) for a, b in others] == [None] * len(others)


def test_two_exposures_of_one_lens_are_no_copies_nor_is_a_lens_whose_source_moved_by_a_tenth_of_a_pixel() -> None:
    noisy = population("Model_III", "noisy")
    system = draw_system(noisy, 0, image_generator(0, "train", 0, PARAMETERS))
    near = replace(system, source_x=system.source_x + 0.008)
    clean = render([system, near], population=noisy, dtype=torch.float64)
    generators = [image_generator(0, "train", k, 1) for k in (0, 1)]
    twice = expose(clean[[0, 0]], [system, system], generators, population=noisy)[:, None]
    assert found(twice[0], twice[1]) is None
    assert np.corrcoef(twice[0].ravel(), twice[1].ravel())[0, 1] > 0.99
    pair = clean.numpy()[:, None].astype(np.float32)
    assert found(pair[0], pair[1]) is None
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 48, 40), (2, 33, 33), (1, 16, 16)])
def test_copies_of_pure_noise_are_found_whatever_the_shape_and_the_number_of_bands(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    for turn in turns_of(shape):
        copy = found(images[0], 3 * turned(images[0], turn) + 7)
        assert copy is not None
        assert copy.turn == turn
        assert copy.factor == pytest.approx(3)
    assert [found(images[0], other) for other in images[1:]] == [None] * 19


def test_whole_numbers_of_eight_bits_and_constant_images_are_no_trouble() -> None:
    generator = np.random.default_rng(0)
    images = np.clip(generator.normal(90, 40, size=(2, 3, 32, 32)), 0, 255).round().astype(np.float32)
    assert found(images[0], turned(images[0], 3)) is not None
    assert found(images[0], images[1]) is None
    flat = np.full_like(images[0], 7)
    assert found(flat, images[0]) is None
    assert found(flat, flat + 1) is None
    same = found(flat, flat)
    assert same is not None
    assert same.equal


def made(folder: Path, images: np.ndarray, *, labels: np.ndarray, classes: tuple[str, ...] = CLASSES) -> None:
    """A split of these images."""
    schema = Schema(
        split=folder.name,
        num_samples=len(images),
        shape=images.shape[1:],
        dtype="float32",
        bands=("r",),
        unit="",
        pixel_scale_arcsec=None,
        classes=classes,
    )

    def make(rows: range) -> Samples:
        some = slice(rows.start, rows.stop)
        ids = [f"{folder.name}{k}" for k in rows]
        return Samples(images[some], labels[some], {}, ids, np.arange(rows.start, rows.stop))

    list(build(folder, schema, make))


@pytest.fixture
def planted(tmp_path: Path, lenses: dict[str, np.ndarray]) -> Path:
    """40 lenses to train on, and 20 others to test on, of which one is a turned one of them, with another label; two
    training images are one but for a factor."""
    images, labels = lenses["noisy"], np.arange(NUM_LENSES) % 3
    train, test = images[:40].copy(), images[40:].copy()
    train[30] = 2 * train[9]
    test[5] = turned(train[7], 1)
    made(tmp_path / "data" / "train", train, labels=labels[:40])
    made(tmp_path / "data" / "test", test, labels=labels[40:])
    return tmp_path / "data"


def test_copies_are_found_within_and_across_splits_with_their_labels(planted: Path) -> None:
    searched = Searched([Split(planted / name) for name in ("test", "train")])
    pairs = near_copies(searched)
    assert [(searched.ids[pair.first], searched.ids[pair.second]) for pair in pairs] == [
        ("test5", "train7"),
        ("train9", "train30"),
    ]
    assert [str(pair.copy) for pair in pairs] == ["turned by 270 degrees", "times 2"]
    assert [searched.crosses(pair) for pair in pairs] == [True, False]
    assert [searched.contradicts(pair) for pair in pairs] == [True, False]


def test_several_processes_find_the_same_and_small_images_are_refused(planted: Path, tmp_path: Path) -> None:
    searched = Searched([Split(planted / name) for name in ("test", "train")])
    assert near_copies(searched, num_workers=2) == near_copies(searched)
    made(tmp_path / "tiny" / "train", np.zeros((3, 1, 8, 8), np.float32), labels=np.zeros(3, int))
    with pytest.raises(ValueError, match="8 x 8 pixels are too small; near copies need at least 16 x 16"):
        near_copies(Searched([Split(tmp_path / "tiny" / "train")]))


def test_what_is_a_copy_of_a_copy_is_in_the_same_group() -> None:
    copy = Copy(turn=0, shift=(0, 0), factor=1, correlation=1)
    pairs = [Pair(1, 5, copy), Pair(2, 9, copy), Pair(5, 7, copy)]
    first, second, third = group_numbers(pairs)
    assert first == third != second
    assert {first, second} == {1, 2}


def test_a_faint_star_is_no_copy_of_a_bright_one() -> None:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48] - 23.5
    star = np.exp(-(y**2 + x**2) / 8)
    bright, faint = (flux * star + generator.normal(size=star.shape) for flux in (3e4, 1e3))
    assert found(bright[None].astype(np.float32), faint[None].astype(np.float32)) is None
    assert found(faint[None].astype(np.float32), bright[None].astype(np.float32)) is None


def test_noise_added_to_an_image_without_noise_is_seen_through(lenses: dict[str, np.ndarray]) -> None:
    for image in lenses["published"][:6]:
        noise = 0.02 * image.max() * np.random.default_rng(1).normal(size=image.shape)
        assert found(image, (image + noise).astype(np.float32)) is not None


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_unit_of_the_pixels_may_be_any(factor: float) -> None:
    images = np.random.default_rng(0).normal(size=(2, 1, 32, 32))
    one, two = (np.float32(factor) * images).astype(np.float32)
    assert found(one, turned(one, 1)) is not None
    assert found(one, two) is None
    assert np.allclose(fingerprints(one[None]).detail, fingerprints(images[:1]).detail, atol=1e-2)
    beyond = np.where(images[:1] > 2.5, np.finfo(np.float32).max, images[:1]).astype(np.float32)
    assert np.isfinite(fingerprints(beyond).detail).all()
    assert found(beyond[0], turned(beyond[0], 1)) is not None


def test_of_lenses_alike_under_noise_only_the_nearest_is_the_original(tmp_path: Path) -> None:
    published = population("Model_III", "published")
    system = draw_system(published, 0, image_generator(0, "train", 0, PARAMETERS))
    alike = [replace(system, source_x=system.source_x + 0.002 * k) for k in range(3)]
    clean = render(alike, population=published, dtype=torch.float64).numpy()[:, None].astype(np.float32)
    noisy = clean[1] + 0.02 * clean.max() * np.random.default_rng(1).normal(size=clean[1].shape).astype(np.float32)
    assert [found(image, noisy) is not None for image in clean] == [True] * 3
    images = np.stack([*clean, noisy, turned(clean[1], 2)])
    made(tmp_path / "data" / "train", images, labels=np.zeros(5, int))
    pairs = near_copies(Searched([Split(tmp_path / "data" / "train")]))
    assert [(pair.first, pair.second) for pair in pairs] == [(1, 3), (1, 4), (3, 4)]
