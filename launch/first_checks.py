"""Quick checks of a command that a user has typed: whether what it names exists and fits, as far as this can be seen
without torch, whose import takes seconds. The jobs check everything again."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplense.files import read_json
from jobs.data.folders import MANIFEST, find_datasets, splits_of
from jobs.finetune.settings import SCRATCH
from jobs.frame.settings import refuse_small_batch
from jobs.models.settings import require_model
from jobs.runs.attempts import has_begun
from jobs.runs.folder import check_run, find_run
from jobs.runs.stored import stored_config
from jobs.settings import require
from jobs.verbs import TRAININGS

RUNS = {
    "backbone": "a run of `deeplense pretrain`",
    "init_from": "a run of `deeplense train`",
    "lengthen": "a finished run of the same job",
}
"""Settings that name a run to start from, and which run they need."""
GROUP = "group"
"""Name under which a data set stores groups, which are no target (as in `deeplense.data.shards`, which needs torch)."""
FILES = ("pretrained_file", "label_file", "catalog", "fid_weights")
"""Settings that name a file to read."""
INITIAL = (*RUNS, "pretrained_file")
"""Settings that name initial weights: a training that has begun does not need them any more."""


def check_at_once(job: str, settings: Any, *, num_processes: int) -> None:
    """Raise ValueError if what the settings name does not exist or does not fit, as far as this is known at once."""
    given = vars(settings)
    refuse_missing(without_initial(given) if job in TRAININGS and has_begun(settings.run) else given)
    if job in TRAININGS:
        check_run(settings.run, settings)
        if isinstance(given.get("model_name"), str) and job == "train":
            require_model(settings.model_name)
        check_batch(settings, num_processes)
        folders = find_datasets(settings.dataset, settings.data_root)
        for folder in folders:
            refuse_unfit(folder, given)
        refuse_few(folders, settings.batch_size)
    if job == "evaluate" and given["run"] and not given["generated"]:
        refuse_missing_split(given)


def without_initial(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that name initial weights."""
    return {name: value for name, value in given.items() if name not in INITIAL}


def refuse_missing(given: Mapping[str, Any]) -> None:
    """Raise ValueError if a data set, run or file that the settings name does not exist."""
    in_files = "layout" in given and (given["layout"] != "dataset" or Path(given.get("dataset") or "").exists())
    if "data_root" in given and isinstance(given.get("dataset"), str) and given["dataset"] and not in_files:
        find_datasets(given["dataset"], given["data_root"])
    for name, what in RUNS.items():
        path = given.get(name)
        missing = path and str(path) != SCRATCH and not Path(path).exists()
        require(not missing, f"{name}={path} does not exist; give {what}.")
    for name in FILES:
        path = given.get(name)
        require(path is None or Path(path).is_file(), f"{name}={path} is not a file; correct the path.")
    for run in str(given.get("run") or "").split(","):
        if "runs_root" in given and run.strip() and not is_pattern(run):
            find_run(run.strip(), given["runs_root"])


def is_pattern(text: str) -> bool:
    """Whether a text is a glob pattern."""
    return any(sign in text for sign in "*?[")


def refuse_unfit(folder: Path, given: Mapping[str, Any]) -> None:
    """Raise ValueError if a data set has no training images or not the regression target, by its manifest.

    Args:
        folder: folder of the data set.
        given: the settings of a training.
    """
    splits = splits_of(folder)
    require("train" in splits, f"{folder} has no split 'train'; it has {', '.join(splits)}.")
    target = given.get("target", "class")
    for schema in schemas(folder / "train"):
        known = [name for name in schema["targets"] if name != GROUP]
        near = difflib.get_close_matches(target, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        told = f"{folder} has no target {target!r}; its targets: {', '.join(known) or 'none'}.{hint}"
        require(target == "class" or target in known, told)


def check_batch(settings: Any, num_processes: int) -> None:
    """Raise ValueError if the batch of a training is too small for this number of processes."""
    least, pieces = settings.least_samples, settings.gradient_accumulation
    refuse_small_batch(settings.batch_size, pieces, num_processes, least=least)


def refuse_few(folders: Sequence[Path], batch_size: int) -> None:
    """Raise ValueError if a batch is larger than the split train of all data sets together."""
    found = [list(schemas(folder / "train")) for folder in folders]
    number = sum(schema["num_samples"] for each in found for schema in each)
    told = f"batch_size={batch_size} exceeds the {number} images of the split train; use a smaller one."
    require(not all(found) or batch_size <= number, told)


def schemas(split: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the schema of a split if its manifest can be read; the job reports what is wrong with it otherwise."""
    with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
        schema = read_json(split / MANIFEST)["schema"]
        if isinstance(schema["targets"], dict) and isinstance(schema["num_samples"], int):
            yield schema


def refuse_missing_split(given: Mapping[str, Any]) -> None:
    """Raise ValueError if the data set of an evaluation does not have the split."""
    if is_pattern(given["run"]):
        return
    stored = stored_config(find_run(given["run"], given["runs_root"]))
    names, root = given["dataset"] or stored.get("dataset"), Path(stored.get("data_root", "datasets"))
    if stored.get("num_folds") or not isinstance(names, str):
        return
    for folder in find_datasets(names, root):
        splits = splits_of(folder)
        require(given["split"] in splits, f"{folder} has no split {given['split']!r}; it has {', '.join(splits)}.")
