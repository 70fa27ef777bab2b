"""What is known of the pixels that are learnt from."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from deeplense.data.dataset import Split, in_pieces
from deeplense.data.order import rank_slice
from deeplense.data.scaling import Scaling
from deeplense.data.shards import statistics_of
from deeplense.training.loop import gather_lists
from jobs.config import require
from jobs.experiment import Part
from jobs.ranks import on_all

MOST_APART = 5.0
"""How many times larger the spread of one data set may be than that of another."""


def find_statistics(part: Part, stretch: str, accelerator: Accelerator) -> dict[str, list[float]]:
    """Mean and standard deviation of each band over some samples, and of what is stretched where that is made to be
    standard; each rank adds its share, and they do not depend on how many ranks there are. Raises ValueError where they
    are not finite."""
    found = measure_bands(part, accelerator)
    bad = [band for band, *values in zip(part.split.schema.bands, *found.values(), strict=True) if not finite(values)]
    require(
        not bad,
        f"{part.split.name} has pixels in the bands {', '.join(bad)} that are not finite or too large to compute with. "
        "`deeplense verify` tells whether a file is damaged; else pack the images again with --fill_nan.",
    )
    if stretch != "standard_asinh":
        return found
    stretched = measure_bands(part, accelerator, through=Scaling(found, "asinh").scaled)
    return found | {f"stretched_{name}": values for name, values in stretched.items()}


def finite(values: Sequence[float]) -> bool:
    """Whether all numbers are finite."""
    return bool(np.isfinite(values).all())


def measure_bands(
    part: Part, accelerator: Accelerator, through: Callable[[Tensor], Tensor] | None = None
) -> dict[str, list[float]]:
    """Mean and standard deviation of each band over some samples, or over what a function makes of them."""
    pieces = in_pieces(part.indices)
    mine = pieces[rank_slice(len(pieces), accelerator.process_index, accelerator.num_processes)]
    found = on_all(accelerator, lambda: [part.split.moments(rows, through) for rows in mine])
    return statistics_of(gather_lists(accelerator, found))


def unit_notes(split: Split) -> Iterator[str]:
    """That data sets which are learnt from together seem to be in other units; one scale serves them all."""
    spreads = {float(np.mean(each.statistics["std"])): each.folder for each in split.manifests}
    low, high = min(spreads), max(spreads)
    if high > MOST_APART * low:
        yield (
            f"note: pixels of {spreads[low]} vary by {low:.3g}, those of {spreads[high]} by {high:.3g}; a network that "
            "learns from both hardly sees the former. Bring them to one unit and pack them again (integers by "
            "`pack --scale`)."
        )
