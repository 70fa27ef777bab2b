"""The parameters that are sampled for each image: lens, substructure and source, from a random generator of its own.

The recipe is that of DeepLenseSim (github.com/mwt5345/DeepLenseSim), read from its code and checked on its public
images.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator

from deeplense.choices import require_choice
from deeplense.simulation.cosmology import FlatCosmology, einstein_radius, published_einstein_radius
from deeplense.simulation.surveys import EUCLID_VIS, HST_F160W, Survey

ModelName = Literal["Model_I", "Model_II", "Model_III"]
Preset = Literal["published", "noisy", "physical"]
CLASSES = ("no_sub", "cdm", "axion")

Z_LENS, Z_SOURCE = 0.5, 1.0
MASS_COSMOLOGY = FlatCosmology(hubble=70.0, matter=0.3)
# SimAPI of the public Models II and III scales deflections as if they were given for a source at z = 2.5, in WMAP9.
CONVENTION_COSMOLOGY = FlatCosmology(hubble=69.7, matter=0.2814)
Z_CONVENTION = 2.5

HALO_MASS, VORTEX_MASS = 1e12, 3e10
SUBHALO_MASSES = (1e6, 1e10)
NUM_SUBHALOS = 25
NUM_VORTEX_POINTS = 100

# Model I has no instrument in the public code; its PSF, grid and noise are given as numbers.
MODEL_I = Survey(
    name="Model I",
    num_pixels=150,
    pixel_scale_arcsec=0.05,
    fwhm_arcsec=0.087,
    psf_truncation=3.0,
    exposure_s=1000.0,
    num_exposures=1,
    read_noise=0.0,
    sky_magnitude=None,
    magnitude_zero_point=0.0,
)
SURVEYS: dict[ModelName, Survey] = {"Model_I": MODEL_I, "Model_II": EUCLID_VIS, "Model_III": HST_F160W}


@dataclass(frozen=True)
class Population:
    """The distribution that lens systems are sampled from: a model under a preset.

    Args:
        model: `Model_I`, `Model_II` (Euclid VIS) or `Model_III` (HST WFC3 F160W).
        preset: `published` reproduces the public images, `noisy` adds realistic noise, `physical` has correct physics,
            too.
        mass_slope: beta in dN/dm ~ m^beta of the subhaloes; -0.9 in the public data, -1.9 in theory.

    Raises:
        ValueError: unknown model or preset.

    Example:
        >>> population = Population("Model_II", "physical", mass_slope=-1.9)
        >>> population.survey.name, population.deflection_scale
        ('Euclid VIS', 1.0)
    """

    model: ModelName
    preset: Preset
    mass_slope: float

    def __post_init__(self) -> None:
        require_choice("model", self.model, get_args(ModelName))
        require_choice("preset", self.preset, get_args(Preset))

    @property
    def survey(self) -> Survey:
        """The instrument of the model."""
        return SURVEYS[self.model]

    @property
    def physical(self) -> bool:
        """Whether Einstein radii and subhalo numbers follow physics rather than the public code."""
        return self.preset == "physical"

    @property
    def deflection_scale(self) -> float:
        """Factor on all deflections in the public Models II and III, due to their redshift convention (0.6343)."""
        if self.physical or self.model == "Model_I":
            return 1.0
        efficiency = CONVENTION_COSMOLOGY.lensing_efficiency
        return efficiency(Z_LENS, Z_SOURCE) / efficiency(Z_LENS, Z_CONVENTION)

    def einstein_radius(self, mass_msun: float) -> float:
        """Return the Einstein radius of a mass at z = 0.5 for a source at z = 1 in arcsec, before
        `deflection_scale`."""
        radius = einstein_radius if self.physical else published_einstein_radius
        return radius(mass_msun, cosmology=MASS_COSMOLOGY, z_lens=Z_LENS, z_source=Z_SOURCE)


def default_mass_slope(preset: Preset) -> float:
    """Return the default mass slope: -1.9 (theory) for `physical`, -0.9 (the public images) for the other presets.

    Raises:
        ValueError: unknown preset.

    Example:
        >>> default_mass_slope("physical")
        -1.9
    """
    require_choice("preset", preset, get_args(Preset))
    return -1.9 if preset == "physical" else -0.9


@dataclass(frozen=True)
class System:
    """One lens and its source: what the renderer needs, and the true parameters. Angles in arcsec, masses in solar
    masses.

    Args:
        label: number of the class in `CLASSES`.
        source_x: position of the source in arcsec.
        source_y: position of the source in arcsec.
        theta_E: Einstein radius of the main lens in arcsec.
        gamma1: external shear, dimensionless.
        exposure_s: exposure time of the noise in seconds.
        substructure_mass: total mass of the substructure in solar masses.
        log10_axion_mass: log10 of the axion mass in eV; NaN without axions.
        point_theta_E: Einstein radii of the point masses (subhaloes, or the published vortex) in arcsec, (K,).
        point_x: their positions in arcsec, (K,).
        point_y: their positions in arcsec, (K,).
        line_theta_E: Einstein radius of the vortex line as a point in arcsec.
        line_half_length: half its length in arcsec; 0 without a line.
        line_angle: its position angle in radian.
    """

    label: int
    source_x: float
    source_y: float
    theta_E: float
    gamma1: float
    exposure_s: float
    substructure_mass: float = 0.0
    log10_axion_mass: float = math.nan
    point_theta_E: np.ndarray = field(default_factory=lambda: np.empty(0))
    point_x: np.ndarray = field(default_factory=lambda: np.empty(0))
    point_y: np.ndarray = field(default_factory=lambda: np.empty(0))
    line_theta_E: float = 0.0
    line_half_length: float = 0.0
    line_angle: float = 0.0


def power_law_masses(uniform: np.ndarray, *, slope: float, low: float, high: float) -> np.ndarray:
    """Return masses with dN/dm ~ m^slope between `low` and `high`, by inversion of the distribution function.

    Args:
        uniform: random numbers in [0, 1[, any shape.
        slope: exponent of the mass function; -1 is allowed.
        low: smallest mass, above 0.
        high: largest mass, in the unit of `low`.

    Example:
        >>> power_law_masses(np.array([0.0, 0.5]), slope=-1.0, low=1.0, high=100.0).tolist()
        [1.0, 10.0]
    """
    exponent = slope + 1
    if exponent == 0:
        return low * (high / low) ** uniform
    return (low**exponent + (high**exponent - low**exponent) * uniform) ** (1 / exponent)


def draw_system(population: Population, label: int, generator: Generator) -> System:
    """Sample one system of the class `CLASSES[label]`; the result depends on the state of the generator alone.

    Args:
        population: model, preset and mass slope.
        label: number of the class, 0 to 2.
        generator: random generator, which is advanced.

    Example:
        >>> population = Population("Model_II", "published", mass_slope=-0.9)
        >>> system = draw_system(population, 1, np.random.default_rng(0))
        >>> system.label, len(system.point_x), round(system.theta_E, 3)
        (1, 25, 0.813)
    """
    source_x, source_y = generator.uniform(-0.35, 0.35, size=2)
    exposure = population.survey.total_exposure_s
    if population.model == "Model_I":
        exposure = 10 ** generator.uniform(3.0, 3.5)
    scale = population.deflection_scale
    return System(
        label=label,
        source_x=source_x,
        source_y=source_y,
        theta_E=scale * population.einstein_radius(HALO_MASS),
        gamma1=scale * 0.05,
        exposure_s=exposure,
        **DRAW_SUBSTRUCTURE[CLASSES[label]](population, generator),
    )


def draw_nothing(population: Population, generator: Generator) -> dict[str, float]:
    """Return no substructure: an empty dictionary.

    Args:
        population: not used.
        generator: not used.
    """
    return {}


def draw_subhalos(population: Population, generator: Generator) -> dict[str, float | np.ndarray]:
    """Sample point-mass subhaloes between 0.25 and 2 arcsec from the centre.

    There are 25 of them; in the preset `physical` their number is Poisson-distributed with mean 25.

    Args:
        population: model, preset and mass slope.
        generator: random generator, which is advanced.

    Returns:
        Fields of `System`: total mass, Einstein radii and positions.
    """
    count = generator.poisson(NUM_SUBHALOS) if population.physical else NUM_SUBHALOS
    low, high = SUBHALO_MASSES
    masses = power_law_masses(generator.uniform(size=count), slope=population.mass_slope, low=low, high=high)
    radius = generator.uniform(0.25, 2.0, size=count)
    angle = generator.uniform(0, 2 * math.pi, size=count)
    unit = math.sqrt(population.deflection_scale) * population.einstein_radius(1.0)
    return {
        "substructure_mass": float(masses.sum()),
        "point_theta_E": unit * np.sqrt(masses),
        "point_x": radius * np.sin(angle),
        "point_y": radius * np.cos(angle),
    }


def draw_vortex(population: Population, generator: Generator) -> dict[str, float | np.ndarray]:
    """Sample a vortex line of an axion condensate through the centre, with 3 % of the mass of the halo.

    The line is longer for lighter axions.

    Args:
        population: model and preset; `published` has the line as 100 point masses.
        generator: random generator, which is advanced.

    Returns:
        Fields of `System`: mass of the vortex, log10 of the axion mass, and the line or the point masses.
    """
    log10_mass = generator.uniform(-24, -22)
    half_length = 0.03 * 10 ** (-22 - log10_mass)
    angle = generator.uniform(0, 2 * math.pi)
    truth: dict[str, float | np.ndarray] = {"substructure_mass": VORTEX_MASS, "log10_axion_mass": log10_mass}
    if population.preset == "published":
        return truth | vortex_points(population, half_length, angle)
    theta_E = math.sqrt(population.deflection_scale) * population.einstein_radius(VORTEX_MASS)
    return truth | {"line_theta_E": theta_E, "line_half_length": half_length, "line_angle": angle}


def vortex_points(population: Population, half_length: float, angle: float) -> dict[str, np.ndarray]:
    """Return the vortex as in the public images: 100 equal point masses along the line, both ends included.

    Args:
        population: model and preset.
        half_length: half the length of the line in arcsec.
        angle: position angle of the line in radian.
    """
    along = np.linspace(-half_length, half_length, NUM_VORTEX_POINTS)
    each = population.einstein_radius(VORTEX_MASS / NUM_VORTEX_POINTS)
    theta_E = np.full(NUM_VORTEX_POINTS, math.sqrt(population.deflection_scale) * each)
    return {"point_theta_E": theta_E, "point_x": along * math.cos(angle), "point_y": along * math.sin(angle)}


DRAW_SUBSTRUCTURE = {"no_sub": draw_nothing, "cdm": draw_subhalos, "axion": draw_vortex}
