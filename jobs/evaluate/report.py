"""The report of an evaluation: its numbers, figures and files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.evaluation import plots
from deeplense.evaluation.bands import Band, purity_band, roc_band
from deeplense.evaluation.finding import Ranked, Survey, finding_report
from deeplense.evaluation.metrics import classification_report, log_odds, regression_report, softmax
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.report import Plot, metric_in_words, name_undefined, with_unit, write_report
from jobs.console import say
from jobs.data.part import Part
from jobs.data.seen import LeftOut
from jobs.evaluate.explain import Explained, explanation_plots
from jobs.runs.curves import panels_of, read_curves
from jobs.runs.opening import Extent
from jobs.settings import changed_settings
from jobs.train.settings import Settings as TrainSettings
from jobs.train.stored import Unseen

GALLERY = 12
MOST_WITH_BANDS = 5
"""Largest number of classes for which curves have bands."""
RARE = 0.01
"""Prevalence below which purity is on a logarithmic axis."""


@dataclass(frozen=True)
class Evaluated:
    """The predictions of one run for its held-out samples. `weights` names the weights, `extent` is how much of the
    training is done. `chance` is the constant guess of a regression; `explained` is set on the main process only, if
    explanations were requested."""

    run: Path
    settings: TrainSettings
    held: Unseen
    predictions: Predictions
    weights: str
    extent: Extent | None
    fold: int | None = None
    """the held-out fold, if any"""
    chance: float = 0.0
    explained: Explained | None = None


def report(
    split: str,
    evaluated: Sequence[Evaluated],
    folder: Path,
    *,
    shown: Mapping[str, Any] | None = None,
    missing: str = "",
    survey: Survey | None = None,
) -> None:
    """Write the report and print its numbers.

    Args:
        split: name of the held-out split.
        evaluated: one run, or one per fold.
        folder: folder to write to.
        shown: the settings to list, by default those of the training.
        missing: text that names the folds without a run.
        survey: what is known of the survey in which a class is searched.
    """
    survey = survey or Survey()
    first = evaluated[0]
    joined = Predictions(
        **{
            name: np.concatenate([getattr(e.predictions, name) for e in evaluated])
            for name in ("outputs", "labels", "target", "indices")
        }
    )
    regression = first.settings.regression
    unit = unit_of(first) if regression else ""
    content = report_regression(first, joined) if regression else report_classes(first, joined, survey)
    facts = facts_of(split, evaluated, len(joined.labels), missing=missing)
    drawn = regression_plots(first, joined) if regression else class_plots(first, joined, content, survey)
    drawn += explanation_plots(first.explained) if first.explained else []
    say("; ".join(filter(None, [facts["held out"], facts["training"], f"weights: {facts['weights']}"])))
    write_report(
        folder,
        title=f"{first.settings.model_name}: {first.settings.target} of lenses",
        lead=f"{len(joined.labels)} held-out images of {first.held.part.split.name}",
        content=content | {"of": subject(evaluated, split), **counts(evaluated), **({"unit": unit} if unit else {})},
        facts=facts,
        settings={name: str(value) for name, value in (shown or vars(first.settings)).items()},
        plots=[*drawn, *training_plot(first)],
        arrays=vars(joined) | origin(evaluated),
        changed=changed_settings(first.settings) if shown is None else (),
        unit=unit,
    )
    print_numbers(content["metrics"], unit)
    say(f"report: {folder / 'index.html'}")


def facts_of(split: str, evaluated: Sequence[Evaluated], num_images: int, *, missing: str) -> dict[str, str]:
    """Describe what was evaluated, as names and texts."""
    first = evaluated[0]
    held = f"fold of {first.settings.num_folds}" if first.fold is not None else f"split {split}"
    data, left_out = first.held.part.split, sum((e.held.left_out for e in evaluated), LeftOut())
    notes = {
        "not known": [text for e in evaluated for text in e.held.unknown],
        "starts from": [text for e in evaluated for text in e.held.foreign],
    }
    extents = {e.run: str(e.extent) for e in evaluated if e.extent is not None}
    same = len(set(extents.values())) == 1
    return {
        "runs": ", ".join(str(e.run) for e in evaluated),
        "training": next(iter(extents.values())) if same else "; ".join(f"{k}: {v}" for k, v in extents.items()),
        "data set": f"{data.name} ({data.dataset_id[:16]})",
        "held out": f"{num_images} images, {held}{missing}; {left_out}{unlabelled(first.held.part)}",
        **{name: "; ".join(dict.fromkeys(texts)) for name, texts in notes.items() if texts},
        "weights": "; ".join(dict.fromkeys(e.weights for e in evaluated)),
        "provenance": json.dumps(data.schema.provenance),
    }


def unlabelled(part: Part) -> str:
    """Say how many images of the split have no label and are left out; empty if all have one."""
    known = np.isfinite(part.target) if part.target is not None else part.split.labels >= 0
    number = int((~known).sum())
    return f"; {number} images of the split have no label and are left out" if number else ""


def subject(evaluated: Sequence[Evaluated], split: str) -> dict[str, Any]:
    """Return the samples that a report is on."""
    data = evaluated[0].held.part.split
    return subject_of(data.dataset_id, split, [e.fold for e in evaluated])


def subject_of(dataset_id: str, split: str, folds: Sequence[int | None]) -> dict[str, Any]:
    """Return the samples that a report is on: the data set, the split and the folds."""
    held = sorted(fold for fold in folds if fold is not None)
    return {"dataset_id": dataset_id, "split": "train" if held else split, "folds": held}


def counts(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Return the progress of each training and the number of images left out."""
    left_out = sum((e.held.left_out for e in evaluated), LeftOut())
    return {
        "training": [{"run": str(e.run), **asdict(e.extent)} for e in evaluated if e.extent is not None],
        "left_out": asdict(left_out),
        "not_known": list(dict.fromkeys(text for e in evaluated for text in e.held.unknown)),
    }


def origin(evaluated: Sequence[Evaluated]) -> dict[str, np.ndarray]:
    """Return the origin of the predictions: the data set, its number of samples, the held-out folds and the constant
    guess."""
    split = evaluated[0].held.part.split
    told: dict[str, Any] = {"dataset_id": split.dataset_id, "num_samples": len(split), "chance": evaluated[0].chance}
    told["allow_pretrained_overlap"] = evaluated[0].held.allowed
    folds = np.array([e.fold for e in evaluated if e.fold is not None], dtype=np.int64)
    return {name: np.array(value) for name, value in told.items()} | {"folds": folds}


def report_classes(first: Evaluated, joined: Predictions, survey: Survey) -> dict[str, Any]:
    """Return the metrics of a classifier."""
    classes = first.held.part.split.schema.classes
    found = classification_report(softmax(joined.outputs), joined.labels, classes)
    named = name_undefined(found["metrics"], joined.labels, classes)
    finding = finding_report(log_odds(joined.outputs), joined.labels, classes, survey=survey)
    return found | {"metrics": named, "classes": list(classes), "finding": finding, "survey": asdict(survey)}


def report_regression(first: Evaluated, joined: Predictions) -> dict[str, Any]:
    """Return the metrics of a regression."""
    return regression_report(joined.outputs[:, 0].astype(float), joined.target.astype(float), chance=first.chance)


def class_plots(first: Evaluated, joined: Predictions, content: Mapping[str, Any], survey: Survey) -> list[Plot]:
    """Return the figures of a classifier."""
    classes, probabilities = first.held.part.split.schema.classes, softmax(joined.outputs)
    counts = np.array(content["confusion"])
    return [
        *finding_plots(joined, classes, survey),
        Plot(
            "confusion",
            "Confusion matrix: counts and fractions of the true class",
            partial(plots.confusion, counts=counts, classes=classes),
        ),
        Plot(
            "reliability",
            "Reliability diagram: accuracy against confidence in ten bins with equal counts",
            partial(plots.reliability, probabilities=probabilities, labels=joined.labels),
        ),
        mistakes(first, probabilities),
    ]


def finding_plots(joined: Predictions, classes: Sequence[str], survey: Survey) -> list[Plot]:
    """Return the ROC of each class against the rest and, for few classes, its purity against its completeness; both
    with bands."""
    scores = log_odds(joined.outputs)
    ranked = {name: Ranked(scores[:, k], joined.labels == k) for k, name in enumerate(classes)}
    few = ranked if len(classes) <= MOST_WITH_BANDS else {}
    bands = present({name: roc_band(each) for name, each in few.items()})
    draw = partial(plots.roc, probabilities=scores, labels=joined.labels, classes=classes, bands=bands)
    said = "; bands: pointwise 95 % intervals, from the rate with two expected false positives" if bands else ""
    curve = Plot("roc", f"ROC of each class against the rest{said}", draw)
    return [curve, *purity_plot(few, survey)]


def purity_plot(ranked: Mapping[str, Ranked], survey: Survey) -> list[Plot]:
    """Return the figure of purity against completeness of these classes, if there are images."""
    given = survey.prevalence
    bands = present(
        {name: purity_band(each, given or each.prevalence) for name, each in ranked.items() if not each.lacking}
    )
    if not bands:
        return []
    where = f"in a survey with a prevalence of {given:g}" if given else "at the class fraction of these images"
    caption = (
        f"Purity against completeness {where}; bands: pointwise 95 % intervals. Where there is no line, the band "
        "begins at a lower bound (95 %), because fewer than two images of other classes are above the threshold"
    )
    draw = partial(plots.purity, bands=bands, logarithmic=bool(given and given < RARE))
    return [Plot("purity", caption, draw)]


def present(bands: Mapping[str, Band | None]) -> dict[str, Band]:
    """Return the bands that there are."""
    return {name: band for name, band in bands.items() if band is not None}


def mistakes(first: Evaluated, probabilities: np.ndarray) -> Plot:
    """Return the figure of the images with the lowest probability of the true class, for the first run."""
    found = first.predictions
    of_truth = probabilities[np.arange(len(found.labels)), found.labels]
    worst = np.argsort(of_truth, kind="stable")[:GALLERY]
    classes = first.held.part.split.schema.classes
    predicted = probabilities.argmax(axis=1)
    titles = [f"{classes[found.labels[k]]}: p = {of_truth[k]:.2g}\npredicted {classes[predicted[k]]}" for k in worst]
    images = first.held.part.split.images(found.indices[worst])
    caption = "The images with the lowest probability of their true class, which is named first, with this probability"
    return Plot("mistakes", caption, partial(plots.gallery, images=images, titles=titles), size=(9.0, 4.0), wide=True)


def regression_plots(first: Evaluated, joined: Predictions) -> list[Plot]:
    """Return the figures of a regression."""
    quantity = f"{first.settings.target} [{unit_of(first) or 'no unit'}]"
    draw = partial(plots.scatter, predicted=joined.outputs[:, 0], truth=joined.target, quantity=quantity)
    return [Plot("scatter", "Predicted against true values", draw)]


def unit_of(first: Evaluated) -> str:
    """Return the unit of the target of a regression; empty if it has none."""
    return first.held.part.split.schema.targets[first.settings.target]


def training_plot(first: Evaluated) -> list[Plot]:
    """Return the training curves of the first run, if there are any."""
    shown = {"train/loss", "val/log_loss", "val/mae", "val/auc_macro"}
    curves = {name: curve for name, curve in read_curves(first.run).items() if name in shown}
    panels = panels_of({first.run.name: curves}) if curves else {}
    return [Plot("training", "Training", partial(plots.curves, panels=panels))] if panels else []


def print_numbers(metrics: Mapping[str, Mapping[str, Any]], unit: str = "") -> None:
    """Print the metrics with their intervals, one per line."""
    names = {name: with_unit(name, unit) for name in metrics}
    width = max(map(len, names.values()))
    for name, value in metrics.items():
        say(f"  {names[name]:<{width}}  {metric_in_words(value)}")
