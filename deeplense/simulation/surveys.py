"""The instruments. Their constants are pinned here, as library releases have changed them under the same names."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One instrument and band. Brightness is in electrons per second, magnitudes are AB.

    Args:
        name: name of the instrument.
        num_pixels: pixels per side of an image.
        pixel_scale_arcsec: side of a pixel in arcsec.
        fwhm_arcsec: full width at half maximum of the PSF in arcsec.
        psf_truncation: distance at which the PSF is cut, in units of its standard deviation.
        exposure_s: seconds per exposure.
        num_exposures: number of exposures.
        read_noise: read-out noise in electrons per exposure.
        sky_magnitude: sky brightness in magnitudes per arcsec^2; None for no sky.
        magnitude_zero_point: magnitude of one electron per second.

    Example:
        >>> round(EUCLID_VIS.flux(24.0), 3), EUCLID_VIS.total_exposure_s
        (1.0, 2260.0)
    """

    name: str
    num_pixels: int
    pixel_scale_arcsec: float
    fwhm_arcsec: float
    psf_truncation: float
    exposure_s: float
    num_exposures: int
    read_noise: float
    sky_magnitude: float | None
    magnitude_zero_point: float

    @property
    def total_exposure_s(self) -> float:
        """Exposure time in seconds, summed over all exposures."""
        return self.exposure_s * self.num_exposures

    def flux(self, magnitude: float) -> float:
        """Return the electrons per second from a source of this magnitude."""
        return 10 ** (-0.4 * (magnitude - self.magnitude_zero_point))

    @property
    def background_sigma(self) -> float:
        """Standard deviation of read-out and sky noise in one pixel, electrons per second."""
        sky = 0.0
        if self.sky_magnitude is not None:
            sky = self.flux(self.sky_magnitude) * self.pixel_scale_arcsec**2 * self.total_exposure_s
        return math.sqrt(self.num_exposures * self.read_noise**2 + sky) / self.total_exposure_s


# lenstronomy 1.9.2, ObservationConfig/Euclid.py, with which the public Model II was made (checked on its pixels);
# 1.14.2 has another zero point.
EUCLID_VIS = Survey(
    name="Euclid VIS",
    num_pixels=64,
    pixel_scale_arcsec=0.101,
    fwhm_arcsec=0.16,
    psf_truncation=5.0,
    exposure_s=565.0,
    num_exposures=4,
    read_noise=4.2,
    sky_magnitude=22.35,
    magnitude_zero_point=24.0,
)

# lenstronomy 1.9.2 and 1.14.2, ObservationConfig/HST.py, WFC3_F160W; reproduces the public Model III images.
HST_F160W = Survey(
    name="HST WFC3 F160W",
    num_pixels=64,
    pixel_scale_arcsec=0.08,
    fwhm_arcsec=0.08,
    psf_truncation=5.0,
    exposure_s=5400.0,
    num_exposures=1,
    read_noise=4.0,
    sky_magnitude=22.3,
    magnitude_zero_point=25.96,
)
