"""Explanations of held-out images: simulated systems are drawn again as they were, and marked where they are."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_blobs

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.evaluation.explanations import Kind, Map
from deeplense.evaluation.plots import Marks, figure
from deeplense.simulation.images import NOISE, expose, image_generator, render
from deeplense.simulation.populations import ModelName, Population, Preset, System, default_mass_slope
from jobs.evaluate.explain import Explained, explanation_plots, first_of_each, marks_of, substructure, systems_of
from jobs.simulate.settings import Settings
from jobs.simulate.work import make_samples, schema_of

SEED = 3


def population_of(model: ModelName, preset: Preset) -> Population:
    """A population with the mass function that it has by default."""
    return Population(model, preset, default_mass_slope(preset))


def simulated(
    folder: Path, model: ModelName, preset: Preset, *, split: str = "test", told: Mapping[str, Any] | None = None
) -> Split:
    """A split of six images as `deeplense simulate` writes it; `told` is what its provenance wrongly says."""
    settings = Settings(output=folder, model=model, preset=preset, num_per_class=2, split=split, seed=SEED)
    population = population_of(model, preset)
    schema = schema_of(settings, population)
    schema = replace(schema, provenance={**schema.provenance, **(told or {})})
    list(build(folder / split, schema, partial(make_samples, population=population, seed=SEED, split=split)))
    return Split(folder / split)


@pytest.mark.parametrize("model", ["Model_I", "Model_II", "Model_III"])
@pytest.mark.parametrize("preset", ["published", "noisy", "physical"])
def test_a_system_that_is_drawn_again_gives_the_very_image_in_the_shard(
    model: ModelName, preset: Preset, tmp_path: Path
) -> None:
    split, indices = simulated(tmp_path, model, preset), np.array([5, 0, 4])
    systems = [system for system in systems_of(split, indices) if system is not None]
    assert [system.label for system in systems] == [2, 0, 1]
    clean = render(systems, population=population_of(model, preset), dtype=torch.float32)
    generators = [image_generator(SEED, "test", int(i), NOISE) for i in indices]
    images = expose(clean, systems, generators, population=population_of(model, preset))
    assert images.tobytes() == split.images(indices)[:, 0].tobytes()


@pytest.mark.parametrize("told", [{"seed": SEED + 1}, {"preset": "physical"}, {"mass_slope": -1.5}])
def test_a_provenance_that_does_not_give_the_stored_truth_marks_nothing_where_it_differs(
    told: Mapping[str, Any], tmp_path: Path
) -> None:
    split = simulated(tmp_path, "Model_III", "noisy", told=told)
    marks = marks_of(split, np.arange(6))
    subhaloes = [marks[1], marks[4]]
    assert subhaloes == [None, None]
    if "seed" in told:
        assert marks == [None] * 6


def test_samples_of_several_simulated_data_sets_are_told_apart_and_others_are_not_marked(tmp_path: Path) -> None:
    simulated(tmp_path / "one", "Model_III", "noisy")
    simulated(tmp_path / "two", "Model_III", "physical")
    both = Split(tmp_path / "one" / "test", tmp_path / "two" / "test")
    first, second = systems_of(both, np.array([1, 7]))
    assert first is not None
    assert second is not None
    assert len(first.point_x) == 25
    assert first.theta_E != second.theta_E
    write_blobs(tmp_path / "blobs", "test", 6)
    assert marks_of(Split(tmp_path / "blobs" / "test"), np.arange(3)) == [None] * 3


def test_a_mark_is_where_the_subhalo_changes_the_image(tmp_path: Path) -> None:
    split, population = simulated(tmp_path, "Model_III", "physical"), population_of("Model_III", "physical")
    smooth = System(0, 0.05, -0.1, theta_E=population.einstein_radius(1e12), gamma1=0.05, exposure_s=1.0)
    radius = population.einstein_radius(1e10)
    place = {"point_x": np.array([-0.8, 1.9]) * smooth.theta_E, "point_y": np.array([0.6, 0.2]) * smooth.theta_E}
    lumpy = replace(smooth, label=1, point_theta_E=np.array([radius, radius / 1e3]), **place)
    with_it, without = render([lumpy, smooth], population=population, dtype=torch.float64)
    row, column = divmod(int((with_it - without).abs().argmax()), 64)
    marks = substructure(lumpy, split.schema)
    x, y, pixels = marks.circles[0]
    assert np.hypot(column + 0.5 - x, row + 0.5 - y) < 3
    assert min(np.hypot(column + 0.5 - y, row + 0.5 - x), np.hypot(63.5 - column - x, row + 0.5 - y)) > 8
    scale = split.schema.pixel_scale_arcsec
    assert scale is not None
    assert pixels == pytest.approx(radius / scale)
    assert marks.circles[1, 2] == 1
    assert len(marks.lines) == 0


def test_the_heaviest_subhaloes_are_marked_and_a_vortex_from_end_to_end(tmp_path: Path) -> None:
    points, line = simulated(tmp_path / "a", "Model_III", "published"), simulated(tmp_path / "b", "Model_III", "noisy")
    for k in (1, 4):
        (marks,), (system,) = marks_of(points, np.array([k])), systems_of(points, np.array([k]))
        assert marks is not None
        assert system is not None
        assert len(marks.circles) == 5
        assert system.point_theta_E[np.isin(system.point_theta_E, np.sort(system.point_theta_E)[-5:])].size == 5
    for k in (2, 5):
        (by_points,), (by_line,) = marks_of(points, np.array([k])), marks_of(line, np.array([k]))
        assert by_points is not None
        assert by_line is not None
        np.testing.assert_allclose(by_points.lines, by_line.lines)
        assert len(by_line.circles) == 0
    (nothing,) = marks_of(line, np.array([0]))
    assert nothing is not None
    assert len(nothing.circles) == len(nothing.lines) == 0


def test_the_first_of_each_class_are_chosen_in_turn() -> None:
    labels = np.array([2, 2, 0, 0, 0, 1, 2])
    assert first_of_each(labels, 5).tolist() == [2, 5, 0, 3, 1]
    assert first_of_each(labels, 100).tolist() == [2, 5, 0, 3, 1, 4, 6]
    assert first_of_each(labels, 0).tolist() == []


def made_up(kinds: list[tuple[str, Kind, int]], *, num_images: int = 5) -> Explained:
    """An explanation with such maps."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(num_images, 2, 16, 16)).astype(np.float32)
    marks = [None, Marks(np.array([[3.0, 4.0, 1.0]]), np.array([[1.0, 2.0, 30.0, 14.0]])), None, None, None]
    maps = [Map(name, kind, torch.rand(num_images, 16, 16), side) for name, kind, side in kinds]
    return Explained(images, ["a title"] * num_images, "the predicted class", maps, marks[:num_images])


LAYERS: list[tuple[str, Kind, int]] = [(f"blocks.{k}.attn", "layer", side) for k, side in enumerate((8, 4, 2))]


@pytest.mark.parametrize(
    ("kinds", "names", "panels"),
    [
        ([], [], []),
        ([("Grad-CAM", "grad_cam", 4)], ["explanations"], ["Grad-CAM"]),
        ([*LAYERS, ("Grad-CAM", "grad_cam", 4)], ["explanations", "layers"], ["blocks.1.attn", "Grad-CAM"]),
        ([("attention rollout", "rollout", 8), *LAYERS], ["explanations", "layers"], ["attention rollout"]),
    ],
)
def test_figures_show_the_rollout_or_the_last_layer_that_is_not_coarse(
    kinds: list[tuple[str, Kind, int]], names: list[str], panels: list[str], tmp_path: Path
) -> None:
    found = explanation_plots(made_up(kinds))
    assert [plot.name for plot in found] == names
    for plot in found:
        figure(tmp_path / "figure.png", plot.draw, size=plot.size)
    if found:
        assert isinstance(found[0].draw, partial)
        assert list(found[0].draw.keywords["maps"]) == panels
        assert ("no attention" in found[0].caption) == (panels == ["Grad-CAM"])
