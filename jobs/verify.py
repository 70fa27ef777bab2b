"""Read every byte of a data set and name what is damaged, missing, or in two splits."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to verify."""

    folder: Path = field(metadata={"help": "the folder of a data set"})


def run(settings: Settings) -> int:
    """Print each problem; exit code 1 where there is one."""
    from deeplense.data.shards import Manifest
    from deeplense.data.verifying import find_splits, verify
    from jobs.progress import say

    problems = verify(settings.folder)
    for problem in problems:
        say(problem)
    if problems:
        say(f"{settings.folder}: {len(problems)} problems")
        return 1
    for folder in find_splits(settings.folder):
        manifest = Manifest.read(folder)
        counts = ", ".join(f"{count} {name}" for name, count in manifest.class_counts.items())
        say(f"{folder}: {manifest.schema.num_samples} images in {len(manifest.shards)} shards are sound: {counts}")
    return 0
