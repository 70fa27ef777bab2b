"""From the unit of a data set to that of a network, the same for all images, and back. C bands, H W pixels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplense.choices import require_choice

Statistics = Mapping[str, list[float]]
"""`mean` and `std` of the pixels of each band; `stretched_mean` and `stretched_std` of what `asinh` makes of them."""

FORMULAS = {
    "linear": "(x - mean) / std",
    "asinh": "asinh(10 * x / std) / 2",
    "standard_asinh": "(asinh(10 * x / std) / 2 - stretched_mean) / stretched_std",
}


@dataclass(frozen=True)
class Scaling:
    """A stretch in the units of a data set; flux is kept, as each way can be undone.

    `asinh` (Lupton et al. 2004, PASP 116, 133) is linear below a tenth of a standard deviation and logarithmic above,
    so that a small change counts alike in a faint arc and beside a bright core. It leaves zero where it is: where the
    mean is of the size of the spread, most of what a network sees is an offset that all images share. `standard_asinh`
    takes it away, as `linear` does: the pixels of the data set have mean 0 and standard deviation 1.
    """

    statistics: Statistics
    stretch: str

    def __post_init__(self) -> None:
        require_choice("stretch", self.stretch, FORMULAS)

    def scaled(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) as the network gets them."""
        if self.stretch == "linear":
            return (images - self.band("mean", images)) / self.spread("std", images)
        out = torch.asinh(10 * images / self.spread("std", images)) / 2
        if self.stretch == "asinh":
            return out
        return (out - self.band("stretched_mean", images)) / self.spread("stretched_std", images)

    def unscaled(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) as they are in the data set."""
        if self.stretch == "linear":
            return images * self.spread("std", images) + self.band("mean", images)
        if self.stretch == "standard_asinh":
            images = images * self.spread("stretched_std", images) + self.band("stretched_mean", images)
        return torch.sinh(2 * images) * self.spread("std", images) / 10

    def band(self, name: str, images: Tensor) -> Tensor:
        """A number of each band, beside these images."""
        return torch.tensor(self.statistics[name], dtype=images.dtype, device=images.device)[:, None, None]

    def spread(self, name: str, images: Tensor) -> Tensor:
        """A standard deviation; 1 where a band is the same everywhere."""
        found = self.band(name, images)
        return torch.where(found > 0, found, 1.0)
