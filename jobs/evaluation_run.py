"""From trained runs and held-out samples to a report."""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from deeplense.evaluation import plots
from deeplense.evaluation.metrics import Estimate, classification_report, regression_report, softmax
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.report import Plot, write_report
from deeplense.training import checkpoint
from deeplense.training.fitting import put_into
from deeplense.training.loop import from_main, make_accelerator
from deeplense.training.tracking import METRICS
from jobs.config import require
from jobs.evaluate import Settings
from jobs.experiment import (
    Part,
    find_datasets,
    held_out_part,
    learning_parts,
    make_network,
    make_objective,
    predict_part,
    without_shared,
)
from jobs.explanations import Explained, explain_part, explanation_plots
from jobs.progress import say
from jobs.ranks import on_main
from jobs.runs import find_run, train_settings
from jobs.train import Settings as TrainSettings
from jobs.weights import newest_weights

GALLERY = 12


@dataclass(frozen=True)
class Evaluated:
    """What one run says of its held-out samples. `chance` is what always guessing would say, in regression; `explained`
    is there on the main process, if it was asked for."""

    run: Path
    settings: TrainSettings
    part: Part
    predictions: Predictions
    step: int
    chance: float
    num_shared: int
    explained: Explained | None


def evaluate(settings: Settings) -> int:
    """Evaluate all runs, put their predictions together, and report."""
    accelerator = make_accelerator(device=settings.device, precision="fp32")
    paths = find_runs(settings)
    num_explained = [settings.explain, *(0 for _ in paths[1:])]
    evaluated = [
        evaluate_run(settings, path, accelerator, num_explained=number)
        for path, number in zip(paths, num_explained, strict=True)
    ]
    require_no_sample_twice(evaluated)
    folder = settings.output or paths[0] / "report"
    on_main(accelerator, lambda: report(settings, evaluated, folder))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def find_runs(settings: Settings) -> list[Path]:
    """The run folders that are meant."""
    matching = [Path(path) for path in sorted(glob.glob(settings.run))] if any(c in settings.run for c in "*?[") else []
    return matching or [find_run(settings.run, settings.runs_root)]


def evaluate_run(settings: Settings, run: Path, accelerator: Accelerator, *, num_explained: int) -> Evaluated:
    """Predictions of one run on what it held out, some of them explained."""
    trained = train_settings(run)
    datasets = find_datasets(settings.dataset or trained.dataset, trained.data_root)
    train, val = learning_parts(trained)
    held = held_out_part(trained, datasets, settings.split)
    refuse_other_kind(train, held)
    part, num_shared = without_shared(held, [train, val])
    found = on_main(accelerator, lambda: newest_weights(run, settings.weights))
    saved = checkpoint.load(from_main(accelerator, found))
    network = make_network(trained, train.split, load_pretrained=False)
    put_into(network, saved.get("model"), path=run)
    objective = make_objective(trained, train, saved["progress"]["statistics"])
    predictions = predict_part(
        network.to(accelerator.device), objective.forward, part, accelerator, batch_size=settings.batch_size
    )
    explained = None
    if num_explained:
        explained = on_main(
            accelerator,
            lambda: explain_part(
                network, objective, part, predictions, num_images=num_explained, device=accelerator.device
            ),
        )
    step, chance = saved["progress"]["step"], objective.target_scale[0]
    return Evaluated(run, trained, part, predictions, step, chance, num_shared, explained)


def refuse_other_kind(train: Part, part: Part) -> None:
    """Raise ValueError where the samples are of another kind than those learnt from."""
    for name in ("shape", "classes", "bands"):
        learnt, given = getattr(train.split.schema, name), getattr(part.split.schema, name)
        require(learnt == given, f"{part.split.name} has {name} {given}, but the run learnt from {learnt}.")


def require_no_sample_twice(evaluated: Sequence[Evaluated]) -> None:
    """Raise ValueError where runs that are put together predict the same sample."""
    seen = [(e.part.split.dataset_id, int(i)) for e in evaluated for i in e.part.indices]
    require(
        len(set(seen)) == len(seen),
        "several of these runs predict the same image. Only runs of the same settings with different --fold "
        "can be put together.",
    )


def report(
    settings: Settings, evaluated: Sequence[Evaluated], folder: Path, *, shown: Mapping[str, Any] | None = None
) -> None:
    """Write the report and print its numbers; the settings that are `shown` are by default those of the training."""
    first = evaluated[0]
    joined = Predictions(
        **{
            name: np.concatenate([getattr(e.predictions, name) for e in evaluated])
            for name in ("outputs", "labels", "target", "indices")
        }
    )
    regression = first.settings.regression
    content = report_regression(first, joined) if regression else report_classes(first, joined)
    held = f"fold of {first.settings.num_folds}" if first.settings.num_folds else f"split {settings.split}"
    facts = {
        "runs": ", ".join(str(e.run) for e in evaluated),
        "data set": f"{first.part.split.name} ({first.part.split.dataset_id[:16]})",
        "held out": f"{len(joined.labels)} images, {held}; no image with the same pixels was learnt from or chose the "
        f"weights ({sum(e.num_shared for e in evaluated)} that were are left out)",
        "weights": f"{settings.weights}, of step " + ", ".join(str(e.step) for e in evaluated),
        "provenance": json.dumps(first.part.split.schema.provenance),
    }
    drawn = regression_plots(first, joined) if regression else class_plots(first, joined, content)
    drawn += explanation_plots(first.explained) if first.explained else []
    write_report(
        folder,
        title=f"{first.settings.model_name}: {first.settings.target} of lenses",
        lead=f"{len(joined.labels)} held-out images of {first.part.split.name}",
        content=content,
        facts=facts,
        settings={name: str(value) for name, value in (shown or vars(first.settings)).items()},
        plots=[*drawn, *training_plot(first)],
        arrays=vars(joined) | origin(first),
    )
    print_numbers(content["metrics"])
    say(f"report: {folder / 'index.html'}")


def origin(first: Evaluated) -> dict[str, np.ndarray]:
    """Of which split the predictions are, of how many samples it is, and what always guessing would say."""
    split = first.part.split
    told = {"dataset_id": split.dataset_id, "num_samples": len(split), "chance": first.chance}
    return {name: np.array(value) for name, value in told.items()}


def report_classes(first: Evaluated, joined: Predictions) -> dict[str, Any]:
    """The numbers of a classifier."""
    classes = first.part.split.schema.classes
    return classification_report(softmax(joined.outputs), joined.labels, classes) | {"classes": list(classes)}


def report_regression(first: Evaluated, joined: Predictions) -> dict[str, Any]:
    """The numbers of a regression."""
    return regression_report(joined.outputs[:, 0].astype(float), joined.target.astype(float), chance=first.chance)


def class_plots(first: Evaluated, joined: Predictions, content: Mapping[str, Any]) -> list[Plot]:
    """Figures of a classifier."""
    classes, probabilities = first.part.split.schema.classes, softmax(joined.outputs)
    counts = np.array(content["confusion"])
    return [
        Plot(
            "roc",
            "ROC of each class against the rest",
            partial(plots.roc, probabilities=probabilities, labels=joined.labels, classes=classes),
        ),
        Plot(
            "confusion",
            "Confusion matrix: counts, and shares of the true class",
            partial(plots.confusion, counts=counts, classes=classes),
        ),
        Plot(
            "reliability",
            "Accuracy over confidence, ten bins of equal counts",
            partial(plots.reliability, probabilities=probabilities, labels=joined.labels),
        ),
        mistakes(first, probabilities),
    ]


def mistakes(first: Evaluated, probabilities: np.ndarray) -> Plot:
    """The images of the first run that the model is most wrong about."""
    found = first.predictions
    of_truth = probabilities[np.arange(len(found.labels)), found.labels]
    worst = np.argsort(of_truth, kind="stable")[:GALLERY]
    classes = first.part.split.schema.classes
    titles = [f"{classes[found.labels[k]]}, p = {of_truth[k]:.2g}" for k in worst]
    images = first.part.split.images(found.indices[worst])
    caption = "The images whose true class gets the least probability (the true class and its probability above each)"
    return Plot("mistakes", caption, partial(plots.gallery, images=images, titles=titles), size=(9.0, 3.9), wide=True)


def regression_plots(first: Evaluated, joined: Predictions) -> list[Plot]:
    """Figures of a regression."""
    unit = first.part.split.schema.targets[first.settings.target]
    draw = partial(plots.scatter, predicted=joined.outputs[:, 0], truth=joined.target, unit=unit)
    return [Plot("scatter", "Predicted over true values", draw)]


def training_plot(first: Evaluated) -> list[Plot]:
    """The curves of the first run's training, if it has any."""
    path = first.run / METRICS
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    named = {
        "training loss": "train/loss",
        "validation MAE" if first.settings.regression else "validation AUC": "val/mae"
        if first.settings.regression
        else "val/auc_macro",
    }
    series = {
        title: ([line["step"] for line in lines if name in line], [line[name] for line in lines if name in line])
        for title, name in named.items()
    }
    kept = {title: values for title, values in series.items() if values[0]}
    return [Plot("training", "Training", partial(plots.curves, series=kept, ylabel="value"))] if kept else []


def print_numbers(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """The metrics with their intervals, a line each."""
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        say(f"  {name:<{width}}  {Estimate(**value)}")
