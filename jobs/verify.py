"""Read every byte of a data set, or of a run's checkpoints, and name what is damaged, missing, or contradictory."""

from dataclasses import dataclass, field
from pathlib import Path

from jobs.attempts import ATTEMPTS
from jobs.runs import CONFIG


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to verify."""

    folder: Path = field(metadata={"help": "the folder of a data set, or of a run"})


def run(settings: Settings) -> int:
    """Print each problem; exit code 1 where there is one. Raises ValueError where the folder is of neither kind."""
    if any((settings.folder / name).exists() for name in (CONFIG, ATTEMPTS)):
        from jobs.verify_run import verify_run

        return verify_run(settings.folder)
    return verify_dataset(settings.folder)


def verify_dataset(dataset: Path) -> int:
    """Print each problem of a data set; exit code 1 where there is one."""
    from deeplense.data.shards import Manifest
    from deeplense.data.verifying import find_splits, verify
    from jobs.progress import say

    try:
        splits = find_splits(dataset)
    except ValueError as error:
        raise ValueError(f"{dataset} is neither a run, which has {CONFIG}, nor a data set: {error}") from error
    problems = verify(dataset)
    for problem in problems:
        say(problem)
    if problems:
        say(f"{dataset}: {len(problems)} problems")
        return 1
    for folder in splits:
        manifest = Manifest.read(folder)
        counts = ", ".join(f"{count} {name}" for name, count in manifest.class_counts.items())
        say(f"{folder}: {manifest.schema.num_samples} images in {len(manifest.shards)} shards are sound: {counts}")
    return 0
