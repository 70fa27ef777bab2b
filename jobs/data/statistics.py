"""Statistics of the training pixels."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from deeplense.data.dataset import Split, in_pieces
from deeplense.data.order import rank_slice
from deeplense.data.scaling import Scaling
from deeplense.data.shards import statistics_of
from deeplense.training.loop import gather_lists
from jobs.data.part import Part
from jobs.ranks import on_all
from jobs.settings import require

MOST_APART = 5.0
"""Largest accepted ratio of the pixel standard deviations of two data sets."""


def find_statistics(part: Part, stretch: str, accelerator: Accelerator) -> dict[str, list[float]]:
    """Return mean and standard deviation of each band over some samples; with standard_asinh, also those of the
    stretched pixels. Each rank computes its share, and the result does not depend on the number of ranks. Raises
    ValueError if they are not finite."""
    found = measure_bands(part, accelerator)
    bad = [band for band, *values in zip(part.split.schema.bands, *found.values(), strict=True) if not finite(values)]
    require(
        not bad,
        f"{part.split.name} has pixels in the bands {', '.join(bad)} that are not finite or too large to compute with. "
        "Run `deeplense verify` to check for damaged files; otherwise pack the images again with --fill_nan.",
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
    """Return mean and standard deviation of each band over some samples, or over a function of them."""
    pieces = in_pieces(part.indices)
    mine = pieces[rank_slice(len(pieces), accelerator.process_index, accelerator.num_processes)]
    found = on_all(accelerator, lambda: [part.split.moments(rows, through) for rows in mine])
    return statistics_of(gather_lists(accelerator, found))


def unit_notes(split: Split) -> Iterator[str]:
    """Warn if data sets that are trained on jointly appear to be in different units; one scaling is used for all."""
    spreads = {float(np.mean(each.statistics["std"])): each.folder for each in split.manifests}
    low, high = min(spreads), max(spreads)
    if high > MOST_APART * low:
        yield (
            f"note: the pixel standard deviation is {low:.3g} in {spreads[low]} and {high:.3g} in {spreads[high]}; a "
            "network trained on both hardly sees the former. Convert them to the same unit and pack them again (for "
            "integers use `pack --scale`)."
        )
