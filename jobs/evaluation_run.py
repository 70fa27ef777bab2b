"""From trained runs and held-out samples to predictions, and to a report."""

import glob
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator

from deeplense.training.loop import make_accelerator
from jobs.config import plain, require
from jobs.evaluate import Settings
from jobs.experiment import Part, find_datasets, held_out_part, holds_out_fold, predict_part, refuse_unlabelled
from jobs.explanations import explain_part
from jobs.progress import say
from jobs.ranks import on_main
from jobs.report_folder import default_folder, refuse_other_report
from jobs.reports import Evaluated, report, subject_of
from jobs.runs import CONFIG, find_run
from jobs.trained_run import TrainedRun, Unseen, open_trained, tell_unfinished, unseen


def evaluate(settings: Settings) -> int:
    """Evaluate all runs, put their predictions together, and report. All that can be refused is refused before anything
    is predicted."""
    accelerator = make_accelerator(device=settings.device, precision="fp32")
    runs = [open_trained(path, which=settings.weights, accelerator=accelerator) for path in find_runs(settings)]
    refuse_unlike(runs)
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
    on_main(accelerator, lambda: report(settings.split, evaluated, folder, missing=missing))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def find_runs(settings: Settings) -> list[Path]:
    """The run folders that are meant."""
    if any(sign in settings.run for sign in "*?["):
        matching = [Path(path) for path in sorted(glob.glob(settings.run)) if (Path(path) / CONFIG).exists()]
        if matching:
            return matching
    return [find_run(settings.run, settings.runs_root)]


def fold_of(settings: Settings, trained: TrainedRun) -> int | None:
    """The fold that a run is evaluated on; None where it is another split."""
    own = trained.settings
    datasets = find_datasets(settings.dataset or own.dataset, own.data_root)
    return own.fold if holds_out_fold(own, datasets, settings.split) else None


def refuse_unlike(runs: Sequence[TrainedRun]) -> None:
    """Raise ValueError, naming the first difference, where runs that are put together are not the same training on
    different folds of the same data."""
    first, ours = runs[0], plain(runs[0].settings)
    free = {each.name for each in fields(first.settings) if each.metadata.get("free")} | {"run", "fold", "dataset"}
    for other in runs[1:]:
        theirs = plain(other.settings)
        differing = [name for name in ours if name not in free and ours[name] != theirs[name]]
        told = ", ".join(f"{name}={ours[name]} and {theirs[name]}" for name in differing)
        require(
            not differing,
            f"{first.run} and {other.run} are runs of other settings: {told}. Only runs of the same settings with "
            "different --fold can be put together.",
        )
        require(
            first.train.split.dataset_id == other.train.split.dataset_id,
            f"{first.run} and {other.run} were trained on different data sets; only folds of one can be put together.",
        )
    folds = [each.settings.fold for each in runs]
    twice = sorted({fold for fold in folds if folds.count(fold) > 1})
    names = ", ".join(str(each.run) for each in runs if each.settings.fold in twice)
    what = f"hold out the same fold, {twice[0] if twice else ''}" if first.settings.num_folds else "hold out no folds"
    require(
        not twice,
        f"{names} {what}, and so predict the same image several times. Only runs of the same settings with different "
        "--fold can be put together.",
    )


def missing_folds(runs: Sequence[TrainedRun]) -> str:
    """Which folds are not among the runs, in words; empty for one run, or where all are there."""
    count = runs[0].settings.num_folds
    missing = [str(fold) for fold in range(count) if fold not in [each.settings.fold for each in runs]]
    if len(runs) < 2 or not missing:
        return ""
    told = f"fold{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {count}"
    say(f"note: there is no run of {told}; the numbers are of the others alone")
    return f" (no run of {told})"


def hold_out(settings: Settings, trained: TrainedRun, accelerator: Accelerator) -> Unseen:
    """The samples to evaluate a run on. Raises ValueError where they are of another kind than those that it was trained
    on, none has a label, or it has seen all."""
    own = trained.settings
    held = held_out_part(own, find_datasets(settings.dataset or own.dataset, own.data_root), settings.split)
    trained.refuse_other_kind(held.split)
    refuse_unlabelled(held, own)
    return unseen(held, trained, allow_pretrained=bool(settings.allow_pretrained_overlap), accelerator=accelerator)


def require_no_sample_twice(parts: Sequence[Part]) -> None:
    """Raise ValueError where runs that are put together predict the same sample."""
    seen = [(part.split.dataset_id, int(i)) for part in parts for i in part.indices]
    require(
        len(set(seen)) == len(seen),
        "several of these runs predict the same image. Only runs of the same settings with different --fold "
        "can be put together.",
    )


def evaluate_run(
    settings: Settings, trained: TrainedRun, held: Unseen, accelerator: Accelerator, *, num_explained: int
) -> Evaluated:
    """Predictions of one run on what it held out, some of them explained."""
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
