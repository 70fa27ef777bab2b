"""Tests of whether generated images have the same physical properties as real ones (power spectrum, pixel values,
fluxes, Einstein radii). n images, C bands, S x S pixels, d numbers per image, K classes.

Images are in the flux unit of their data set and are not normalised here. The lens is at the centre, and its own light
is absent or subtracted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deeplense.evaluation.two_sample import NUM_PERMUTATIONS, Verdict, corrected, kolmogorov_smirnov, permutation

Images = NDArray[np.floating]
AT_A_TIME = 256
LEAST_SHARE = 1e-12
QUANTILES = np.r_[0.001, 0.01, 0.05, np.linspace(0.1, 0.9, 9), 0.95, 0.99, 0.999]
PIXELS_FOR_QUANTILES = 1_000_000
BRIGHT, SMOOTHING_PIXELS, PENALTY = 0.5, 1.0, 0.1


@dataclass(frozen=True)
class Panel:
    """Results of the tests of generated against real images; a test fails if its corrected p-value is below `level`."""

    verdicts: list[Verdict]
    num_generated: int
    num_real: int
    level: float

    @property
    def failed(self) -> list[str]:
        """Names of the tests that reject equal distributions."""
        return [verdict.name for verdict in self.verdicts if verdict.corrected < self.level]

    def __str__(self) -> str:
        against = f"{self.num_generated} generated images against {self.num_real} held-out ones"
        if not self.failed:
            return f"{against}: no difference in any of {len(self.verdicts)} tests at level {self.level:g}."
        lines = [str(verdict) for verdict in self.verdicts if verdict.corrected < self.level]
        return "\n".join([f"{against}: {len(lines)} of {len(self.verdicts)} tests find a difference.", *lines])


def compare_images(
    generated: Images,
    real: Images,
    *,
    pixel_scale_arcsec: float,
    probabilities: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    level: float = 0.05,
    seed: int = 0,
    num_permutations: int = NUM_PERMUTATIONS,
) -> Panel:
    """Test generated images (n, C, S, S) against held-out real ones (m, C, S, S).

    With thousands of images, even tiny differences are significant: judge by the effect size, and run the same tests on
    as many training images as a control, which should pass them all.

    Args:
        generated: generated images, at the size of the real ones.
        real: images that the generator was not trained on.
        pixel_scale_arcsec: side of a pixel.
        probabilities: class probabilities of a frozen classifier for both sets, (n, K) and (m, K).
        level: family-wise significance level of all tests.
        seed: random seed of the permutations.
        num_permutations: number of permutations; the smallest possible p-value is about one over this.

    Raises ValueError if the images differ in shape, are too few, or contain non-finite values.
    """
    check_images(generated, real)
    profiles = {
        "power_spectrum": (*(radial_power_spectrum(images) for images in (generated, real)), waves(real)),
        "pixel_histogram": histograms(generated, real),
    }
    if probabilities is not None:
        names = [f"probability of class {k}" for k in range(probabilities[0].shape[1])]
        profiles["substructure_class"] = (*probabilities, names)
    verdicts = [
        permutation(
            name,
            first.reshape(len(first), -1),
            second.reshape(len(second), -1),
            labels=labels,
            seed=seed,
            num_permutations=num_permutations,
        )
        for name, (first, second, labels) in profiles.items()
    ]
    return Panel(
        corrected([*verdicts, *compare_numbers(generated, real, pixel_scale_arcsec)]), len(generated), len(real), level
    )


def compare_numbers(generated: Images, real: Images, pixel_scale_arcsec: float) -> list[Verdict]:
    """Test the quantities that are one number per image and band."""

    def radius(images: Images) -> Images:
        return pixel_scale_arcsec * einstein_radius_pixels(images)[:, None]

    numbers = {"total_flux": (total_flux, ""), "peak_flux": (peak_flux, ""), "einstein_radius": (radius, "arcsec")}
    return [
        kolmogorov_smirnov(name, measure(generated), measure(real), unit=unit)
        for name, (measure, unit) in numbers.items()
    ]


def histograms(first: Images, second: Images) -> tuple[Images, Images, list[str]]:
    """Return histograms of both sets with common edges, and descriptions of the bins."""
    edges = histogram_edges(first, second)
    bins = [f"fraction of pixels {text}, band {c}" for c in range(first.shape[1]) for text in between(edges)]
    return pixel_histogram(first, edges), pixel_histogram(second, edges), bins


def check_images(generated: Images, real: Images) -> None:
    """Raise ValueError unless both sets are square images of the same shape, at least two of each, all finite."""
    if generated.ndim != 4 or generated.shape[1:] != real.shape[1:] or real.shape[2] != real.shape[3]:
        raise ValueError(
            f"generated images are {generated.shape[1:]}, real ones {real.shape[1:]}; both must be (C, S, S) with the "
            "same size. Generate at the size of the data set, because resizing changes the noise."
        )
    for name, images in (("generated", generated), ("real", real)):
        if len(images) < 2:
            raise ValueError(f"{len(images)} {name} images are too few for a test; give at least 2, better 300.")
        if bad := sum(int((~np.isfinite(part)).any(axis=(1, 2, 3)).sum()) for part in parts(images)):
            raise ValueError(f"{bad} of {len(images)} {name} images contain non-finite values; remove them.")


def parts(images: Images) -> Iterator[Images]:
    """Yield the images in float64, in batches of 256."""
    for start in range(0, len(images), AT_A_TIME):
        yield images[start : start + AT_A_TIME].astype(np.float64)


def wavenumbers(images: Images) -> range:
    """Return the radial wavenumbers up to the Nyquist wavenumber, in cycles per image."""
    return range(1, images.shape[-1] // 2 + 1)


def waves(images: Images) -> list[str]:
    """Describe the numbers of a power spectrum, band by band."""
    text = "log10 of the fraction of power at {} cycles per image, band {}"
    return [text.format(k, c) for c in range(images.shape[1]) for k in wavenumbers(images)]


def radial_power_spectrum(images: Images) -> Images:
    """Log10 of the fraction of an image's power at each radial wavenumber, (n, C, S // 2), starting at 1 cycle per
    image; independent of the image's brightness and background."""
    size = images.shape[-1]
    along = np.fft.fftfreq(size, 1 / size)
    radius = np.rint(np.hypot(along[:, None], along[None, :])).astype(int).ravel()
    rings = (radius[:, None] == np.array(wavenumbers(images))).astype(np.float64)

    def share(part: Images) -> Images:
        power = (np.abs(np.fft.fft2(part)) ** 2).reshape(*part.shape[:2], -1) @ rings
        total = power.sum(axis=-1, keepdims=True)
        return np.log10(np.maximum(power / np.where(total > 0, total, 1), LEAST_SHARE))

    return np.concatenate([share(part) for part in parts(images)])


def histogram_edges(first: Images, second: Images) -> NDArray[np.floating]:
    """Return histogram edges: quantiles of the pixels of both sets, with finer steps in both tails."""
    pixels = np.concatenate([images.ravel()[:: images.size // PIXELS_FOR_QUANTILES + 1] for images in (first, second)])
    return np.unique(np.quantile(pixels.astype(np.float64), QUANTILES))


def between(edges: NDArray[np.floating]) -> list[str]:
    """Describe the bins: below the first edge, between each two edges, above the last edge."""
    inner = [f"from {low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:.3g}", *inner, f"above {edges[-1]:.3g}"]


def pixel_histogram(images: Images, edges: NDArray[np.floating]) -> Images:
    """Fraction of each image's pixels in each bin, (n, C, bins); there is one bin more than edges."""
    num_bins = len(edges) + 1

    def shares(part: Images) -> Images:
        rows = np.searchsorted(edges, part.reshape(part.shape[0] * part.shape[1], -1), side="right")
        counts = np.bincount((rows + num_bins * np.arange(len(rows))[:, None]).ravel(), minlength=len(rows) * num_bins)
        return counts.reshape(*part.shape[:2], num_bins) / rows.shape[1]

    return np.concatenate([shares(part) for part in parts(images)])


def total_flux(images: Images) -> Images:
    """Sum of the pixels, (n, C)."""
    return images.sum(axis=(2, 3), dtype=np.float64)


def peak_flux(images: Images) -> Images:
    """The brightest pixel, (n, C)."""
    return images.max(axis=(2, 3)).astype(np.float64)


def einstein_radius_pixels(images: Images) -> NDArray[np.floating]:
    """Estimate the Einstein radius of each image, (n,), in pixels, from the distribution of its light; bands are added.

    For an isothermal lens at the centre, the image of a source at beta is brightest, along the ray at angle phi, at
    r = theta_E + beta_x cos phi + beta_y sin phi. The three parameters are fitted to the radii of the bright pixels by
    least squares. The weight of a pixel is its light above half of the 99th percentile, divided by its radius because
    there are more pixels further out. A penalty keeps the source offsets small, because a single short arc cannot
    separate them from theta_E.
    """
    return np.concatenate([fit_rings(part.sum(axis=1)) for part in parts(images)])


def fit_rings(images: Images) -> NDArray[np.floating]:
    """Fit the Einstein radii of images (n, S, S), in pixels."""
    size = images.shape[-1]
    along = np.arange(size) - (size - 1) / 2
    radius = np.hypot(along[:, None], along[None, :]).ravel()
    # The central pixel of an image with an odd size has no direction.
    reach = np.maximum(radius, 0.5)
    east, north = (np.broadcast_to(a, (size, size)).ravel() / reach for a in (along[None, :], along[:, None]))
    rays = np.stack([np.ones_like(radius), east, north], axis=1)
    weights = bright_light(images).reshape(len(images), -1) / reach
    weights = weights / weights.sum(axis=1, keepdims=True)
    outer = (rays[:, :, None] * rays[:, None, :]).reshape(len(rays), 9)
    normal = (weights @ outer).reshape(-1, 3, 3) + np.diag([0.0, PENALTY, PENALTY])
    return np.linalg.solve(normal, ((weights * radius) @ rays)[:, :, None])[:, 0, 0]


def bright_light(images: Images) -> Images:
    """Light of smoothed images (n, S, S) above half of their 99th percentile, both relative to the median; 1 everywhere
    if an image has no such light."""
    smooth = ndimage.gaussian_filter(images, (0, SMOOTHING_PIXELS, SMOOTHING_PIXELS), mode="nearest")
    smooth = smooth - np.median(smooth, axis=(1, 2), keepdims=True)
    light = np.maximum(smooth - BRIGHT * np.quantile(smooth, 0.99, axis=(1, 2), keepdims=True), 0.0)
    light[light.sum(axis=(1, 2)) == 0] = 1.0
    return light
