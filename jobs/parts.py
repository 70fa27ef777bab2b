"""Parts: one data set that several jobs make, each some of the shards of every split."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.bounds import MOST_PARTS
from jobs.config import require

if TYPE_CHECKING:
    from deeplense.data.building import Make
    from deeplense.data.shards import Schema


def read_part(text: str) -> tuple[int, int]:
    """(K, N) from `K/N`. Raises ValueError unless it is one, with K from 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    require(found is not None, f"part={text!r} must be K/N, such as 1/8 for the first of eight.")
    assert found
    number, count = int(found[1]), int(found[2])
    require(count <= MOST_PARTS, f"part={text} is one of more than {MOST_PARTS} parts; give fewer.")
    require(1 <= number <= count, f"part={text}: there are only parts 1/{count} to {count}/{count}.")
    return number, count


def make_part(splits: Mapping[Path, tuple["Schema", "Make"]], part: str, *, num_workers: int = 1) -> None:
    """Write the shards of a part of each split, given by its folder, and all manifests if no shard is missing then.

    Raises ValueError where a writer of all is at work there, and where a sample is bad; what other parts, and this one
    before, have made stays, and no split gets a manifest until the sample is mended and its shard made.
    """
    from deeplense.data.building import build_part, complete, num_samples_of
    from deeplense.data.shards import shard_ranges
    from deeplense.files import sole_writer
    from jobs.progress import say, track

    which = read_part(part)
    for folder, (schema, make) in splits.items():
        total = num_samples_of(schema, which)
        say(f"part {part} of {folder}: {total} of {schema.num_samples} images")
        with sole_writer(folder, shared=True):
            track(build_part(folder, schema, make, part=which, num_workers=num_workers), total=total, unit="images")
    missing = complete({folder: schema for folder, (schema, _) in splits.items()})
    count = sum(len(shard_ranges(schema)) for schema, _ in splits.values())
    rest = f"{missing} of {count} shards are still missing. The part that ends last, or the same without --part, "
    say(f"part {part} is done; " + (f"{rest}completes the data set" if missing else "the data set is complete"))
