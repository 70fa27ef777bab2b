"""Cosmology, instruments and what is drawn: astropy, published numbers, distributions."""

import math
from importlib import import_module
from typing import get_args

import numpy as np
import pytest
from conftest import population
from numpy.random import default_rng
from scipy.stats import chi2, kstest, poisson

from deeplense.simulation.cosmology import FlatCosmology, einstein_radius
from deeplense.simulation.images import PARAMETERS, image_generator
from deeplense.simulation.populations import (
    CLASSES,
    CONVENTION_COSMOLOGY,
    MASS_COSMOLOGY,
    NUM_SUBHALOS,
    ModelName,
    Population,
    Preset,
    System,
    draw_system,
    power_law_masses,
)
from deeplense.simulation.surveys import EUCLID_VIS, HST_F160W

MODELS, PRESETS = get_args(ModelName), get_args(Preset)


def draw(of: Population, name: str, count: int, seed: int = 0) -> list[System]:
    label = CLASSES.index(name)
    return [draw_system(of, label, image_generator(seed, "test", i, PARAMETERS)) for i in range(count)]


def power_law_cdf(masses: np.ndarray, slope: float) -> np.ndarray:
    """The distribution function of dN/dm ~ m^slope between 1e6 and 1e10, on its own."""
    e = slope + 1
    return np.log(masses / 1e6) / np.log(1e4) if e == 0 else (masses**e - 1e6**e) / (1e10**e - 1e6**e)


@pytest.mark.parametrize("ours", [MASS_COSMOLOGY, CONVENTION_COSMOLOGY])
@pytest.mark.parametrize("z", [0.01, 0.5, 1.0, 2.5, 9.0])
def test_distances_are_those_of_astropy(ours: FlatCosmology, z: float) -> None:
    theirs = import_module("astropy.cosmology").FlatLambdaCDM(ours.hubble, ours.matter)
    near, far = theirs.comoving_distance(z / 2).value, theirs.comoving_distance(z).value
    assert ours.comoving_distance(z) == pytest.approx(far, rel=1e-9)
    assert ours.lensing_efficiency(z / 2, z) == pytest.approx((far - near) / far, rel=1e-9)


@pytest.mark.parametrize("mass", [1e6, 3e10, 1e12])
def test_einstein_radii_are_those_of_astropy(mass: float) -> None:
    theirs = import_module("astropy.cosmology").FlatLambdaCDM(70, 0.3)
    constants, units = import_module("astropy.constants"), import_module("astropy.units")
    near, far = theirs.angular_diameter_distance(0.5), theirs.angular_diameter_distance(1.0)
    between = (theirs.comoving_distance(1.0) - theirs.comoving_distance(0.5)) / (1 + 1.0)
    squared = 4 * constants.G * mass * units.M_sun / constants.c**2 * between / (near * far)
    expected = (np.sqrt(squared.to(units.dimensionless_unscaled)) * units.rad).to_value(units.arcsec)
    ours = einstein_radius(mass, cosmology=MASS_COSMOLOGY, z_lens=0.5, z_source=1.0)
    assert ours == pytest.approx(expected, rel=1e-7)


def test_the_halo_has_the_published_and_the_physical_radius() -> None:
    assert population(preset="published").einstein_radius(1e12) == pytest.approx(1.2814905676, abs=2e-10)
    assert population(preset="noisy").einstein_radius(1e12) == pytest.approx(1.2814905676, abs=2e-10)
    assert population(preset="physical").einstein_radius(1e12) == pytest.approx(1.6645, abs=5e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_deflections_are_scaled_as_in_the_public_images(model: ModelName, preset: Preset) -> None:
    scaled = model != "Model_I" and preset != "physical"
    assert population(model, preset).deflection_scale == pytest.approx(0.6343147665739448 if scaled else 1.0, rel=1e-9)


def test_the_background_of_the_instruments_is_the_published_one() -> None:
    assert pytest.approx(0.00592, abs=5e-6) == HST_F160W.background_sigma
    assert pytest.approx(0.00587, abs=5e-6) == EUCLID_VIS.background_sigma


@pytest.mark.parametrize("slope", [-2.5, -1.9, -1.0, -0.9, 0.0, 1.0])
def test_masses_follow_their_power_law(slope: float) -> None:
    masses = power_law_masses(default_rng(1).uniform(size=5000), slope=slope, low=1e6, high=1e10)
    assert masses.min() >= 1e6
    assert masses.max() <= 1e10
    assert kstest(masses, lambda m: power_law_cdf(m, slope)).pvalue > 1e-3
    assert kstest(masses, lambda m: power_law_cdf(m, slope + 0.2)).pvalue < 1e-3


@pytest.mark.parametrize(("preset", "slope"), [("published", -0.9), ("noisy", -0.9), ("physical", -1.9)])
def test_drawn_subhalos_have_the_mass_function_that_is_stated(preset: Preset, slope: float) -> None:
    of = population(preset=preset)
    unit = math.sqrt(of.deflection_scale) * of.einstein_radius(1.0)
    systems = draw(of, "cdm", 300)
    masses = np.concatenate([(system.point_theta_E / unit) ** 2 for system in systems])
    assert kstest(masses, lambda m: power_law_cdf(m, slope)).pvalue > 1e-3
    assert kstest(masses, lambda m: power_law_cdf(m, -2.8 - slope)).pvalue < 1e-6
    for system in systems:
        assert system.substructure_mass == pytest.approx(((system.point_theta_E / unit) ** 2).sum())


def test_the_number_of_subhalos_is_fixed_but_in_physical_where_it_is_poisson() -> None:
    for preset in ("published", "noisy"):
        assert {len(system.point_x) for system in draw(population(preset=preset), "cdm", 20)} == {NUM_SUBHALOS}
    counts = np.array([len(system.point_x) for system in draw(population(preset="physical"), "cdm", 1000)])
    assert dispersion_is_poisson(counts)
    assert counts.mean() == pytest.approx(NUM_SUBHALOS, abs=4 * math.sqrt(NUM_SUBHALOS / 1000))
    assert not dispersion_is_poisson(np.full(1000, NUM_SUBHALOS))
    assert kstest(counts + default_rng(0).uniform(size=1000), continuous_poisson).pvalue > 1e-3


def dispersion_is_poisson(counts: np.ndarray) -> bool:
    """Whether the variance of counts is their mean, by the index of dispersion."""
    statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    return abs(float(chi2.cdf(statistic, len(counts) - 1)) - 0.5) < 0.4995


def continuous_poisson(values: np.ndarray) -> np.ndarray:
    """The distribution function of a Poisson number plus a uniform one."""
    whole = np.floor(values)
    return poisson.cdf(whole - 1, NUM_SUBHALOS) + (values - whole) * poisson.pmf(whole, NUM_SUBHALOS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CLASSES)
def test_the_axion_mass_is_a_number_for_axions_only(preset: Preset, name: str) -> None:
    masses = np.array([system.log10_axion_mass for system in draw(population(preset=preset), name, 50)])
    if name != "axion":
        assert np.isnan(masses).all()
    else:
        assert masses.min() >= -24
        assert masses.max() <= -22
        assert kstest(masses, "uniform", args=(-24, 2)).pvalue > 1e-3
        assert kstest(masses, "uniform", args=(-24, 4)).pvalue < 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_the_published_vortex_is_the_line_in_a_hundred_pieces(model: ModelName) -> None:
    (pieces,), (line,) = draw(population(model, "published"), "axion", 1), draw(population(model), "axion", 1)
    assert line.log10_axion_mass == pieces.log10_axion_mass
    assert line.line_half_length == pytest.approx(0.03 * 10 ** (-22 - line.log10_axion_mass))
    along = np.linspace(-line.line_half_length, line.line_half_length, 100)
    np.testing.assert_allclose(pieces.point_x, along * math.cos(line.line_angle))
    np.testing.assert_allclose(pieces.point_y, along * math.sin(line.line_angle))
    np.testing.assert_allclose(pieces.point_theta_E**2, line.line_theta_E**2 / 100)


def test_places_and_exposures_are_spread_as_stated() -> None:
    systems = draw(population("Model_I"), "cdm", 1000)
    x, y = (np.concatenate([getattr(system, name) for system in systems]) for name in ("point_x", "point_y"))
    drawn = {
        (0.25, 1.75): np.hypot(x, y),
        (-math.pi, 2 * math.pi): np.arctan2(y, x),
        (-0.35, 0.7): np.array([[system.source_x, system.source_y] for system in systems]).ravel(),
        (3.0, 0.5): np.log10([system.exposure_s for system in systems]),
    }
    for (low, width), values in drawn.items():
        assert kstest(values, "uniform", args=(low, width)).pvalue > 1e-3
        assert kstest(values, "uniform", args=(low - 0.1 * width, 1.2 * width)).pvalue < 1e-3


def test_the_host_of_the_public_models_is_weakened_by_the_redshift_convention() -> None:
    (system,) = draw(population(preset="published"), "no_sub", 1)
    assert system.theta_E == pytest.approx(0.8128684, abs=1e-7)
    assert system.gamma1 == pytest.approx(0.0317157, abs=1e-7)
