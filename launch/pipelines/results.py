"""Which files and folders a job reads and writes, from its settings: how stages of a pipeline follow one another."""

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jobs.runs.stored import REPORT
from jobs.verbs import STOPPABLE

ROOTS = ("data_root", "runs_root")
"""Settings that name a folder to which the values of other settings may be relative."""
WRITTEN = ("output", "pairs")
"""Settings that name what a job writes."""
OWN_SPLIT = "test"
LEARNT_FROM = ("train", "val")
"""Splits that trainings read."""
SPLIT_WRITERS = ("simulate", "sample")
"""Jobs that write one split of a data set, to a subfolder of `output`."""


def results_of(verb: str, settings: Any) -> list[Path]:
    """Return what a job writes, as full paths: what exists once it is finished."""
    given = vars(settings)
    if verb in STOPPABLE:
        return [full(settings.run)]
    found = [Path(given[name]) for name in WRITTEN if given.get(name)]
    if verb in SPLIT_WRITERS:
        found = [settings.output / settings.split]
    if verb == "evaluate" and not found:
        found = report_of(settings)
    return [full(path) for path in found]


def unit_of(verb: str, settings: Any) -> Path | None:
    """Return the folder that contains what a job writes and is read as a whole: the data set of a split, or the run of
    a report. None if there is none."""
    if verb in SPLIT_WRITERS:
        return full(settings.output)
    if verb == "evaluate" and settings.output is None:
        return full(settings.generated or settings.run)
    return None


def report_of(settings: Any) -> list[Path]:
    """Return the default folder of the report of an evaluation; empty if only the evaluation itself can know it."""
    if settings.generated is not None:
        return [settings.generated / REPORT]
    if any(sign in settings.run for sign in "*?[") or settings.split != OWN_SPLIT or settings.dataset:
        return []
    return [Path(settings.run) / REPORT]


class Written(NamedTuple):
    """Something that a job writes: the path by which other jobs name it, and the split if it is one of a data set."""

    path: Path
    split: str | None = None


def provided_by(verb: str, settings: Any) -> list[Written]:
    """Return what a job writes, as other jobs name it."""
    if verb in SPLIT_WRITERS:
        return [Written(full(settings.output), settings.split)]
    return [Written(path) for path in results_of(verb, settings)]


def splits_read(verb: str, settings: Any) -> tuple[str, ...] | None:
    """Return the splits of its data sets that a job reads; None if it may read any."""
    if verb in STOPPABLE:
        return (*LEARNT_FROM, *([settings.split] if verb == "finetune" else []))
    return (settings.split,) if verb == "evaluate" and settings.generated is None else None


def reads(verb: str, settings: Any, written: Sequence[Written]) -> bool:
    """Whether a job reads something that another writes, as far as its settings tell."""
    splits = splits_read(verb, settings)
    return names(verb, settings, [each for each in written if splits is None or each.split in (None, *splits)])


def names(verb: str, settings: Any, written: Sequence[Written]) -> bool:
    """Whether a job names something that another writes: as a path, as a path in it, or by a pattern."""
    return any(is_at(path, each.path) for path in inputs_of(verb, settings) for each in written)


def is_at(path: Path, written: Path) -> bool:
    """Whether a path, or a pattern of paths, is that of something written, or in it."""
    return path == written or written in path.parents or fnmatch.fnmatchcase(str(written), str(path))


def inputs_of(verb: str, settings: Any) -> Iterator[Path]:
    """Yield the paths that the settings of a job may name as inputs, as full paths. Any text may be one."""
    apart = {*WRITTEN, *ROOTS, *(["run"] if verb in STOPPABLE else [])}
    given = {name: value for name, value in vars(settings).items() if name not in apart}
    roots = [Path(), *(vars(settings)[name] for name in ROOTS if vars(settings).get(name))]
    yield from (full(root / text) for text in texts_in(given) for root in roots)
    if verb == "compare":
        yield from (full(Path(run) / settings.report) for run in settings.runs)


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts and paths in a value, with those that commas separate one by one."""
    nested: Mapping[type, Callable[[Any], Iterator[Any]]] = {dict: lambda v: iter(v.values()), list: iter, tuple: iter}
    for kind, items in nested.items():
        if isinstance(value, kind):
            for item in items(value):
                yield from texts_in(item)
    if isinstance(value, str | Path):
        yield from (text.strip() for text in str(value).split(",") if text.strip())


def full(path: Path | str) -> Path:
    """Return the full path, without `..` and a trailing slash; links are kept."""
    return Path(os.path.abspath(os.path.expanduser(path)))
