"""Plot the logged metrics of runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from deeplense.evaluation import plots
from deeplense.files import replacing
from jobs.console import say
from jobs.plot.settings import Settings
from jobs.runs.curves import Curves, panels_of, read_curves
from jobs.runs.folder import find_run
from jobs.settings import require

RUNS = Path("runs")
PANEL = (4.6, 2.7)
"""Width and height of a panel, in inches."""


def run(settings: Settings) -> int:
    """Write the figure and print the last value of each metric."""
    folders = [find_run(given, RUNS) for given in settings.runs]
    runs = {name: read_curves(folder) for name, folder in zip(names_of(folders), folders, strict=True)}
    empty = [str(folder) for folder, curves in zip(folders, runs.values(), strict=True) if not curves]
    require(not empty, f"{', '.join(empty)}: no metrics are logged yet; wait for the first steps of the training.")
    panels = panels_of(runs, [name.strip() for name in settings.names.split(",") if name.strip()])
    default = folders[0] / "curves.png" if len(folders) == 1 else Path("curves.png")
    output = settings.output or default
    draw_to(output, panels)
    for name, curves in runs.items():
        say(f"{name}: {last_values(curves)}")
    say(f"figure: {output}")
    return 0


def draw_to(output: Path, panels: Mapping[str, Sequence[plots.Curve]]) -> None:
    """Write a figure with these panels, two side by side if there are more than two."""
    columns = 1 if len(panels) < 3 else 2
    size = PANEL[0] * columns, PANEL[1] * -(-len(panels) // columns)
    require(output.parent.is_dir(), f"the folder {output.parent} of output={output} does not exist; create it.")
    with replacing(output) as temporary:
        target = temporary.with_suffix(output.suffix)
        plots.figure(target, partial(plots.curves, panels=panels, columns=columns), size=size)
        target.replace(temporary)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the names of run folders: the last part of the path, or the whole path where names are equal."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def last_values(curves: Curves) -> str:
    """Return the last step and the last value of the main metrics, as text."""
    shown = [name for name in curves if name.rpartition("/")[2] in ("loss", "log_loss", "auc_macro", "mae")]
    step = max(int(steps[-1]) for steps, _ in curves.values())
    return f"step {step}, " + ", ".join(f"{name} {curves[name][1][-1]:.4g}" for name in shown)
