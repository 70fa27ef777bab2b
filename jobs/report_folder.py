"""Where reports are kept: one for each data set and split, and none is written over another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplense.files import read_json
from jobs.config import require
from jobs.experiment import HELD_OUT, Part, find_datasets
from jobs.runs import REPORT
from jobs.trained_run import TrainedRun

DOCUMENT = "report.json"


def default_folder(runs: Sequence[TrainedRun], held: Part, split: str) -> Path:
    """The folder of a report in the first of its runs: `report` for what the run itself holds out, `report-folds` for
    several folds together, `report-NAME-SPLIT` for any other data set and split."""
    run, settings = runs[0].run, runs[0].settings
    if len(runs) > 1:
        return run / f"{REPORT}-folds"
    own = [folder.resolve() for folder in find_datasets(settings.dataset, settings.data_root)]
    given = [folder.parent.resolve() for folder in held.split.folders]
    if own == given and split == HELD_OUT:
        return run / REPORT
    return run / f"{REPORT}-{'+'.join(folder.name for folder in given)}-{split}"


def refuse_other_report(folder: Path, subject: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds something else than a report of the same samples, which may be replaced.

    Args:
        folder: where a report is to be written.
        subject: of which samples, as `subject_of` says it.
    """
    remedy = "give another --output, or remove it"
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; {remedy}.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    path = folder / DOCUMENT
    require(path.is_file(), f"{folder} is not empty, and no report: what is in it would be lost; {remedy}.")
    there = read_json(path)
    require(isinstance(there, dict), f"{path} is no report of this program; {remedy}.")
    require(
        is_of(there, subject),
        f"{folder} is the report of {told(there)}, and would be replaced by one of other images; {remedy}.",
    )


def is_of(there: Mapping[str, Any], subject: Mapping[str, Any]) -> bool:
    """Whether a report is of these samples; those of older versions say only of which data set they are."""
    if isinstance(there.get("of"), dict):
        return there["of"] == dict(subject)
    facts = there.get("facts")
    return isinstance(facts, dict) and f"({subject['dataset_id'][:16]})" in str(facts.get("data set"))


def told(there: Mapping[str, Any]) -> str:
    """Of which samples a report is, in words."""
    facts = there.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    known = [str(facts[name]) for name in ("data set", "held out", "generated") if name in facts]
    return "; ".join(known) or "other images"
