"""The report page on generated images."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np

from deeplense.evaluation import distances, plots
from deeplense.evaluation.memorisation import Memorisation
from deeplense.evaluation.page import Section, write_page
from deeplense.evaluation.physics import Panel, einstein_radius_pixels, radial_power_spectrum
from deeplense.evaluation.report import Plot
from deeplense.files import finite, write_json
from jobs.evaluate.settings import Settings
from jobs.evaluate.sides import Images, Sides

SHOWN = 24
NEAREST = 8


def write(
    folder: Path,
    settings: Settings,
    sides: Sides,
    found: Sequence[distances.Distance],
    panels: tuple[Panel, Panel],
    copies: Sequence[Memorisation],
    why_no_fid: str,
) -> None:
    """Write report.json and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "distances": [asdict(line) for line in found],
        "physics": asdict(panels[0]) | {"failed": panels[0].failed},
        "physics_of_images_learnt_from": asdict(panels[1]) | {"failed": panels[1].failed},
        "copies": [
            asdict(line) | {"nearest": line.nearest.tolist(), "relative": line.relative.tolist(), "passed": line.passed}
            for line in copies
        ],
        "fid": why_no_fid,
        "facts": sides.facts,
        "of": sides.subject,
    }
    write_json(folder / "report.json", finite(document))
    write_page(
        folder / "index.html",
        title="Generated images compared with held-out images",
        lead=f"{len(sides.generated)} generated images compared with {len(sides.held_out)} held-out images.",
        sections=[
            pictures_section(sides),
            distances_section(found, why_no_fid),
            physics_section(sides, *panels),
            radii_section(sides),
            copies_section(sides, copies),
            published_section(),
        ],
        notes=sides.facts,
    )


def pictures_section(sides: Sides) -> Section:
    """Return the section with generated images above real ones."""
    half = SHOWN // 2
    both = np.concatenate([sides.generated[:half], sides.held_out[:half]])
    titles = [*["generated"] * len(sides.generated[:half]), *["real"] * len(sides.held_out[:half])]
    draw = partial(plots.gallery, images=both, titles=titles)
    plot = Plot("pictures", "The first generated images and the first held-out images", draw, size=(9.0, 7.0))
    return Section("Images", "Not hand-picked; each image has its own intensity scale.", [], [], plot)


def distances_section(found: Sequence[distances.Distance], why_no_fid: str) -> Section:
    """Return the section with one row per distance."""
    rows = [
        [
            f"{line.name}\n{line.features}",
            f"{line.value:.4g}",
            "" if line.expected is None else f"{line.expected:.4g}",
            f"{line.estimate.value:.4g}\n[{line.estimate.low:.4g}, {line.estimate.high:.4g}]",
            f"{line.floor_value:.4g}\n{line.num_floor[0]} against {line.num_floor[1]}",
            f"{line.floor.value:.4g}\n[{line.floor.low:.4g}, {line.floor.high:.4g}]",
            line.caution,
        ]
        for line in found
    ]
    headings = [
        "distance",
        "usual estimate",
        "expected for equal distributions",
        "corrected for sample size",
        "real against real",
    ]
    lead = f"95 % intervals by half samples. {why_no_fid}" if found else f"No distances without a network. {why_no_fid}"
    return Section("Distances", lead, [*headings, "real against real, corrected", "caution"], rows)


def physics_section(sides: Sides, panel: Panel, control: Panel) -> Section:
    """Return the section with one row per test, and the power spectra."""
    rows = [
        [
            f"{ours.name}\n{ours.detail}",
            f"{ours.corrected:.3g}",
            f"{ours.effect:+.2f} {ours.effect_name}",
            "differs" if ours.name in panel.failed else "",
            f"{theirs.corrected:.3g}",
            f"{theirs.effect:+.2f} {theirs.effect_name}",
        ]
        for ours, theirs in zip(panel.verdicts, control.verdicts, strict=True)
    ]
    spectra = {name: radial_power_spectrum(images)[:, 0] for name, images in named(sides)}
    plot = Plot(
        "spectra",
        "Fraction of an image's power at each radial wavenumber: the median and the central two thirds of the images",
        partial(plots.spectra, series=spectra),
    )
    headings = ["test\nlargest difference", "corrected p", "effect", "result", "p of training images", "their effect"]
    return Section("Physics", str(panel).splitlines()[0], headings, rows, plot)


def radii_section(sides: Sides) -> Section:
    """Return the section with the fitted Einstein radii."""
    radii = {name: sides.pixel_scale_arcsec * einstein_radius_pixels(images) for name, images in named(sides)}
    draw = partial(plots.densities, series=radii, xlabel="Einstein radius [arcsec]")
    return Section("Einstein radii", "Fitted to each image.", [], [], Plot("radii", "Distributions", draw))


def copies_section(sides: Sides, copies: Sequence[Memorisation]) -> Section:
    """Return the section with one row per feature space, and the generated images closest to a training image."""
    rows = [
        [
            line.space,
            f"{line.median.value:.3f}\n[{line.median.low:.3f}, {line.median.high:.3f}]",
            f"{line.lowest.value:.3f}\n[{line.lowest.low:.3f}, {line.lowest.high:.3f}]",
            "no sign of copies" if line.passed else "copies",
        ]
        for line in copies
    ]
    first = copies[0]
    chosen = np.argsort(first.relative, kind="stable")[:NEAREST]
    pairs = np.stack([sides.generated[chosen], sides.train[first.nearest[chosen]]], axis=1)
    titles = ["generated", "training"] * len(chosen)
    draw = partial(plots.gallery, images=pairs.reshape(-1, *pairs.shape[2:]), titles=titles, columns=4)
    plot = Plot(
        "nearest",
        "The generated images that are closest to a training image, by pixels",
        draw,
        size=(7.0, 8.5),
    )
    lead = "Distance to the nearest training image, as a ratio to that of held-out images; 0 is an exact copy."
    return Section("Copies", lead, ["features", "median", "1st percentile", "verdict"], rows, plot)


def named(sides: Sides) -> list[tuple[str, Images]]:
    """Return the sets of images that are plotted together, with their names."""
    return [("held out", sides.held_out), ("training", sides.learnt), ("generated", sides.generated)]


def published_section() -> Section:
    """Return the section with numbers published by others for their generated images."""
    text = resources.files("jobs.evaluate").joinpath("published_images.csv").read_text()
    headings, *rows = csv.reader(text.splitlines())
    return Section("Published numbers", "For other images and features; none has an interval.", headings, rows)
