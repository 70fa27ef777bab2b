"""Generated images against held-out real ones: distances, physics, copies; `deeplense evaluate --generated`."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from deeplense.data.dataset import Split, splits_of
from deeplense.data.scaling import Scaling
from deeplense.evaluation import distances, inception, plots
from deeplense.evaluation.memorisation import Memorisation, memorisation
from deeplense.evaluation.metrics import softmax
from deeplense.evaluation.page import Section, write_page
from deeplense.evaluation.physics import Panel, compare_images, einstein_radius_pixels, radial_power_spectrum
from deeplense.evaluation.report import Plot
from deeplense.files import finite, write_json
from deeplense.models.registry import Network
from deeplense.training.loop import make_accelerator
from jobs import config
from jobs.config import require
from jobs.evaluate import Settings
from jobs.experiment import find_dataset, find_datasets, make_network, whole
from jobs.pretrained import load_encoder, read_pretrained
from jobs.progress import say
from jobs.report_folder import refuse_other_report
from jobs.runs import find_run, job_of, stored_config
from jobs.statistics import find_statistics
from jobs.train import Settings as TrainSettings
from jobs.trained_run import open_trained, tell_unfinished

Images = np.ndarray
Result = TypeVar("Result")
AT_A_TIME = 256
SHOWN = 24
NEAREST = 8
SHOWN_RANGE = (0.001, 0.999)
"""Quantiles of the training pixels that Inception is shown as black and white."""


@dataclass(frozen=True)
class Sides:
    """Generated images, held-out real ones, and those that were learnt from, (n, C, S, S) each, in the unit of the data
    set."""

    generated: Images
    held_out: Images
    train: Images
    pixel_scale_arcsec: float
    facts: dict[str, str]
    subject: dict[str, str]
    """of which samples a report of them is"""

    @property
    def learnt(self) -> Images:
        """As many images that were learnt from as there are generated ones: real against real."""
        return self.train[np.random.default_rng(0).permutation(len(self.train))[: len(self.generated)]]


@dataclass(frozen=True)
class Describer:
    """What a network says of images: features (n, D), and the probabilities of classes (n, K) if it has learnt any."""

    name: str
    features: Callable[[Images], Images]
    probabilities: Callable[[Images], Images] | None = None


def evaluate_generated(settings: Settings) -> int:
    """Compare, print the verdicts, and write the page."""
    assert settings.generated is not None
    sides = open_sides(settings)
    folder = settings.output or settings.generated / "report"
    refuse_other_report(folder, sides.subject)
    describers = [load_describer(settings, run.strip()) for run in settings.run.split(",")] if settings.run else []
    why_no_fid = inception.why_not(settings.fid_weights)
    if settings.fid_weights and not why_no_fid:
        describers.append(inception_describer(settings.fid_weights, sides.train))
    found = [told(line) for describer in describers for line in measure_distances(settings, describer, sides)]
    panel, control = told(physics(sides.generated, sides, describers)), physics(sides.learnt, sides, describers)
    failed = ", ".join(control.failed) or "none of the tests"
    say(f"Of as many images that were learnt from, {failed} would be told apart.")
    copies = [told(look_for_copies(sides, settings, each)) for each in (None, *describers)]
    if why_no_fid:
        say(why_no_fid)
    write(folder, settings, sides, found, (panel, control), copies, why_no_fid)
    say(f"report: {folder / 'index.html'}")
    return 0


def open_sides(settings: Settings) -> Sides:
    """Read the images. Raises ValueError where they cannot be compared."""
    assert settings.generated is not None
    require(settings.dataset is not None, "generated images are held against real ones; give those as --dataset DIR.")
    assert settings.dataset is not None
    real = find_dataset(settings.dataset, settings.data_root)
    there = splits_of(settings.generated)
    require(
        len(there) == 1, f"{settings.generated} has the splits {list(there)}; it must have one, of generated images."
    )
    for name in (settings.split, "train"):
        require(name in splits_of(real), f"{real} has no split {name!r}; it has {', '.join(splits_of(real))}.")
    splits = [
        Split(folder, labelled=False)
        for folder in (settings.generated / there[0], real / settings.split, real / "train")
    ]
    made, held, train = splits
    for name in ("shape", "bands", "unit"):
        wanted, given = getattr(held.schema, name), getattr(made.schema, name)
        require(
            given == wanted, f"{made.name} has {name} {given}, but {held.name} has {wanted}; they must be the same."
        )
    require(
        made.dataset_id not in (held.dataset_id, train.dataset_id), f"{made.name} holds the real images themselves."
    )
    images = {
        name: split.images(np.arange(len(split)))
        for name, split in zip(("generated", "held_out", "train"), splits, strict=True)
    }
    facts = {
        "generated": f"{len(made)} images of {made.name} ({made.dataset_id[:16]}): {dict(made.schema.provenance)}",
        "held out": f"{len(held)} images of {held.name} ({held.dataset_id[:16]})",
        "learnt from": f"{len(train)} images of {train.name} ({train.dataset_id[:16]})",
    }
    subject = {"generated": made.dataset_id, "dataset_id": held.dataset_id, "split": settings.split}
    return Sides(**images, pixel_scale_arcsec=held.schema.pixel_scale_arcsec or 1.0, facts=facts, subject=subject)


def load_describer(settings: Settings, text: str) -> Describer:
    """The network of a run of `deeplense train` or `deeplense pretrain`."""
    run = find_run(text, settings.runs_root)
    accelerator = make_accelerator(device=settings.device, precision="fp32")
    if job_of(stored_config(run)) == "pretrain":
        return encoder_describer(run, accelerator)
    trained = open_trained(run, which="best")
    learnt = trained.settings
    require(not learnt.regression, f"{run} has learnt a number; give a run that has learnt classes, or a pretraining.")
    tell_unfinished([trained])
    scaling = Scaling(trained.opened.progress["statistics"], learnt.stretch)
    ask = partial(say_of, trained.network().to(accelerator.device).eval(), scaling)
    return Describer(
        f"{learnt.model_name} of {run.name}",
        lambda images: ask(images, whole=False),
        lambda images: softmax(ask(images, whole=True)),
    )


def encoder_describer(run: Path, accelerator: Accelerator) -> Describer:
    """The backbone of a pretraining, with the statistics of what it was trained on."""
    pretrained = read_pretrained(run)
    learnt = pretrained.settings
    train = Split(*(folder / "train" for folder in find_datasets(learnt.dataset, learnt.data_root)), labelled=False)
    pretrained.opened.require_data(train)
    words = [f"--run={run}", f"--dataset={learnt.dataset}", f"--model_name={learnt.model_name}"]
    asked: TrainSettings = config.parse("train", words)
    network = make_network(asked, train, load_pretrained=False)
    load_encoder(network, pretrained)
    statistics = find_statistics(whole(train), learnt.stretch, accelerator)
    ask = partial(say_of, network.to(accelerator.device).eval(), Scaling(statistics, learnt.stretch), whole=False)
    return Describer(f"{learnt.model_name}, {learnt.method}, of {run.name}", ask)


def inception_describer(weights: Path, train: Images) -> Describer:
    """The network that FID is defined on."""
    low, high = np.quantile(train, SHOWN_RANGE)
    network = inception.load_inception(weights)
    return Describer(
        f"Inception-2015, {inception.RULE}, {low:.4g} to {high:.4g} shown",
        partial(inception.inception_features, network, low=float(low), high=float(high)),
    )


@torch.no_grad()
def say_of(network: Network, scaling: Scaling, images: Images, *, whole: bool) -> Images:
    """Features (n, D) of images, or of the whole network the outputs (n, K)."""
    device = next(network.parameters()).device

    def ask(part: Images) -> Tensor:
        features = network.backbone(network.input_size(scaling.scaled(torch.from_numpy(part).to(device))))
        return network.head(features) if whole else features

    parts = [ask(images[k : k + AT_A_TIME]).float().cpu().numpy() for k in range(0, len(images), AT_A_TIME)]
    return np.concatenate(parts).astype(np.float64)


def told(result: Result) -> Result:
    """A result, which is said at once: the next may take minutes."""
    say(str(result))
    return result


def measure_distances(settings: Settings, describer: Describer, sides: Sides) -> list[distances.Distance]:
    """All distances on the features of a network."""
    return distances.compare_features(
        *(describer.features(images) for images in (sides.generated, sides.held_out, sides.train)),
        features=describer.name,
        num_resamples=settings.num_resamples,
    )


def physics(images: Images, sides: Sides, describers: Sequence[Describer]) -> Panel:
    """The panel of some images against the held-out ones, with the classes of the first network that knows any."""
    classify = next((each.probabilities for each in describers if each.probabilities is not None), None)
    return compare_images(
        images,
        sides.held_out,
        pixel_scale_arcsec=sides.pixel_scale_arcsec,
        probabilities=None if classify is None else (classify(images), classify(sides.held_out)),
    )


def look_for_copies(sides: Sides, settings: Settings, describer: Describer | None = None) -> Memorisation:
    """Whether generated images are copies, by their pixels or by the features of a network."""
    how: dict[str, Any] = {} if describer is None else {"describe": describer.features, "space": describer.name}
    return memorisation(sides.generated, sides.held_out, sides.train, gate=settings.gate, **how)


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
        title="Generated images against held-out ones",
        lead=f"{len(sides.generated)} generated images against {len(sides.held_out)} that nothing learnt from.",
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
    """Generated images above real ones."""
    half = SHOWN // 2
    both = np.concatenate([sides.generated[:half], sides.held_out[:half]])
    titles = [*["generated"] * len(sides.generated[:half]), *["real"] * len(sides.held_out[:half])]
    draw = partial(plots.gallery, images=both, titles=titles)
    plot = Plot("pictures", "The first generated images, and the first held-out ones", draw, size=(9.0, 7.0))
    return Section("Images", "Not chosen; each on its own scale.", [], [], plot)


def distances_section(found: Sequence[distances.Distance], why_no_fid: str) -> Section:
    """A row for each distance."""
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
        "as published",
        "expected of equal distributions",
        "of any number of images",
        "real against real",
    ]
    lead = f"Intervals are 95 %, by half samples. {why_no_fid}" if found else f"No network was given. {why_no_fid}"
    return Section("Distances", lead, [*headings, "the same of any number", "caution"], rows)


def physics_section(sides: Sides, panel: Panel, control: Panel) -> Section:
    """A row for each test, and the spectra."""
    rows = [
        [
            f"{ours.name}\n{ours.detail}",
            f"{ours.corrected:.3g}",
            f"{ours.effect:+.2f} {ours.effect_name}",
            "told apart" if ours.name in panel.failed else "",
            f"{theirs.corrected:.3g}",
            f"{theirs.effect:+.2f} {theirs.effect_name}",
        ]
        for ours, theirs in zip(panel.verdicts, control.verdicts, strict=True)
    ]
    spectra = {name: radial_power_spectrum(images)[:, 0] for name, images in named(sides)}
    plot = Plot(
        "spectra",
        "Share of the power of an image at each radial wavenumber: the median, and two thirds of the images",
        partial(plots.spectra, series=spectra),
    )
    headings = ["test\nwhat differs most", "p, corrected", "effect", "", "p of images learnt from", "their effect"]
    return Section("Physics", str(panel).splitlines()[0], headings, rows, plot)


def radii_section(sides: Sides) -> Section:
    """The fitted Einstein radii."""
    radii = {name: sides.pixel_scale_arcsec * einstein_radius_pixels(images) for name, images in named(sides)}
    draw = partial(plots.densities, series=radii, xlabel="Einstein radius [arcsec]")
    return Section("Einstein radii", "Fitted to each image.", [], [], Plot("radii", "Their distributions", draw))


def copies_section(sides: Sides, copies: Sequence[Memorisation]) -> Section:
    """A row for each way of looking, and the generated images that are nearest to one that was learnt from."""
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
    titles = ["generated", "learnt from"] * len(chosen)
    draw = partial(plots.gallery, images=pairs.reshape(-1, *pairs.shape[2:]), titles=titles, columns=4)
    plot = Plot(
        "nearest",
        "The generated images that are nearest to one that was learnt from, by their pixels",
        draw,
        size=(7.0, 8.5),
    )
    lead = "Distances of the nearest image that was learnt from, as ratios to those of held-out images; 0 is a copy."
    return Section("Copies", lead, ["by", "median", "lowest hundredth", "verdict"], rows, plot)


def named(sides: Sides) -> list[tuple[str, Images]]:
    """What is drawn side by side."""
    return [("held out", sides.held_out), ("learnt from", sides.learnt), ("generated", sides.generated)]


def published_section() -> Section:
    """What others have published of images that they made."""
    text = resources.files("jobs.comparing").joinpath("published_images.csv").read_text()
    headings, *rows = csv.reader(text.splitlines())
    return Section("Published numbers", "Of other images and features; none has an interval.", headings, rows)
