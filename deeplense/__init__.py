"""Machine learning on strong gravitational lenses, in Python: data sets, simulation, models, trained runs.

- `open_dataset(folder, split=...)`: images, labels and targets as arrays, and a torch `Dataset`
- `simulate(model, preset, num_images=...)`: simulated lenses with their true parameters
- `build_model(name, image_size=..., in_chans=..., num_outputs=...)`: a network of the zoo or of timm
- `load_run(path)`: a trained network with its preprocessing; `predict_probabilities(images)`
- `read_report(path)`: the numbers of an evaluation, with their intervals

Names are imported when they are first used: `import deeplense` itself takes no time.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplense.models.registry import build as build_model
    from jobs.api.images import Images, SimulatedLenses, open_dataset, simulate
    from jobs.api.loading import LoadedRun, load_run, read_report

__all__ = [
    "Images",
    "LoadedRun",
    "SimulatedLenses",
    "__version__",
    "build_model",
    "load_run",
    "open_dataset",
    "read_report",
    "simulate",
]
HOMES = {
    "build_model": ("deeplense.models.registry", "build"),
    "Images": ("jobs.api.images", "Images"),
    "SimulatedLenses": ("jobs.api.images", "SimulatedLenses"),
    "open_dataset": ("jobs.api.images", "open_dataset"),
    "simulate": ("jobs.api.images", "simulate"),
    "LoadedRun": ("jobs.api.loading", "LoadedRun"),
    "load_run": ("jobs.api.loading", "load_run"),
    "read_report": ("jobs.api.loading", "read_report"),
}
"""Module and name of each function and class of this door."""

try:
    __version__ = version("deeplense")
except PackageNotFoundError:
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Import a function or class of this door when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"deeplense has no {name!r}; it has {', '.join(sorted(HOMES))}")
    module, inner = HOMES[name]
    found = getattr(importlib.import_module(module), inner)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names of this door, for completion."""
    return sorted(__all__)
