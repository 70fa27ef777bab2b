"""Flat cosmologies of matter and a constant, just enough to turn masses into Einstein radii."""

import math
from dataclasses import dataclass

from scipy.integrate import quad

GRAVITATIONAL_CONSTANT = 6.6743e-11  # m^3 / kg / s^2, CODATA 2018
SPEED_OF_LIGHT = 299792458.0  # m / s
SOLAR_MASS = 1.988409870698051e30  # kg, IAU 2015 nominal GM over CODATA 2018 G
MEGAPARSEC = 3.0856775814913673e22  # m
ARCSEC_PER_RADIAN = 180 * 3600 / math.pi
PUBLISHED_ARCSEC_PER_RADIAN = 206265.0


@dataclass(frozen=True)
class FlatCosmology:
    """A flat universe: `hubble` in km/s/Mpc, `matter` the matter density in units of the critical one."""

    hubble: float
    matter: float

    def comoving_distance(self, z: float) -> float:
        """Comoving distance to redshift z, Mpc."""
        integral, _ = quad(lambda u: 1 / math.sqrt(self.matter * (1 + u) ** 3 + 1 - self.matter), 0, z, epsabs=0)
        return SPEED_OF_LIGHT / 1000 / self.hubble * integral

    def lensing_efficiency(self, z_lens: float, z_source: float) -> float:
        """D_LS / D_S, angular-diameter distances."""
        return 1 - self.comoving_distance(z_lens) / self.comoving_distance(z_source)


def radius_of_point_mass(mass_msun: float, *, d_lens: float, d_source: float, d_between: float) -> float:
    """Einstein radius in arcsec, sqrt(4 G M / c^2 * D_LS / (D_L D_S)), distances in Mpc."""
    schwarzschild = 4 * GRAVITATIONAL_CONSTANT * mass_msun * SOLAR_MASS / SPEED_OF_LIGHT**2
    return math.sqrt(schwarzschild * d_between / (d_lens * d_source * MEGAPARSEC)) * ARCSEC_PER_RADIAN


def einstein_radius(mass_msun: float, *, cosmology: FlatCosmology, z_lens: float, z_source: float) -> float:
    """Einstein radius of a mass, arcsec, from angular-diameter distances."""
    near, far = cosmology.comoving_distance(z_lens), cosmology.comoving_distance(z_source)
    return radius_of_point_mass(
        mass_msun,
        d_lens=near / (1 + z_lens),
        d_source=far / (1 + z_source),
        d_between=(far - near) / (1 + z_source),
    )


def published_einstein_radius(mass_msun: float, *, cosmology: FlatCosmology, z_lens: float, z_source: float) -> float:
    """Einstein radius as DeepLenseSim computes it, arcsec: luminosity distances, and D_LS taken as D_S - D_L.

    Not physical (1.2815" for 1e12 solar masses where 1.6645" is right); kept to reproduce the public data sets.
    """
    near = cosmology.comoving_distance(z_lens) * (1 + z_lens)
    far = cosmology.comoving_distance(z_source) * (1 + z_source)
    radius = radius_of_point_mass(mass_msun, d_lens=near, d_source=far, d_between=far - near)
    return radius * PUBLISHED_ARCSEC_PER_RADIAN / ARCSEC_PER_RADIAN
