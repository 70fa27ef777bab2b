"""Parts of a data set: several jobs make one data set together, each some of the shards of every split."""

from collections.abc import Mapping
from pathlib import Path

from deeplense.data.building import Make
from deeplense.data.shards import Schema
from jobs.bounds import read_part


def make_part(splits: Mapping[Path, tuple["Schema", "Make"]], part: str, *, num_workers: int = 1) -> None:
    """Write the shards of one part of each split, given by its folder. If no shard is missing then, write all
    manifests.

    Raises ValueError if a writer of the whole data set is at work there, or if a sample is invalid. Shards of other
    parts, and existing ones of this part, are kept. No split gets a manifest until the sample is corrected and its
    shard written.
    """
    from deeplense.data.building import build_part, complete, num_samples_of
    from deeplense.data.shards import shard_ranges
    from deeplense.files import sole_writer
    from jobs.console import say, track

    which = read_part(part)
    for folder, (schema, make) in splits.items():
        total = num_samples_of(schema, which)
        say(f"part {part} of {folder}: {total} of {schema.num_samples} images")
        with sole_writer(folder, shared=True):
            track(build_part(folder, schema, make, part=which, num_workers=num_workers), total=total, unit="images")
    missing = complete({folder: schema for folder, (schema, _) in splits.items()})
    count = sum(len(shard_ranges(schema)) for schema, _ in splits.values())
    rest = f"{missing} of {count} shards are still missing. The part that ends last, or the command without --part, "
    say(f"part {part} is done; " + (f"{rest}completes the data set" if missing else "the data set is complete"))
