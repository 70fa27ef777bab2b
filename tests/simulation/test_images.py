"""Whole images: the public ones, lenstronomy's, what they are a function of, and their noise."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import population
from numpy.random import default_rng
from scipy.optimize import least_squares
from scipy.stats import kstest

from deeplense.simulation.images import (
    BATCH,
    PARAMETERS,
    expose_counts,
    image_generator,
    render,
    simulate,
)
from deeplense.simulation.populations import (
    CLASSES,
    ModelName,
    Population,
    Preset,
    System,
    draw_system,
    vortex_points,
)

MODELS, PRESETS = get_args(ModelName), get_args(Preset)


def systems_of(of: Population, name: str, count: int) -> list[System]:
    label = CLASSES.index(name)
    return [draw_system(of, label, image_generator(0, "test", i, PARAMETERS)) for i in range(count)]


def clean_image(system: System, of: Population) -> np.ndarray:
    return render([system], population=of, dtype=torch.float64)[0].numpy()


@pytest.mark.parametrize("name", ["nosub", "axion"])
def test_the_public_images_are_reproduced(name: str, public_data: Path) -> None:
    folder = public_data / "deeplensesim"
    fit = json.loads((folder / "fits.json").read_text())[f"model_III_{name}"]
    public = np.load(folder / fit["file"], allow_pickle=False).squeeze()
    of = population(preset="published")
    bare = systems_of(of, "no_sub", 1)[0]

    def difference(parameters: np.ndarray) -> np.ndarray:
        vortex: dict[str, Any] = vortex_points(of, *parameters[2:]) if len(parameters) > 2 else {}
        image = clean_image(replace(bare, source_x=parameters[0], source_y=parameters[1], **vortex), of)
        return (image / image.max() - public / public.max()).ravel()

    start = [*fit["source"], *(fit[key] for key in ("vortex_half_length_arcsec", "angle_rad") if key in fit)]
    refined = least_squares(difference, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale=1e-2)
    assert np.abs(refined.x - start).max() < 1e-6
    assert math.sqrt((refined.fun**2).mean()) < 1e-10


@pytest.fixture
def lenstronomy_image(monkeypatch: pytest.MonkeyPatch) -> Callable[[System, Population], np.ndarray]:
    """The oracle, less the core of 1e-10 arcsec that it gives to an SIE: alone it would make differences of 7e-10."""
    from lenstronomy.LensModel.Profiles.sie import SIE

    from jobs.benchmark.simulate import lenstronomy_image

    core = property(lambda self: 1e-16, lambda self, value: None)
    monkeypatch.setattr(SIE, "_s_scale", core, raising=False)
    return lenstronomy_image


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CLASSES)
def test_images_are_those_of_lenstronomy(
    model: ModelName, name: str, lenstronomy_image: Callable[[System, Population], np.ndarray]
) -> None:
    of = population(model, "published")
    for system in systems_of(of, name, 2):
        ours, theirs = clean_image(system, of), lenstronomy_image(system, of)
        assert np.abs(ours - theirs).max() < 1e-12 * theirs.max()


@pytest.mark.parametrize("model", MODELS)
def test_a_vortex_of_a_hundred_points_looks_much_like_its_line(
    model: ModelName, lenstronomy_image: Callable[[System, Population], np.ndarray]
) -> None:
    of = population(model, "noisy")
    system = min(systems_of(of, "axion", 5), key=lambda each: each.line_half_length)
    ours, theirs = clean_image(system, of), lenstronomy_image(system, of)
    without = clean_image(replace(system, line_half_length=0.0), of)
    assert np.abs(ours - theirs).mean() < 0.05 * np.abs(ours - without).mean()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_is_the_same_bytes_in_any_company(model: ModelName, preset: Preset) -> None:
    of = population(model, preset)

    def images(indices: list[int]) -> np.ndarray:
        return simulate(indices, population=of, seed=5, split="train").images

    numbers = [0, 1, 2, 3, 4, 5, 103, 1_000_001, *range(9, 9 + 3 * BATCH, 3)]
    together = images(numbers)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(images(numbers[::-1])[::-1], together)
    np.testing.assert_array_equal(np.concatenate([images(numbers[:3]), images(numbers[3:])]), together)
    for k in (1, 2, 6, -1):
        np.testing.assert_array_equal(images([numbers[k]])[0], together[k])


def test_an_image_is_the_same_bytes_from_another_process() -> None:
    program = (
        "import sys, hashlib, torch; torch.set_num_threads(1)\n"
        "from deeplense.simulation.images import simulate\n"
        "from deeplense.simulation.populations import Population\n"
        "of = Population('Model_I', 'noisy', -0.9)\n"
        "images = simulate([8, 1, 6], population=of, seed=5, split='val').images\n"
        "print(hashlib.sha256(images.tobytes()).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    images = simulate([8, 1, 6], population=population("Model_I"), seed=5, split="val").images
    assert told.strip() == hashlib.sha256(images.tobytes()).hexdigest()


def test_other_splits_seeds_and_numbers_give_other_images() -> None:
    def image(seed: int, split: str, index: int) -> bytes:
        return simulate([index], population=population(), seed=seed, split=split).images.tobytes()

    which = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 3), (3, "train", 0)]
    assert len({image(*each) for each in which}) == len(which)


def test_classes_take_turns() -> None:
    systems = simulate([0, 1, 2, 3, 100, 200], population=population(), seed=0, split="train").systems
    assert [system.label for system in systems] == [0, 1, 2, 0, 1, 2]
    assert [len(system.point_x) > 0 for system in systems] == [False, True, False, False, True, False]
    assert [system.line_half_length > 0 for system in systems] == [False, False, True, False, False, True]


@pytest.mark.parametrize("model", ["Model_II", "Model_III"])
def test_published_images_are_twice_the_noiseless_model(model: ModelName) -> None:
    of = population(model, "published")
    result = simulate(range(3), population=of, seed=0, split="train", dtype=torch.float64)
    clean = render(result.systems, population=of, dtype=torch.float64).numpy()
    np.testing.assert_array_equal(result.images, (2 * clean).astype(np.float32))


def residuals(model: ModelName, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """What noise added to some images, and the variance that it should have."""
    of = population(model, preset)
    result = simulate(range(60), population=of, seed=1, split="noise", dtype=torch.float64)
    clean = render(result.systems, population=of, dtype=torch.float64).numpy()
    return result.images - clean, of.survey.background_sigma**2 + clean / of.survey.total_exposure_s


def z_of_mean(scaled: np.ndarray) -> float:
    return float(scaled.mean() * math.sqrt(scaled.size))


def z_of_variance(scaled: np.ndarray) -> float:
    return float(((scaled**2).mean() - 1) * math.sqrt(scaled.size / 2))


@pytest.mark.parametrize("model", ["Model_II", "Model_III"])
@pytest.mark.parametrize("preset", ["noisy", "physical"])
def test_noise_has_the_variance_of_the_instrument_and_no_bias(model: ModelName, preset: Preset) -> None:
    residual, variance = residuals(model, preset)
    scaled = residual / np.sqrt(variance)
    bright = variance > np.quantile(variance, 0.95)
    for part in (scaled, scaled[bright], scaled[~bright]):
        assert abs(z_of_mean(part)) < 4
        assert abs(z_of_variance(part)) < 4
    assert kstest(scaled[::7].ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(scaled[:, :, 1:].ravel(), scaled[:, :, :-1].ravel())[0, 1]) < 4 / math.sqrt(scaled.size)


def test_a_wrong_variance_or_a_bias_of_noise_is_detected() -> None:
    residual, variance = residuals("Model_III", "noisy")
    bright = variance > np.quantile(variance, 0.95)
    background = variance.min()
    assert abs(z_of_variance(residual / np.sqrt(1.05 * variance))) > 4
    assert abs(z_of_variance((residual / np.sqrt(2 * variance - background))[bright])) > 4
    assert abs(z_of_mean((residual + 2e-4) / np.sqrt(variance))) > 4


def test_published_model_i_images_are_counts() -> None:
    images = simulate(range(6), population=population("Model_I", "published"), seed=0, split="train").images
    np.testing.assert_array_equal(images, np.rint(images))
    assert images.min() == 0
    assert images.max() > 100


def test_model_i_counts_have_the_variance_that_is_stated() -> None:
    image = np.full((200, 200), 0.05)
    noisy = expose_counts(image, 2000.0, default_rng(1), published=False)
    published = expose_counts(image, 2000.0, default_rng(1), published=True)
    mean = 0.05 * 2000.0
    for counts, variance in ((noisy, mean + 20.0**2), (published, 2 * mean + 20.0**2)):
        assert abs(z_of_mean((counts - mean) / math.sqrt(variance))) < 4
        assert abs(z_of_variance((counts - mean) / math.sqrt(variance))) < 4
    assert abs(z_of_variance((published - mean) / math.sqrt(mean + 20.0**2))) > 4
