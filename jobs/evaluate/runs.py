"""Evaluate trained runs on held-out samples and write a report."""

import glob
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator

from deeplense.evaluation.finding import Survey
from deeplense.training.loop import make_accelerator
from jobs.console import say
from jobs.data.folders import find_datasets
from jobs.data.part import Part
from jobs.evaluate.explain import explain_part
from jobs.evaluate.folder import default_folder, refuse_other_report
from jobs.evaluate.report import Evaluated, report, subject_of
from jobs.evaluate.settings import Settings
from jobs.frame.predict import predict_part
from jobs.ranks import on_main
from jobs.runs.folder import find_run
from jobs.runs.stored import CONFIG
from jobs.settings import plain, require
from jobs.train.samples import held_out_part, holds_out_fold, refuse_unlabelled
from jobs.train.stored import TrainedRun, Unseen, open_trained, tell_unfinished, unseen


def evaluate(settings: Settings) -> int:
    """Evaluate all runs, pool their predictions and write a report. All checks are made before anything is
    predicted."""
    accelerator = make_accelerator(device=settings.device, precision="fp32")
    runs = [open_trained(path, which=settings.weights, accelerator=accelerator) for path in find_runs(settings)]
    refuse_unlike(runs)
    refuse_survey(settings, runs[0])
    missing = missing_folds(runs)
    held = [hold_out(settings, trained, accelerator) for trained in runs]
    require_no_sample_twice([each.part for each in held])
    folder = settings.output or default_folder(runs, held[0].part, settings.split)
    subject = subject_of(
        held[0].part.split.dataset_id, settings.split, [fold_of(settings, trained) for trained in runs]
    )
    on_main(accelerator, lambda: refuse_other_report(folder, subject))
    if accelerator.is_main_process:
        tell_unfinished(runs)
    num_explained = [settings.explain, *(0 for _ in runs[1:])]
    evaluated = [
        evaluate_run(settings, trained, part, accelerator, num_explained=number)
        for trained, part, number in zip(runs, held, num_explained, strict=True)
    ]
    survey = Survey(settings.prevalence, settings.top, settings.survey_size)
    on_main(accelerator, lambda: report(settings.split, evaluated, folder, missing=missing, survey=survey))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def find_runs(settings: Settings) -> list[Path]:
    """Return the run folders that match the setting `run`."""
    if any(sign in settings.run for sign in "*?["):
        matching = [Path(path) for path in sorted(glob.glob(settings.run)) if (Path(path) / CONFIG).exists()]
        if matching:
            return matching
    return [find_run(settings.run, settings.runs_root)]


def fold_of(settings: Settings, trained: TrainedRun) -> int | None:
    """Return the fold that a run is evaluated on; None if it is evaluated on a split."""
    own = trained.settings
    datasets = find_datasets(settings.dataset or own.dataset, own.data_root)
    return own.fold if holds_out_fold(own, datasets, settings.split) else None


def refuse_unlike(runs: Sequence[TrainedRun]) -> None:
    """Raise ValueError, naming the first difference, unless all runs are the same training on different folds of the
    same data."""
    first, ours = runs[0], plain(runs[0].settings)
    free = {each.name for each in fields(first.settings) if each.metadata.get("free")} | {"run", "fold", "dataset"}
    for other in runs[1:]:
        theirs = plain(other.settings)
        differing = [name for name in ours if name not in free and ours[name] != theirs[name]]
        told = ", ".join(f"{name}={ours[name]} and {name}={theirs[name]}" for name in differing)
        require(
            not differing,
            f"{first.run} and {other.run} have different settings: {told}. Only runs with the same settings and "
            "different --fold can be pooled.",
        )
        require(
            first.train.split.dataset_id == other.train.split.dataset_id,
            f"{first.run} and {other.run} were trained on different data sets; only folds of one can be pooled.",
        )
    folds = [each.settings.fold for each in runs]
    twice = sorted({fold for fold in folds if folds.count(fold) > 1})
    names = ", ".join(str(each.run) for each in runs if each.settings.fold in twice)
    what = f"hold out the same fold, {twice[0] if twice else ''}" if first.settings.num_folds else "hold out no fold"
    require(
        not twice,
        f"{names} {what}, so they predict the same images. Only runs with the same settings and different --fold can "
        "be pooled.",
    )


def refuse_survey(settings: Settings, trained: TrainedRun) -> None:
    """Raise ValueError if something is said of a survey, but the run predicts a number."""
    given = [f"--{name}" for name in ("prevalence", "top") if getattr(settings, name)]
    require(
        not given or not trained.settings.regression,
        f"{trained.run} predicts {trained.settings.target}, not classes; leave out {' and '.join(given)}.",
    )


def missing_folds(runs: Sequence[TrainedRun]) -> str:
    """Name the folds without a run, print a note, and return the text; empty for a single run or if none is missing."""
    count = runs[0].settings.num_folds
    missing = [str(fold) for fold in range(count) if fold not in [each.settings.fold for each in runs]]
    if len(runs) < 2 or not missing:
        return ""
    told = f"fold{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {count}"
    say(f"note: there is no run for {told}; the results are for the other folds only")
    return f" (no run for {told})"


def hold_out(settings: Settings, trained: TrainedRun, accelerator: Accelerator) -> Unseen:
    """Return the samples to evaluate a run on. Raises ValueError if they differ in kind from its training samples, if
    none has a label, or if the run has seen all of them."""
    own = trained.settings
    held = held_out_part(own, find_datasets(settings.dataset or own.dataset, own.data_root), settings.split)
    trained.refuse_other_kind(held.split)
    refuse_unlabelled(held, own)
    return unseen(held, trained, allow_pretrained=bool(settings.allow_pretrained_overlap), accelerator=accelerator)


def require_no_sample_twice(parts: Sequence[Part]) -> None:
    """Raise ValueError if several of the pooled runs predict the same sample."""
    seen = [(part.split.dataset_id, int(i)) for part in parts for i in part.indices]
    require(
        len(set(seen)) == len(seen),
        "several of these runs predict the same image. Only runs with the same settings and different --fold "
        "can be pooled.",
    )


def evaluate_run(
    settings: Settings, trained: TrainedRun, held: Unseen, accelerator: Accelerator, *, num_explained: int
) -> Evaluated:
    """Predict the held-out samples of one run and compute explanation maps for some of them."""
    network, objective = trained.network(), trained.objective()
    predictions = predict_part(
        network.to(accelerator.device), objective.forward, held.part, accelerator, batch_size=settings.batch_size
    )
    explained = None
    if num_explained:
        explained = on_main(
            accelerator,
            lambda: explain_part(
                network, objective, held.part, predictions, num_images=num_explained, device=accelerator.device
            ),
        )
    return Evaluated(
        trained.run,
        trained.settings,
        held,
        predictions,
        fold=fold_of(settings, trained),
        weights=trained.weights,
        extent=trained.extent,
        chance=objective.target_scale[0],
        explained=explained,
    )
