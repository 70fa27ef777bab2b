"""Verify every byte of a data set or of a run."""

from pathlib import Path

from deeplense.data.shards import Manifest
from deeplense.data.verifying import find_splits, verify
from jobs.console import say
from jobs.runs.attempts import ATTEMPTS
from jobs.runs.stored import CONFIG
from jobs.settings import require
from jobs.verify.settings import Settings


def run(settings: Settings) -> int:
    """Print each problem; returns exit code 1 if there is one. Raises ValueError if the folder is neither a data set
    nor a run."""
    if any((settings.folder / name).exists() for name in (CONFIG, ATTEMPTS)):
        from jobs.verify.run_folder import verify_run

        require(not settings.near, f"{settings.folder} is a run; --near works on data sets only, leave it out.")
        return verify_run(settings.folder)
    problems = verify_dataset(settings.folder)
    if settings.near:
        from jobs.verify.near import search

        return max(problems, search(settings.folder, pairs=settings.pairs, num_workers=settings.num_workers))
    return problems


def verify_dataset(dataset: Path) -> int:
    """Print each problem of a data set; returns exit code 1 if there is one."""
    try:
        splits = find_splits(dataset)
    except ValueError as error:
        raise ValueError(f"{dataset} is neither a run (with a {CONFIG}) nor a data set: {error}") from error
    problems = verify(dataset)
    for problem in problems:
        say(problem)
    if problems:
        say(f"{dataset}: {len(problems)} problems")
        return 1
    for folder in splits:
        manifest = Manifest.read(folder)
        counts = ", ".join(f"{count} {name}" for name, count in manifest.class_counts.items()) or "no labels"
        say(f"{folder}: {manifest.schema.num_samples} images in {len(manifest.shards)} shards are sound: {counts}")
    return 0
