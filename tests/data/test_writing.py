"""What is written is what was given: no precision is lost silently, and what is no label, target or name is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplense.data.dataset import Split
from deeplense.data.shards import Samples
from tests.data.made_up import SCHEMA, made, samples

ONE = replace(SCHEMA, num_samples=64, shape=(1, 24, 24), bands=("r",))
NOISE = np.random.default_rng(3).normal(size=(1, 24, 24))
PEAK = np.zeros((1, 24, 24))
PEAK[0, 12, 12] = 1


def with_image(image: np.ndarray) -> Callable[[range], Samples]:
    """Samples of which the sixth has this image, and the others nothing."""

    def make(rows: range) -> Samples:
        images = np.stack([image] * len(rows))
        images[np.arange(len(rows)) != 5] = 0
        return replace(samples(rows), images=images)

    return make


LOST: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
    "noise on a huge background": (1e9 + 0.3 * NOISE, "float32", {}),
    "noise on a huge negative background": (-1e9 + 0.3 * NOISE, "float32", {}),
    "the same beside a hot pixel": (1e9 + 0.3 * NOISE + 1e12 * PEAK, "float32", {}),
    "a faint image": (1e-46 * NOISE, "float32", {}),
    "an image of few bits": (3e-44 * NOISE, "float32", {}),
    "whole numbers of 31 bits": ((2**30 + 5 * NOISE).astype(np.int64), "float32", {}),
    "whole numbers of 31 bits, stored whole": ((2**30 + 5 * NOISE).astype(np.int64), "int32", {}),
    "whole numbers with a huge zero": ((100 * NOISE).astype(np.int64), "int16", {"zero": 1e9, "scale": 0.1}),
    "counts of time": ((2**53 + 9 * NOISE).astype(np.int64), "float32", {}),
    "noise on a background in float16": (4000 + 3 * NOISE.astype("f4"), "float16", {}),
    "a faint image in float16": (1e-7 * NOISE.astype("f4"), "float16", {}),
}
KEPT: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
    "noise on a background": (1000 + 0.3 * NOISE, "float32", {}),
    "noise in another unit": (1e-30 * NOISE, "float32", {}),
    "a constant": (np.full((1, 24, 24), 0.1), "float32", {}),
    "a huge constant": (np.full((1, 24, 24), 1e9 + 0.3), "float32", {}),
    "a constant but for what float64 rounds": (0.1 * (1 + 1e-15 * NOISE), "float32", {}),
    "nothing": (np.zeros((1, 24, 24)), "float32", {}),
    "one bright pixel": (1e6 * PEAK + NOISE, "float32", {}),
    "whole numbers": ((1000 * NOISE).astype(np.int64), "float32", {}),
    "whole numbers of 31 bits that differ much": ((2**20 * NOISE).astype(np.int64), "int32", {}),
    "whole numbers with scale and zero": ((100 * NOISE).astype(np.int64), "int16", {"zero": 1e3, "scale": 0.1}),
    "noise in float16": (NOISE.astype("f4"), "float16", {}),
    "noise on a small background in float16": ((2 + NOISE).astype("f4"), "float16", {}),
    "a bright star in float16": ((3e4 * PEAK + NOISE).astype("f4"), "float16", {}),
    "a constant in float16": (np.full((1, 24, 24), 0.1), "float16", {}),
}


@pytest.mark.parametrize("kind", LOST)
def test_an_image_that_would_lose_what_it_shows_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    image, dtype, options = LOST[kind]
    with pytest.raises(ValueError, match=r"id5: the image loses its contrast as float.*subtract the background"):
        made(tmp_path / "train", replace(ONE, dtype=dtype, **options), with_image(image))
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("kind", KEPT)
def test_an_image_that_keeps_what_it_shows_is_stored_and_read_as_given(tmp_path: Path, kind: str) -> None:
    image, dtype, options = KEPT[kind]
    made(tmp_path / "train", replace(ONE, dtype=dtype, **options), with_image(image))
    found = Split(tmp_path / "train").images(np.array([5]))[0]
    exact = image * options.get("scale", 1.0) + options.get("zero", 0.0)
    far = np.abs(exact - np.median(exact)).max()
    assert np.abs(found - exact).max() <= max(1e-3 * far, 1e-3 * np.abs(exact).max() * (far < 1e-9))


def at(place: int, values: np.ndarray, value: Any) -> np.ndarray:
    """The same values with another at one place."""
    changed = values.astype(np.result_type(values, type(value)) if not isinstance(value, str) else object)
    changed[place] = value
    return changed


BAD: dict[str, tuple[Callable[[Samples], Samples], str]] = {
    "labels of floats": (lambda good: replace(good, labels=good.labels + 0.5), "id0: label 0.5 .*give integers"),
    "labels that are whole floats": (
        lambda good: replace(good, labels=good.labels * 1.0),
        "id0: label 0.0 .*give integers",
    ),
    "labels of truth": (lambda good: replace(good, labels=good.labels > 0), "id0: label False .*give integers"),
    "labels of text": (lambda good: replace(good, labels=good.labels.astype(str)), "id0: label 0 .*give integers"),
    "a huge label": (
        lambda good: replace(good, labels=at(7, good.labels, 2**40)),
        "id7: label 1099511627776 is not a number of the classes",
    ),
    "one-hot labels": (lambda good: replace(good, labels=np.eye(2)[good.labels]), r"label: the shape is \(64, 2\)"),
    "labels in a column": (lambda good: replace(good, labels=good.labels[:, None]), r"label: the shape is \(64, 1\)"),
    "too few labels": (lambda good: replace(good, labels=good.labels[1:]), r"label: the shape is \(63,\)"),
    "an infinite target": (lambda good: target(good, at(7, good.targets["mass"], np.inf)), "id7: has an infinite mass"),
    "a target of minus infinity": (lambda good: target(good, at(7, good.targets["mass"], -np.inf)), "id7: has an inf"),
    "a complex target": (lambda good: target(good, good.targets["mass"] * 1j), "id0: target mass .*give real numbers"),
    "a target of text": (
        lambda good: target(good, good.targets["mass"].astype(str)),
        "id0: target mass .*give real numbers",
    ),
    "too few targets": (
        lambda good: target(good, good.targets["mass"][1:]),
        "target mass: give one value for each of 64",
    ),
    "no target": (lambda good: replace(good, targets={}), "target mass: give one value for each of 64"),
    "complex images": (lambda good: replace(good, images=good.images + 0j), "type complex64; convert them to numbers"),
    "images of objects": (
        lambda good: replace(good, images=good.images.astype(object)),
        "type object; convert them to numbers",
    ),
    "images of text": (
        lambda good: replace(good, images=good.images.astype("U9")),
        "type <U9; convert them to numbers",
    ),
    "a pixel whose square float32 cannot hold": (
        lambda good: replace(good, images=at(7, good.images, np.float32(2e18))),
        r"id7: has pixels above 1e\+18, too large to compute with",
    ),
    "a name of two lines": (
        lambda good: replace(good, ids=["a\nb", *good.ids[1:]]),
        r"'a\\nb' is not a valid sample name",
    ),
    "an empty name": (lambda good: replace(good, ids=["", *good.ids[1:]]), "'' is not a valid sample name"),
    "a name of half a letter": (
        lambda good: replace(good, ids=["\udcff", *good.ids[1:]]),
        r"'\\udcff' is not a valid sample name",
    ),
    "a name of 5 kB": (lambda good: replace(good, ids=["x" * 5000, *good.ids[1:]]), "is not a valid sample name"),
    "a number as name": (lambda good: replace(good, ids=[3, *good.ids[1:]]), "'3' is not a valid sample name"),  # type: ignore[list-item]
    "sources of floats": (lambda good: replace(good, source_index=good.source_index + 0.5), "source_index 0.5"),
}


def target(good: Samples, values: np.ndarray) -> Samples:
    return replace(good, targets={"mass": values})


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_label_target_image_or_name_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    spoil, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as caught:
        made(tmp_path / "train", replace(SCHEMA, num_samples=64), lambda rows: spoil(samples(rows)))
    assert str(caught.value).isprintable()
    assert not (tmp_path / "train").exists()


def test_an_unknown_target_is_stored_as_such(tmp_path: Path) -> None:
    made(tmp_path, replace(SCHEMA, num_samples=64), lambda rows: target(samples(rows), np.full(64, np.nan)))
    assert np.isnan(Split(tmp_path).column("target/mass")).all()


@pytest.mark.parametrize("shape", [(1, 0, 0), (0, 8, 8), (1, 8), (1, 8, -8), (1.0, 8, 8)])
def test_images_of_no_pixels_are_no_schema(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"shape=.* must be three integers above 0"):
        replace(SCHEMA, shape=shape)
