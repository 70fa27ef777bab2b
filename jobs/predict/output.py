"""The folder of predictions: a plan, files with a fixed range of rows each, and a manifest, written last.

    OUTPUT/plan.json predictions-00000.parquet predictions-00001.parquet ... predictions.json

The plan has everything that the bytes of the files depend on. Whoever starts first writes it, and nobody changes it.
Files are written in any order by any number of jobs, each by a rename. The job that then finds all of them writes the
manifest; if several do, they write the same bytes. So every image has exactly one row, whatever was killed when.
"""

import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deeplense.data.processes import done_by
from deeplense.files import TEMPORARY, checksum, read_json, remove, replacing, sync, write_json
from jobs.data.predictions import DOCUMENT, FORMAT
from jobs.predict.table import FACTS, PROBLEM, kept_facts
from jobs.settings import require

PLAN, MANIFEST = "plan.json", DOCUMENT
MOST_ROWS, FEWEST_FILES = 16_384, 8
LEVEL = 3
PLACES = ("dataset", "run")
"""Facts that may differ between the jobs of one table: paths by which the same content is found."""
MEASURED = ("temperature", "validation_images", "log_loss_before", "log_loss_after", "thresholds", "cross")
"""Facts that whoever starts first measures."""


def file_name(number: int) -> str:
    """Return the name of a file of the table.

    Example:
        >>> file_name(3)
        'predictions-00003.parquet'
    """
    return f"predictions-{number:05d}.parquet"


def rows_per_file(num_images: int, *, batch_size: int, asked: int | None) -> int:
    """Return the number of rows of each file but the last: whole batches, at most 16,384, and eight files if there are
    enough images."""
    if asked is not None:
        return asked
    rows = min(MOST_ROWS, math.ceil(num_images / FEWEST_FILES))
    return math.ceil(rows / batch_size) * batch_size


def ranges_of(facts: Mapping[str, Any]) -> list[range]:
    """Return the rows of each file."""
    count, rows = facts["num_images"], facts["images_per_file"]
    return [range(k, min(k + rows, count)) for k in range(0, count, rows)]


def agreed_plan(folder: Path, facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the plan of the folder; the first job measures what is missing and writes it. Raises ValueError, naming
    the first difference, if the folder is that of other predictions."""
    path = folder / PLAN
    if not path.exists():
        others = [each for each in folder.iterdir() if not each.name.startswith(TEMPORARY)] if folder.is_dir() else []
        require(not others or path.exists(), f"{folder} is not empty; give another --output.")
        write_once(path, measure())
    plan = read_json(path)
    refuse_other_plan(folder, plan, facts)
    return plan


def refuse_other_plan(folder: Path, plan: Any, facts: Mapping[str, Any]) -> None:
    """Raise ValueError if a plan is not that of these facts."""
    told = f"{folder / PLAN} is damaged; remove {folder}, or give another --output."
    require(isinstance(plan, dict) and plan.get("format") == FORMAT and isinstance(plan.get("runs"), list), told)
    before, now = comparable(plan), comparable(facts)
    for name in sorted({*before, *now}):
        require(
            before.get(name) == now.get(name),
            f"{folder} has predictions with {name}={before.get(name)}, but {name}={now.get(name)} is given; give the "
            "same settings to resume them, or another --output.",
        )


def comparable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that all jobs of one table must share."""
    left_out = {*PLACES, *MEASURED}
    runs = [{k: v for k, v in run.items() if k not in left_out} for run in facts["runs"]]
    source = {k: v for k, v in (facts.get("source") or {}).items() if k not in ("source", "catalog")}
    rest = {k: v for k, v in facts.items() if k not in left_out and k not in ("runs", "source")}
    return rest | {"runs": runs, "source": source}


def write_once(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, unless another job has just written it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # A file system without hard links.
            if not path.exists():
                temporary.rename(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_files(
    folder: Path,
    plan: Mapping[str, Any],
    make: Callable[[range], pa.Table],
    *,
    part: tuple[int, int],
    num_workers: int,
    preload: str,
) -> Iterator[int]:
    """Write the missing files of a part, yielding the number of its rows done so far."""
    ranges = ranges_of(plan)
    numbers = range(part[0] - 1, len(ranges), part[1])
    remove_unfinished(folder, numbers)
    todo = [number for number in numbers if not keeps(folder / file_name(number), plan, ranges[number])]
    if todo:  # A file was removed: the manifest does not hold any more.
        remove(folder / MANIFEST)
    done = sum(len(ranges[number]) for number in set(numbers).difference(todo))
    yield done
    write = partial(write_file, folder, dict(plan), make)
    for number in done_by(write, todo, num_workers=num_workers, preload=preload):
        done += len(ranges[number])
        yield done


def remove_unfinished(folder: Path, numbers: Sequence[int]) -> None:
    """Remove the unfinished files of killed writers of a part."""
    ours = {f"{TEMPORARY}{file_name(number)}" for number in numbers}
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.name.rpartition("-")[0] in ours:
            remove(leftover)


def write_file(folder: Path, plan: Mapping[str, Any], make: Callable[[range], pa.Table], number: int) -> None:
    """Write one file of the table."""
    table = make(ranges_of(plan)[number])
    with replacing(folder / file_name(number)) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=LEVEL)


def keeps(path: Path, plan: Mapping[str, Any], rows: range) -> bool:
    """Whether a complete file of this table exists. Raises ValueError if it is damaged or of other predictions."""
    if not path.exists():
        return False
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and run the same command again.") from error
    right = (footer.metadata or {}).get(FACTS) == kept_facts(plan) and footer.num_rows == len(rows)
    require(right, f"{path} does not belong to {path.parent / PLAN}; remove it, and run the same command again.")
    return True


def complete(folder: Path, plan: Mapping[str, Any]) -> int:
    """Write the manifest if no file is missing; returns the number of missing files."""
    # Listed: whether a file exists may be answered from memory on NFS, of before another node made it.
    there = {path.name for path in folder.iterdir()}
    ranges = ranges_of(plan)
    missing = sum(file_name(number) not in there for number in range(len(ranges)))
    if not missing and MANIFEST not in there:
        files = [folder / file_name(number) for number in range(len(ranges))]
        for path, rows in zip(files, ranges, strict=True):
            keeps(path, plan, rows)
        lines = [
            {
                "file": path.name,
                "num_images": len(rows),
                "num_problems": num_problems(path),
                "bytes": path.stat().st_size,
                "xxh3_128": checksum(path),
            }
            for path, rows in zip(files, ranges, strict=True)
        ]
        write_json(folder / MANIFEST, {**plan, "files": lines})
    return missing


def num_problems(path: Path) -> int:
    """Return the number of images in a file that could not be predicted."""
    problems = pq.read_table(path, columns=[PROBLEM])[PROBLEM]
    return len(problems) - problems.null_count
