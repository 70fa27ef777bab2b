"""Distances in a flat universe of matter and a cosmological constant, just enough to turn masses into
Einstein radii."""

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
    """A flat universe with matter and a cosmological constant.

    Args:
        hubble: Hubble constant in km/s/Mpc.
        matter: matter density today in units of the critical density, 0 to 1.

    Example:
        >>> FlatCosmology(hubble=70.0, matter=0.3).comoving_distance(0.5).__round__()
        1889
    """

    hubble: float
    matter: float

    def comoving_distance(self, z: float) -> float:
        """Return the comoving distance to redshift `z` in Mpc."""
        integral, _ = quad(lambda u: 1 / math.sqrt(self.matter * (1 + u) ** 3 + 1 - self.matter), 0, z, epsabs=0)
        return SPEED_OF_LIGHT / 1000 / self.hubble * integral

    def lensing_efficiency(self, z_lens: float, z_source: float) -> float:
        """Return D_LS / D_S, the ratio of the angular-diameter distances lens-source and observer-source.

        Args:
            z_lens: redshift of the lens, above 0.
            z_source: redshift of the source, above `z_lens`.

        Example:
            >>> round(FlatCosmology(hubble=70.0, matter=0.3).lensing_efficiency(0.5, 1.0), 3)
            0.428
        """
        return 1 - self.comoving_distance(z_lens) / self.comoving_distance(z_source)


def radius_of_point_mass(mass_msun: float, *, d_lens: float, d_source: float, d_between: float) -> float:
    """Return the Einstein radius of a point mass in arcsec: sqrt(4 G M / c^2 * D_LS / (D_L D_S)).

    Args:
        mass_msun: mass in solar masses.
        d_lens: distance D_L from the observer to the lens in Mpc.
        d_source: distance D_S from the observer to the source in Mpc.
        d_between: distance D_LS from the lens to the source in Mpc.
    """
    schwarzschild = 4 * GRAVITATIONAL_CONSTANT * mass_msun * SOLAR_MASS / SPEED_OF_LIGHT**2
    return math.sqrt(schwarzschild * d_between / (d_lens * d_source * MEGAPARSEC)) * ARCSEC_PER_RADIAN


def einstein_radius(mass_msun: float, *, cosmology: FlatCosmology, z_lens: float, z_source: float) -> float:
    """Return the Einstein radius of a mass in arcsec, from angular-diameter distances.

    Args:
        mass_msun: mass inside the radius in solar masses.
        cosmology: cosmology of the distances.
        z_lens: redshift of the lens, above 0.
        z_source: redshift of the source, above `z_lens`.

    Example:
        >>> cosmology = FlatCosmology(hubble=70.0, matter=0.3)
        >>> round(einstein_radius(1e12, cosmology=cosmology, z_lens=0.5, z_source=1.0), 4)
        1.6645
    """
    near, far = cosmology.comoving_distance(z_lens), cosmology.comoving_distance(z_source)
    return radius_of_point_mass(
        mass_msun,
        d_lens=near / (1 + z_lens),
        d_source=far / (1 + z_source),
        d_between=(far - near) / (1 + z_source),
    )


def published_einstein_radius(mass_msun: float, *, cosmology: FlatCosmology, z_lens: float, z_source: float) -> float:
    """Return the Einstein radius as DeepLenseSim computes it in arcsec: with luminosity distances, and D_S - D_L as
    D_LS.

    This is not physical (1.2815" for 1e12 solar masses, where 1.6645" is right). It reproduces the public data sets.

    Args:
        mass_msun: mass inside the radius in solar masses.
        cosmology: cosmology of the distances.
        z_lens: redshift of the lens, above 0.
        z_source: redshift of the source, above `z_lens`.
    """
    near = cosmology.comoving_distance(z_lens) * (1 + z_lens)
    far = cosmology.comoving_distance(z_source) * (1 + z_source)
    radius = radius_of_point_mass(mass_msun, d_lens=near, d_source=far, d_between=far - near)
    return radius * PUBLISHED_ARCSEC_PER_RADIAN / ARCSEC_PER_RADIAN
