"""Compare generated with held-out images: distances, physics, copies (`deeplense evaluate --generated`)."""

from collections.abc import Sequence
from typing import Any

from deeplense.evaluation import distances, inception
from deeplense.evaluation.memorisation import Memorisation, memorisation
from deeplense.evaluation.physics import Panel, compare_images
from jobs.console import say
from jobs.evaluate.describers import Describer, Result, inception_describer, load_describer
from jobs.evaluate.folder import refuse_other_report
from jobs.evaluate.page import write
from jobs.evaluate.settings import Settings
from jobs.evaluate.sides import Images, Sides, open_sides


def evaluate_generated(settings: Settings) -> int:
    """Compare generated with held-out images, print the results and write the report."""
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
    say(f"Control: the same number of training images against the held-out ones fails {failed}.")
    copies = [told(look_for_copies(sides, settings, each)) for each in (None, *describers)]
    if why_no_fid:
        say(why_no_fid)
    write(folder, settings, sides, found, (panel, control), copies, why_no_fid)
    say(f"report: {folder / 'index.html'}")
    return 0


def told(result: Result) -> Result:
    """Print a result at once, because the next one may take minutes, and return it."""
    say(str(result))
    return result


def measure_distances(settings: Settings, describer: Describer, sides: Sides) -> list[distances.Distance]:
    """Compute all distances on the features of a network."""
    return distances.compare_features(
        *(describer.features(images) for images in (sides.generated, sides.held_out, sides.train)),
        features=describer.name,
        num_resamples=settings.num_resamples,
    )


def physics(images: Images, sides: Sides, describers: Sequence[Describer]) -> Panel:
    """Test images against the held-out ones, with the class probabilities of the first network that has them."""
    classify = next((each.probabilities for each in describers if each.probabilities is not None), None)
    return compare_images(
        images,
        sides.held_out,
        pixel_scale_arcsec=sides.pixel_scale_arcsec,
        probabilities=None if classify is None else (classify(images), classify(sides.held_out)),
    )


def look_for_copies(sides: Sides, settings: Settings, describer: Describer | None = None) -> Memorisation:
    """Search for copies of training images among generated images, by pixels or by the features of a network."""
    how: dict[str, Any] = {} if describer is None else {"describe": describer.features, "space": describer.name}
    return memorisation(sides.generated, sides.held_out, sides.train, gate=settings.gate, **how)
