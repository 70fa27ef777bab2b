"""Read every byte of a data set, or of a run's checkpoints, and name what is damaged, missing, or contradictory. Of a
data set, --near also finds images that are copies of others, turned, flipped, shifted, rescaled or changed a little."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.attempts import ATTEMPTS
from jobs.config import FREE, SWITCH, require
from jobs.counting import counts_with
from jobs.runs import CONFIG


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to verify."""

    folder: Path = field(metadata={"help": "the folder of a data set, or of a run"})
    near: Literal[0, 1] = field(default=0, metadata=SWITCH)
    """of a data set: find near copies within and across its splits, too; those across splits, and those with different
    labels, count as problems"""
    pairs: Path | None = field(default=None, metadata=counts_with(near=1))
    """CSV file for all pairs of near copies; otherwise only the first of each kind are printed"""
    num_workers: int = field(default=0, metadata=FREE | counts_with(near=1))
    """processes that search for near copies; 0 for one on each core"""

    def __post_init__(self) -> None:
        require(self.num_workers >= 0, f"num_workers={self.num_workers} must be 0 or more.")
        require(self.near == 1 or self.pairs is None, "--pairs counts with --near only; leave it out, or add --near.")


def run(settings: Settings) -> int:
    """Print each problem; exit code 1 where there is one. Raises ValueError where the folder is of neither kind."""
    if any((settings.folder / name).exists() for name in (CONFIG, ATTEMPTS)):
        from jobs.verify_run import verify_run

        require(not settings.near, f"{settings.folder} is a run; --near searches a data set.")
        return verify_run(settings.folder)
    problems = verify_dataset(settings.folder)
    if settings.near:
        from jobs.near import search

        return max(problems, search(settings.folder, pairs=settings.pairs, num_workers=settings.num_workers))
    return problems


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
        counts = ", ".join(f"{count} {name}" for name, count in manifest.class_counts.items()) or "no labels"
        say(f"{folder}: {manifest.schema.num_samples} images in {len(manifest.shards)} shards are sound: {counts}")
    return 0
