"""What is known of the pixels that are learnt from."""

from collections.abc import Callable

from accelerate import Accelerator
from torch import Tensor

from deeplense.data.dataset import in_pieces
from deeplense.data.order import rank_slice
from deeplense.data.scaling import Scaling
from deeplense.data.shards import statistics_of
from deeplense.training.loop import gather_lists
from jobs.experiment import Part
from jobs.ranks import on_all


def find_statistics(part: Part, stretch: str, accelerator: Accelerator) -> dict[str, list[float]]:
    """Mean and standard deviation of each band over some samples, and of what is stretched where that is made to be
    standard; each rank adds its share, and they do not depend on how many ranks there are."""
    found = measure_bands(part, accelerator)
    if stretch != "standard_asinh":
        return found
    stretched = measure_bands(part, accelerator, through=Scaling(found, "asinh").scaled)
    return found | {f"stretched_{name}": values for name, values in stretched.items()}


def measure_bands(
    part: Part, accelerator: Accelerator, through: Callable[[Tensor], Tensor] | None = None
) -> dict[str, list[float]]:
    """Mean and standard deviation of each band over some samples, or over what a function makes of them."""
    pieces = in_pieces(part.indices)
    mine = pieces[rank_slice(len(pieces), accelerator.process_index, accelerator.num_processes)]
    found = on_all(accelerator, lambda: [part.split.moments(rows, through) for rows in mine])
    return statistics_of(gather_lists(accelerator, found))
