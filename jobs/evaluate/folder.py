"""The folders of reports: one per data set and split, so that no report overwrites another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplense.files import read_json
from jobs.data.folders import find_datasets
from jobs.data.part import HELD_OUT, Part
from jobs.runs.stored import DOCUMENT, REPORT
from jobs.settings import require
from jobs.train.stored import TrainedRun


def default_folder(runs: Sequence[TrainedRun], held: Part, split: str) -> Path:
    """Return the folder of a report, in the first of its runs: `report` for the run's own held-out images,
    `report-folds` for several pooled folds, `report-NAME-SPLIT` for any other data set and split."""
    run, settings = runs[0].run, runs[0].settings
    if len(runs) > 1:
        return run / f"{REPORT}-folds"
    own = [folder.resolve() for folder in find_datasets(settings.dataset, settings.data_root)]
    given = [folder.parent.resolve() for folder in held.split.folders]
    if own == given and split == HELD_OUT:
        return run / REPORT
    return run / f"{REPORT}-{'+'.join(folder.name for folder in given)}-{split}"


def refuse_other_report(folder: Path, subject: Mapping[str, Any]) -> None:
    """Raise ValueError if a folder contains anything but a report on the same samples, which may be replaced.

    Args:
        folder: where a report is to be written.
        subject: the samples of the report, as returned by `subject_of`.
    """
    remedy = "give another --output, or remove it"
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; {remedy}.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    path = folder / DOCUMENT
    require(path.is_file(), f"{folder} is not empty and not a report, and would be overwritten; {remedy}.")
    there = read_json(path)
    require(isinstance(there, dict), f"{path} was not written by this program; {remedy}.")
    require(
        is_of(there, subject),
        f"{folder} is a report on {told(there)}, and would be overwritten by one on other images; {remedy}.",
    )


def is_of(there: Mapping[str, Any], subject: Mapping[str, Any]) -> bool:
    """Whether a report is on these samples; reports of older versions only name their data set."""
    if isinstance(there.get("of"), dict):
        return there["of"] == dict(subject)
    facts = there.get("facts")
    return isinstance(facts, dict) and f"({subject['dataset_id'][:16]})" in str(facts.get("data set"))


def told(there: Mapping[str, Any]) -> str:
    """Describe the samples of a report in words."""
    facts = there.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    known = [str(facts[name]) for name in ("data set", "held out", "generated") if name in facts]
    return "; ".join(known) or "other images"
