"""Scaling from the unit of a data set to that of a network, the same for all images, and back. Shapes: C bands, H x W
pixels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplense.choices import require_choice
from deeplense.constants import constant

Statistics = Mapping[str, list[float]]
"""`mean` and `std` of the pixels of each band; `stretched_mean` and `stretched_std` of their `asinh` stretch."""

FORMULAS = {
    "linear": "(x - mean) / std",
    "asinh": "asinh(10 * x / std) / 2",
    "standard_asinh": "(asinh(10 * x / std) / 2 - stretched_mean) / stretched_std",
}


@dataclass(frozen=True)
class Scaling:
    """An invertible stretch in the units of a data set.

    `asinh` (Lupton et al. 2004, PASP 116, 133) is linear below a tenth of a standard deviation and logarithmic above,
    so that a small change counts equally in a faint arc and beside a bright core. It maps zero to zero: if the mean is
    as large as the spread, most of what a network sees is an offset common to all images. `standard_asinh` removes it,
    as `linear` does: the pixels of the data set have mean 0 and standard deviation 1.

    Args:
        statistics: `mean` and `std`, (C,) each, and for `standard_asinh` `stretched_mean` and `stretched_std`.
        stretch: `linear`, `asinh` or `standard_asinh`; see `FORMULAS`.

    Raises:
        ValueError: unknown stretch.

    Example:
        >>> scaling = Scaling({"mean": [1.0], "std": [2.0]}, "linear")
        >>> scaled = scaling.scaled(torch.full((1, 1, 1), 5.0))
        >>> scaled.item(), scaling.unscaled(scaled).item()
        (2.0, 5.0)
    """

    statistics: Statistics
    stretch: str

    def __post_init__(self) -> None:
        require_choice("stretch", self.stretch, FORMULAS)

    def scaled(self, images: Tensor) -> Tensor:
        """Return images (..., C, H, W) in the unit of the network."""
        if self.stretch == "linear":
            return (images - self.band("mean", images)) / self.spread("std", images)
        out = torch.asinh(10 * images / self.spread("std", images)) / 2
        if self.stretch == "asinh":
            return out
        return (out - self.band("stretched_mean", images)) / self.spread("stretched_std", images)

    def unscaled(self, images: Tensor) -> Tensor:
        """Return images (..., C, H, W) in the unit of the data set."""
        if self.stretch == "linear":
            return images * self.spread("std", images) + self.band("mean", images)
        if self.stretch == "standard_asinh":
            images = images * self.spread("stretched_std", images) + self.band("stretched_mean", images)
        return torch.sinh(2 * images) * self.spread("std", images) / 10

    def band(self, name: str, images: Tensor) -> Tensor:
        """Return a statistic of each band, (C, 1, 1), in the type and on the device of some images.

        Args:
            name: `mean`, `std`, `stretched_mean` or `stretched_std`.
            images: images (..., C, H, W).
        """
        return constant(tuple(self.statistics[name]), images.dtype, images.device)[:, None, None]

    def spread(self, name: str, images: Tensor) -> Tensor:
        """Return a standard deviation of each band, (C, 1, 1); 1 for a constant band.

        Args:
            name: `std` or `stretched_std`.
            images: images (..., C, H, W).
        """
        found = self.band(name, images)
        return torch.where(found > 0, found, 1.0)
